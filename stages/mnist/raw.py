"""The folder data/raw: what lies there is read, and never changed or deleted."""

import hashlib
import itertools
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from dvc_kit.errors import InputError
from stages.mnist import idx
from stages.mnist.idx import FILES, IdxFile, SourceFailed, WrongBytes

LONGER = 2**20  # bytes by which a file packed with gzip may be longer than unpacked


def from_folder(raw: Path) -> dict[IdxFile, bytes]:
    """The files in ``raw``, also if they are packed with gzip.

    Raises:
        SourceFailed: Some are missing.
        InputError: Something else has the name of one of them. It is the user's, because a download
            gets its name when it is complete and checked. Says what it is, its SHA-256, and the
            command that moves it away.
    """
    content: dict[IdxFile, bytes] = {}
    foreign: dict[Path, str] = {}
    missing = []
    if os.path.lexists(raw) and not raw.is_dir():
        raise _refused(raw, {raw: "is not a folder"})
    for file in FILES:
        names = (raw / file.name, raw / f"{file.name}.gz")
        path = next((path for path in names if os.path.lexists(path)), None)
        if path is None:
            missing.append(file.name)
            continue
        try:
            content[file] = _read(path, file)
        except WrongBytes as error:
            foreign[path] = str(error)
        except OSError as error:
            foreign[path] = f"cannot be read ({error.strerror})"
    if foreign:
        raise _refused(raw, foreign)
    if missing:
        raise SourceFailed(f"{raw} lacks {', '.join(missing)}")
    return content


def _read(path: Path, file: IdxFile) -> bytes:
    if not path.is_file():  # to read a named pipe would never end
        raise WrongBytes("is a folder" if path.is_dir() else "is not a file")
    with path.open("rb") as stream:
        found = stream.read(file.length + LONGER)
        try:
            found = idx.gunzip(found, file.length) if path.suffix == ".gz" else found
            idx.check(file, found)
        except WrongBytes as error:
            stream.seek(0)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            raise WrongBytes(f"{error} (SHA-256 {sha256})") from None
    return found


def _refused(raw: Path, foreign: Mapping[Path, str]) -> InputError:
    """What is not MNIST's, why, and the command that moves it to a new folder."""
    place = raw if raw.is_dir() else raw.parent
    new = (place / f"not-mnist-{number}" for number in itertools.count(1))
    folder = next(str(path) for path in new if not os.path.lexists(path))
    move = shlex.join(["mv", *map(str, foreign), folder])
    told = "; ".join(f"{path} {reason}" for path, reason in foreign.items())
    return InputError(
        f"not MNIST, and left as it is: {told}. `mkdir {shlex.quote(folder)} && {move}` moves it "
        "away; without `raw` in data.sources (params.yaml) nothing is read there"
    )
