"""Values as MLflow takes them, and one line about each that it cannot hold as it is."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.errors import StageError, shortened
from dvc_mlflow.naming import cut, leaves, marked, named

LONGEST_PARAM, LONGEST_TAG = 6_000, 8_000  # characters that MLflow keeps; it cuts off the rest
LONGEST_NAME = 250  # characters of the name of a run that every database takes
TREES = (".json", ".yaml", ".yml", ".toml")
NOT_FINITE = ("nan", "inf", "infinity")  # DVCLive writes such texts for numbers
MOST_NAMED = 10  # keys in one line


@functools.cache  # the run over all stages has the same files as theirs
def note(line: str) -> None:
    """Say it, once in a process."""
    print(line)


def param(key: str, value: Any) -> str:
    """A setting as MLflow takes it."""
    return _told("the setting", key, str(value), LONGEST_PARAM)


def tags(given: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them."""
    return {key: _told("the tag", key, value, LONGEST_TAG) for key, value in given.items()}


def _told(what: str, key: str, text: str, longest: int) -> str:
    if len(text) > longest:
        note(
            f"{what} {shortened(key, 60)} has {len(text):,} characters: MLflow takes {longest:,}, "
            "so its end is a hash"
        )
    return cut(text, longest)


def told_apart(keys: Iterable[str]) -> dict[str, str]:
    """The name of each key in MLflow. A key whose name another one has already ends in a hash."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for key in dict.fromkeys(keys):
        name = named(key)
        if name in taken:
            name = named(marked(name, 249, key))
        taken.add(name)
        names[key] = name
        if name != key:
            shown = f"`{key}`" if not key.strip() else key
            note(f"{shortened(shown, 60)} is called {shortened(name, 60)} in MLflow")
    return names


# --- metrics ---


def of_file(path: Path) -> dict[str, float]:
    """The numbers of a metrics file, or of all files in a folder, by their flat keys.

    As for `dvc metrics show`, `true` is 1 and lists are no metrics. A number that has no key has
    the name of its file. What MLflow does not show is named.

    Raises:
        StageError: A JSON, YAML or TOML file cannot be read.
    """
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix in TREES)
        return joined({file: of_file(file) for file in inside})
    try:
        tree = files.read_tree(path)
    except StageError:
        if path.suffix in TREES or not path.suffix:
            raise
        note(f"{path} is no JSON, YAML or TOML: its metrics are not in MLflow")
        return {}
    found: dict[str, float] = {}
    others: list[str] = []
    first: set[str] = set()
    for parts, value in leaves(tree):
        key = ".".join(map(str, parts)) if parts else path.stem
        if key in first:  # {"a.b": 1, "a": {"b": 2}}
            new = marked(key, len(key) + 9, parts)
            note(f"{path} has two values {key}: the second is called {new} in MLflow")
            key = new
        first.add(key)
        if not isinstance(value, list | int | float) and not is_not_finite(value):
            others.append(key)
        elif not isinstance(value, list):
            try:
                found[key] = float(value)
            except OverflowError:
                note(f"{path}: {key} is too large for a number of MLflow")
                continue
            if isinstance(value, int) and found[key] != value:
                note(f"{path}: {key} is {value}, and {int(found[key])} in MLflow")
            elif changed := stored(found[key]):
                note(f"{path}: {key} is {value}, and {changed} in MLflow")
    if others:
        keys = ", ".join(others[:MOST_NAMED]) + (" and others" if others[MOST_NAMED:] else "")
        note(f"{path}: {keys} {'are no numbers' if others[1:] else 'is no number'} for MLflow")
    return found


def only_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a mapping, by their flat keys. See :func:`of_file`, which names the others."""
    found = {}
    for parts, value in leaves(metrics):
        if isinstance(value, int | float) or is_not_finite(value):
            try:
                found[".".join(map(str, parts))] = float(value)
            except OverflowError:
                continue
    return found


def is_not_finite(text: Any) -> bool:
    return isinstance(text, str) and text.strip().lower().lstrip("+-") in NOT_FINITE


def stored(value: float) -> str:
    """What MLflow makes of a number that it does not keep; empty for one that it keeps."""
    if math.isinf(value):
        return "1.7976931348623157e+308" if value > 0 else "-1.7976931348623157e+308"
    return "0.0" if value == 0 and math.copysign(1, value) < 0 else ""


# --- names ---


def joined(of_files: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """The values of several files by key, with as much of the path of a file before a key as tells
    it apart."""
    plain = [file.with_suffix("") for file in of_files]
    found: dict[tuple[str, ...], Any] = {}
    for file, values in of_files.items():
        short = file.with_suffix("")
        path = (short if plain.count(short) == 1 else file).parts
        found |= {(*path, key): value for key, value in values.items()}
    same: dict[str, list[tuple[str, ...]]] = {}
    for *above, key in found:
        same.setdefault(key, []).append(tuple(above))
    shared = {key: _shared(paths) for key, paths in same.items()}
    return {
        name_of(above[min(shared[key], len(above) - 1) :], key) if same[key][1:] else key: value
        for (*above, key), value in found.items()
    }


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """How many first parts all paths have in common."""
    first, last = min(paths), max(paths)
    same = (a == b for a, b in zip(first, last, strict=False))
    return sum(itertools.takewhile(bool, same))


def name_of(path: Sequence[str], key: str) -> str:
    """A key with a path before it. A file has often the name of its only column."""
    return ".".join([*path, *([] if path and path[-1] == key else [key])])
