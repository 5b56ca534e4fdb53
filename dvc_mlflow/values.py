"""Values as MLflow takes them, and one line about each that it cannot hold as it is."""

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.errors import StageError, shortened
from dvc_mlflow.naming import cut, flat, marked, named

LONGEST_PARAM, LONGEST_TAG = 6_000, 8_000  # characters that MLflow keeps; it cuts off the rest
LONGEST_NAME = 250  # characters of the name of a run that every database takes
TREES = (".json", ".yaml", ".yml", ".toml")
NOT_FINITE = ("nan", "inf", "infinity")  # DVCLive writes such texts for numbers
LONGEST_LIST = 200  # characters


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
    the name of its file. What MLflow does not show is named, and so is a file in another format,
    such as CSV, which YAML reads as one text.

    Raises:
        StageError: A JSON, YAML or TOML file cannot be read.
    """
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix in TREES)
        return joined({file: of_file(file) for file in inside})
    is_tree = path.suffix in TREES or not path.suffix
    try:
        tree = files.read_tree(path)
    except StageError:
        if is_tree:
            raise
        tree = ""
    named = {key or path.stem: value for key, value in flat(tree).items()}
    found = only_numbers(named)
    if not (is_tree or found) and isinstance(tree, str):
        cure = "; under `plots`, its columns are curves" if path.suffix in (".csv", ".tsv") else ""
        note(f"{path} is no JSON, YAML or TOML: its metrics are not in MLflow{cure}")
        return {}
    others = [key for key in named if key not in found and not isinstance(named[key], list)]
    for key, value in found.items():
        if changed := stored(value):
            note(f"{path}: {key} is {value}, and {changed} in MLflow")
    if others:
        keys = shortened(", ".join(others), LONGEST_LIST)
        note(f"{path}: {keys} {'are no numbers' if others[1:] else 'is no number'} for MLflow")
    return found


def only_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a mapping, by their flat keys. See :func:`of_file`, which names the others."""
    return {
        key: as_float(value)
        for key, value in flat(metrics).items()
        if isinstance(value, int | float)
        or (isinstance(value, str) and value.strip().lower().lstrip("+-") in NOT_FINITE)
    }


def as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def stored(value: float) -> str:
    """What MLflow makes of a number that it does not keep; empty for one that it keeps."""
    most = "1.7976931348623157e+308"
    return (most if value > 0 else f"-{most}") if math.isinf(value) else ""


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
    same: dict[str, list[str]] = {}
    for *above, key in found:
        same.setdefault(key, []).append("/".join(above))
    shared = {key: len(Path(os.path.commonpath(paths)).parts) for key, paths in same.items()}
    return {
        name_of(above[min(shared[key], len(above) - 1) :], key) if same[key][1:] else key: value
        for (*above, key), value in found.items()
    }


def name_of(path: Sequence[str], key: str) -> str:
    """A key with a path before it. A file has often the name of its only column."""
    return ".".join([*path, *([] if path and path[-1] == key else [key])])
