"""What a result is: its stage, command, settings, deps and outs. Its identity is a hash of these.

The entry of a stage in dvc.lock is enough to compute it. So all commits are searched for a result
without DVC. Sizes, numbers of files, the names of hashes and every order do not count. So the hash
is the same for the locks of DVC 1, 2 and 3.
"""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dvc_kit.errors import StageError
from dvc_mlflow import projects

HASHES = ("md5", "etag", "checksum")
UNCOUNTED = ("path", "hash", "size", "nfiles", "isexec")


def of_lock(text: str, folder: Path) -> frozenset[str]:
    """The identities of all results in the text of a dvc.lock.

    Args:
        folder: The folder of the file, from the root.

    Raises:
        StageError: The text names no stages.
    """
    head, _, stages = text.partition("stages:\n")
    if head in ("schema: '2.0'\n", 'schema: "2.0"\n'):
        # A commit changes few entries, so each entry is parsed once. Entries begin at two spaces.
        # Those that belong together cannot be parsed one by one: an anchor and its aliases
        with contextlib.suppress(StageError):
            entries = re.split(r"(?m)^(?=  \S)", stages)
            return frozenset().union(*(_of_text(folder, entry) for entry in entries if entry))
    return _of_stages(folder, text)


def _of_stages(folder: Path, text: str) -> frozenset[str]:
    return frozenset(of_entry(folder, *entry) for entry in projects.stages_in(text).items())


@functools.cache
def _of_text(folder: Path, entry: str) -> frozenset[str]:
    """The same of the text of one entry."""
    return _of_stages(folder, f"stages:\n{entry}")


def of_entry(folder: Path, stage: str, entry: Mapping[str, Any]) -> str:
    """The identity of the result in the entry of a stage.

    Args:
        folder: The folder of dvc.lock, from the root.
        stage: The name of the stage there.
    """
    deps, outs = (_contents(entry.get(kind) or ()) for kind in ("deps", "outs"))
    params = entry.get("params") or {}
    return of([folder.as_posix(), stage, entry.get("cmd"), deps, params, outs])


def of(parts: Any) -> str:
    """A hash of anything that a YAML file can hold."""
    return hashlib.md5(json.dumps(_plain(parts), sort_keys=True).encode()).hexdigest()


def _contents(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {entry["path"]: _content(entry) for entry in entries}


def _content(entry: Mapping[str, Any]) -> Any:
    """The hash of a dep or an out. One without a hash, such as a data set, counts as it is."""
    if files := entry.get("files"):  # of a folder in a remote with versions: hashed as DVC does
        listed = [{"md5": file.get("md5"), "relpath": file["relpath"]} for file in files]
        listed.sort(key=lambda file: str(file["relpath"]))
        return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"
    told = next((entry[name] for name in HASHES if entry.get(name)), None)
    return told or {key: value for key, value in entry.items() if key not in UNCOUNTED}


def _plain(tree: Any) -> Any:
    """As JSON can hold it: dates become texts, and so do the keys of mappings."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree if isinstance(tree, str | int | float | None) else str(tree)
