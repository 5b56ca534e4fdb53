"""Results that are not the bytes that dvc.lock says, and that DVC does not notice.

    python -m stages.damage           says which; `make verify` does, too, and computes all anew
    python -m stages.damage remove    removes the damaged objects of the cache and the remote

DVC does not hash an out again whose size and time are what they were. It names an object of its
cache, or of a remote, by the md5 of its content, and trusts the name: a damaged one is checked out,
and pushed, as if it were whole.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import files, results
from stages.errors import StageError, main_function, one_line

REMOVE = "python -m stages.damage remove"

Outs = dict[tuple[str, str], str]  # the md5 of each out, by stage and path


@dataclass(frozen=True)
class Damage:
    """One file or object that is not what dvc.lock, or its name, says."""

    stage: str
    out: str
    path: str
    cure: str
    store: Any = None  # DVC's cache or remote; of a file in this folder, None

    @property
    def place(self) -> str:
        """The path, with its server if it has one."""
        if self.store is None or self.store.fs.protocol == "local":
            return self.path
        return str(self.store.fs.unstrip_protocol(self.path))

    def __str__(self) -> str:
        return f"{self.place} is damaged ({self.out} of stage {self.stage}): `{self.cure}`"


def locked(folder: Path) -> Outs:
    """Every out in the dvc.lock of ``folder``.

    Raises:
        StageError: There is none, or it is not readable.
    """
    try:
        lock = results.load_yaml((folder / results.LOCK).read_text(encoding="utf-8"))
        return {
            (stage, out["path"]): out["md5"]
            for stage, entry in lock["stages"].items()
            for out in entry["outs"]
        }
    except Exception as error:
        raise StageError(
            f"{results.LOCK} cannot be read ({one_line(error)}): `git checkout {results.LOCK}`"
        ) from None


def in_folder(outs: Outs) -> list[Damage]:
    """The outs in this folder that are not the locked ones; a missing one is not damaged."""
    return [
        Damage(stage, out, out, cure(stage, out))
        for (stage, out), md5 in outs.items()
        if Path(out).exists() and files.md5(Path(out)) != md5
    ]


def in_stores(outs: Outs) -> list[Damage]:
    """The damaged objects of these outs in the cache and in the default remote."""
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    found = []
    try:
        repo = Repo(config={"core": {"no_scm": True}})  # git is not needed, and may not be here
    except DvcException as error:
        raise StageError(f"DVC: {one_line(error)}") from None
    with repo:
        for (stage, out), md5 in outs.items():
            for path in _damaged(repo.cache.local, md5):
                again = f"{REMOVE} && dvc repro {stage}"  # runs for what is no longer there
                found.append(Damage(stage, out, path, again, repo.cache.local))
        try:
            remote = repo.cloud.get_remote_odb()
            for (stage, out), md5 in outs.items():
                for path in _damaged(remote, md5):
                    found.append(Damage(stage, out, path, f"{REMOVE} && dvc push {out}", remote))
        except NoRemoteError:
            pass
        except (DvcException, ImportError, OSError) as error:
            print(f"warning: the remote is not looked at ({one_line(error)})", file=sys.stderr)
    return found


def cure(stage: str, path: str) -> str:
    """The command that brings the committed file back."""
    try:
        tracked = results.git("ls-files", "--", path)
    except StageError:  # in a copy without history, or without git
        return f"rm -r {path} && dvc repro {stage}"
    if tracked:
        return f"git checkout -- {path}"
    return f"rm -r {path} && dvc checkout {path}"


def _damaged(store: Any, md5: str) -> Iterator[str]:
    """The paths in ``store`` of the damaged objects among an out's."""
    from dvc_data.hashfile.hash import file_md5

    path = store.oid_to_path(md5)
    if not store.fs.exists(path):
        return
    if file_md5(path, store.fs) != md5.removesuffix(".dir"):
        yield path
    elif md5.endswith(".dir"):
        for entry in json.loads(store.fs.cat_file(path)):
            yield from _damaged(store, entry["md5"])


@main_function
def main() -> None:
    outs = locked(Path())
    stored = in_stores(outs)
    if sys.argv[1:] == ["remove"]:
        for damage in {damage.place: damage for damage in stored}.values():
            damage.store.fs.rm_file(damage.path)
            print(f"{damage.place} is removed")
    elif found := stored + in_folder(outs):
        raise StageError("\nerror: ".join(map(str, found)))


if __name__ == "__main__":
    main()
