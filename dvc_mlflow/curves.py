"""Plots of DVC as metrics by step, and as tables."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dvc_mlflow.errors import StageError, one_line
from dvc_mlflow.files import read_tree
from dvc_mlflow.results import Result

TABLES = (".csv", ".tsv", ".json", ".yaml", ".yml")
# DVC's templates that draw curves. A template of your own does so if its name begins like that
LINES = ("linear", "simple", "smooth")
MOST_STEPS = 2_500  # points of a curve that MLflow shows

Columns = dict[str, list[Any]]
Points = Iterator[tuple[str, float, int]]  # key, value, step


def of_result(result: Result, there: Iterable[str]) -> Points:
    """The points of all curves of a result, whose plots lie in this folder.

    A plot is a curve if its x counts steps: whole numbers that grow. A plot without an x counts
    rows. A curve has the name of its column, and the path of its file before it where two files
    have the same column or the plot is a folder.
    """
    found: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
    named: dict[str, tuple[list[int], list[float]]] = {}
    for path in there:
        options = result.plots.get(path)
        if options is None or not (options.get("template") or "linear").startswith(LINES):
            continue
        for file in files(Path(path)):
            for column, curve in _curves(read(file), options.get("x")).items():
                if Path(path).is_dir():
                    below = file.relative_to(path).with_suffix("").parts
                    named[_joined(below, column)] = curve
                else:
                    found[*file.with_suffix("").parts, column] = curve
    for name, (steps, values) in {**named, **_short_names(found)}.items():
        every = -(-len(steps) // MOST_STEPS)
        chosen = [*range(0, len(steps) - 1, every), len(steps) - 1]
        if every > 1:
            print(f"{name} has {len(steps):,} points: {len(chosen):,} of them are logged")
        yield from ((name, values[at], steps[at]) for at in chosen)


def points(columns: Columns, x: str) -> Points:
    """The points of all columns over the column ``x``, if that counts steps."""
    for name, (steps, values) in _curves(columns, x).items():
        yield from ((name, value, step) for step, value in zip(steps, values, strict=True))


def files(path: Path) -> list[Path]:
    """The tables at a path or below it."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.suffix in TABLES and file.is_file()]


def read(path: Path) -> Columns:
    """The columns of a table by name. Empty if the file holds none.

    As for DVC, the table in a JSON or YAML file is the first list of mappings in it.
    """
    if path.suffix in (".csv", ".tsv"):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (ValueError, OSError) as error:
            raise StageError(f"{path} cannot be read ({one_line(error)})") from None
        rows = list(
            csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
        )
    else:
        rows = _rows(read_tree(path))
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}


def _rows(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, list) and tree and all(isinstance(row, dict) for row in tree):
        return tree
    inside = tree.values() if isinstance(tree, dict) else ()
    return next((rows for item in inside if (rows := _rows(item))), [])


def _curves(columns: Columns, x: str | None) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each column of numbers, if the column ``x`` counts steps."""
    numbers = {name: values for name, cells in columns.items() if (values := _numbers(cells))}
    if x is None:
        x = "step" if "step" in numbers else None
    length = len(next(iter(columns.values()), ()))
    steps = [float(row) for row in range(length)] if x is None else numbers.get(x, [])
    whole = all(step >= 0 and step == int(step) for step in steps)
    if len(steps) < 2 or not whole or any(b <= a for a, b in pairwise(steps)):
        return {}
    counted = [int(step) for step in steps]
    return {name: (counted, values) for name, values in numbers.items() if name != x}


def _numbers(cells: list[Any]) -> list[float]:
    """The cells as numbers, or nothing."""
    try:
        return [float(cell) for cell in cells]
    except (TypeError, ValueError):
        return []


def _joined(path: Sequence[str], column: str) -> str:
    """The name of a curve. A file has often the name of its column."""
    return ".".join([*path, *([] if path and path[-1] == column else [column])])


def _short_names(found: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Curves by column, with as much of the path before it as tells them apart."""
    columns = [parts[-1] for parts in found]
    named = {}
    for parts, curve in found.items():
        path, column = list(parts[:-1]), parts[-1]
        if columns.count(column) == 1:
            named[column] = curve
            continue
        others = [other[:-1] for other in found if other[-1] == column]
        while len(path) > 1 and len({other[0] for other in others}) == 1:
            path, others = path[1:], [other[1:] for other in others]
        named[_joined(path, column)] = curve
    return named


def as_table(columns: Columns) -> str:
    """A table in the format of MLflow."""
    names = list(columns)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": names, "data": rows})
