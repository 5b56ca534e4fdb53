"""The bytes of outs that git keeps, as their stage wrote them."""

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dvc_kit.files import md5
from dvc_mlflow import git

POINTER = b"version https://git-lfs.github.com/spec/"  # the beginning of a pointer of Git LFS


def write(root: Path, commit: str, out: str, wanted: str | None, path: str) -> bool:
    """Write a path of an out into the working directory. False if the commit does not have it.

    What git keeps may differ from what the stage wrote, for example in the ends of lines. The md5
    tells which version is right. Links and pointers of Git LFS are not the content.

    Args:
        root: The folder of the checkout.
        wanted: The md5 of the out; None for a file that is no out.
        path: The out, or a file or a folder in it.
    """
    listed = git.content("ls-tree", "-r", "-z", commit, "--", out, folder=root) or b""
    entries = [entry.split(b"\t", 1) for entry in listed.split(b"\0") if entry]
    kept = {os.fsdecode(name): told.split() for told, name in entries}
    if not kept or not all(mode.startswith(b"100") for mode, *_ in kept.values()):
        return False
    plain = _blobs(root, {name: blob for name, (_, _, blob) in kept.items()})
    if wanted is None and any(content.startswith(POINTER) for content in plain.values()):
        return False

    def filtered(name: str) -> bytes:
        """The bytes of a file as a checkout would write it."""
        return git.content("cat-file", "--filters", f"{commit}:./{name}", folder=root) or b""

    versions: tuple[Callable[[], dict[str, bytes]], ...] = (
        lambda: plain,
        lambda: {name: content.replace(b"\n", b"\r\n") for name, content in plain.items()},
        lambda: {name: filtered(name) for name in kept},
    )
    return any(_write(version(), out, wanted, path) for version in versions)


def _blobs(root: Path, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bytes of files as git keeps them."""
    given = b"".join(blob + b"\n" for blob in blobs.values())
    stream = io.BytesIO(git.content("cat-file", "--batch", folder=root, given=given) or b"")
    contents = {}
    for name in blobs:
        size = int(stream.readline().split()[-1])
        contents[name] = stream.read(size + 1)[:-1]
    return contents


def _write(contents: dict[str, bytes], out: str, wanted: str | None, path: str) -> bool:
    """Write a path of an out, if these are the contents of the out."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in contents.items():
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        right = wanted is None or md5(Path(scratch, out)) == wanted
        if not right or not Path(scratch, path).exists():
            return False
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(scratch, path), path)
    return True
