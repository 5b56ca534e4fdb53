"""Files that are written completely or not at all, and the md5 that DVC has for them."""

import contextlib
import fcntl
import hashlib
import json
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc_kit import depth
from dvc_kit.errors import StageError, WriteError, one_line


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn the reason why ``what`` cannot be written into a WriteError."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{what} cannot be written ({error.strerror}); once that is mended, `dvc repro` resumes"
        ) from None


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Let no other process write to ``folder`` through :func:`write_bytes` meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary file, then rename it to ``path``.

    A reader sees either the old file or the new one, also after a power cut. A killed process may
    leave the temporary file; the next process overwrites it.

    Raises:
        StageError: It cannot be written, because the disk is full or the folder read-only.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_writer(path.parent):
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def inside(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative to it, without those that DVC ignores."""
    from pathspec import GitIgnoreSpec

    rules = Path(".dvcignore")
    lines = rules.read_text(encoding="utf-8").splitlines() if rules.is_file() else []
    ignored = GitIgnoreSpec.from_lines(lines)
    return sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not ignored.match_file(file)
    )


def md5(path: Path) -> str:
    """The md5 that dvc.lock has for ``path``.

    For a file, this is the plain md5. For a folder, it is the md5 of a JSON list of the md5s and
    paths of its files, sorted by path, followed by ``.dir``.
    """
    if not path.is_dir():
        return _md5_of_file(path)
    entries = [{"md5": md5(path / name), "relpath": name} for name in inside(path)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


SETTLED = 2 * 10**9  # nanoseconds: no file system has coarser times
_known: dict[tuple[Path, int, int, int, int], str] = {}


def _md5_of_file(path: Path) -> str:
    """Its md5, without reading it again if this process has read it and it is unchanged since.

    No program can set the time of the last change (ctime) back. A file that has just changed may
    change once more without a later time, so it is read again.
    """
    at = path.stat()
    state = path.resolve(), at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns
    if state in _known:
        return _known[state]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if time.time_ns() > max(at.st_mtime_ns, at.st_ctime_ns) + SETTLED:
        _known[state] = found
    return found


# --- files of others ---

LARGEST = 2**26  # bytes
TOO_LARGE = f"it is larger than {LARGEST:,} bytes"


def checked(text: str, what: object, depth_of: Callable[[str], int] = depth.of_yaml) -> str:
    """A text of somebody else's, if it is neither too large nor nested too deeply to be parsed.

    Args:
        depth_of: How deeply the text is nested.

    Raises:
        StageError: It is. The line names ``what``.
    """
    reason = ""
    if len(text) > LARGEST:
        reason = TOO_LARGE
    elif depth_of(text) > depth.MOST:
        reason = (
            f"it is nested more than {depth.MOST} levels deep, or has aliases for more than "
            f"{depth.MOST_NODES:,} values"
        )
    if reason:
        raise StageError(f"{what} cannot be read ({reason})")
    return text


def _parsed(
    text: str | bytes, what: object, load: Callable[[str], Any], depth_of: Callable[[str], int]
) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
        return load(checked(decoded, what, depth_of))
    except (ValueError, RecursionError, YAMLError) as error:
        raise StageError(f"{what} cannot be read ({one_line(error)})") from None


def parse_json(text: str | bytes, what: object) -> Any:
    """The content of JSON that somebody else wrote.

    Raises:
        StageError: It is too large or too deep, or no JSON. The line names ``what``.
    """
    return _parsed(text, what, json.loads, depth.of_json)


def parse_yaml(text: str, what: object) -> Any:
    """The same as :func:`parse_json`, of YAML."""
    from ruamel.yaml import YAML

    return _parsed(text, what, YAML(typ="safe").load, depth.of_yaml)


def parse_toml(text: str, what: object) -> Any:
    """The same as :func:`parse_json`, of TOML."""
    return _parsed(text, what, tomllib.loads, depth.of_toml)


def read_text(path: Path) -> str:
    """A file of somebody else's, without reading more of it than is parsed.

    Raises:
        StageError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:  # in characters, what was read may be less
            raise ValueError(TOO_LARGE)
        return content.decode("utf-8-sig")
    except (ValueError, OSError) as error:
        raise StageError(f"{path} cannot be read ({one_line(error)})") from None


def read_tree(path: Path) -> Any:
    """The content of a JSON, YAML or TOML file.

    Raises:
        StageError: It cannot be read.
    """
    parse = {".json": parse_json, ".toml": parse_toml}.get(path.suffix, parse_yaml)
    return parse(read_text(path), path)
