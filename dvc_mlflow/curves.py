"""Plots of DVC as metrics by step, and as tables."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from dvc_kit.errors import StageError, one_line, shortened
from dvc_kit.files import read_tree
from dvc_mlflow import values
from dvc_mlflow.result import Result

TABLES = (".csv", ".tsv", ".json", ".yaml", ".yml")
# DVC's templates that draw curves. A template of your own does so if its name begins like that
LINES = ("linear", "simple", "smooth")
COUNTERS = ("step", "epoch")  # the columns that count steps where dvc.yaml names none
MOST_STEPS = 2_500  # points of a curve that MLflow shows
LAST_STEP = 2**63 - 1
ROW = "row"  # the steps of a plot without a column for them

Columns = dict[str, list[Any]]
Curve = tuple[list[int], list[float]]  # steps and values
Points = Iterator[tuple[str, float, int]]  # key, value, step


def of_result(result: Result, there: Iterable[str]) -> Points:
    """The points of all curves of a result, whose plots lie in this folder.

    A plot is a curve if its x counts steps: whole numbers that grow. A plot without an x has the
    column `step` or `epoch`. Without these it is what DVC draws: the last column over the rows,
    if no y is named. A curve has the name of its column, and the path of its file before it where
    two files have the same column or the plot is a folder. If an x is named and its column counts
    no steps, this is said.
    """
    by_file: dict[Path, dict[str, Curve]] = {}
    named: dict[str, Curve] = {}
    for path in there:
        options = result.plots.get(path)
        if options is None or not (options.get("template") or "linear").startswith(LINES):
            continue
        for file in files(Path(path)):
            curves = _curves(read(file), options, file)
            if Path(path).is_dir():
                below = file.relative_to(path).with_suffix("").parts
                named |= {values.name_of(below, name): curve for name, curve in curves.items()}
            else:
                by_file[file] = curves
    for name, (steps, numbers) in {**named, **values.joined(by_file)}.items():
        every = -(-len(steps) // MOST_STEPS)
        chosen = [*range(0, len(steps) - 1, every), len(steps) - 1]
        if every > 1:
            values.note(f"{name} has {len(steps):,} points: {len(chosen):,} of them are logged")
        if changed := [number for number in numbers if values.stored(number)]:
            first = f"{changed[0]} is {values.stored(changed[0])} in MLflow"
            values.note(f"{len(changed)} points of the curve {name} are changed: {first}")
        yield from ((name, numbers[at], steps[at]) for at in chosen)


def points(columns: Columns, x: str) -> Points:
    """The points of all columns over the column ``x``, if that counts steps."""
    for name, (steps, numbers) in _curves(columns, {"x": x}).items():
        yield from ((name, value, step) for step, value in zip(steps, numbers, strict=True))


def files(path: Path) -> list[Path]:
    """The tables at a path or below it."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in inside if file.suffix in TABLES and file.is_file()]


def read(path: Path) -> Columns:
    """The columns of a table by name. Empty if the file holds none.

    As for DVC, the table in a JSON or YAML file is the first list of mappings in it.

    Raises:
        StageError: It cannot be read.
    """
    if path.suffix in (".csv", ".tsv"):
        try:
            text = io.StringIO(path.read_text(encoding="utf-8-sig"))
            rows = list(csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ","))
        except (ValueError, OSError, csv.Error) as error:
            raise StageError(f"{path} cannot be read ({one_line(error)})") from None
    else:
        rows = _rows(read_tree(path))
    names = {name: None for row in rows for name in row if name is not None}
    return {str(name): [row.get(name) for row in rows] for name in names}


def _rows(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, list) and tree and all(isinstance(row, dict) for row in tree):
        return tree
    inside = tree.values() if isinstance(tree, dict) else ()
    return next((rows for item in inside if (rows := _rows(item))), [])


def _curves(
    columns: Columns, options: Mapping[str, Any], file: Path | None = None
) -> dict[str, Curve]:
    """Steps and values of each column of numbers, if something counts steps.

    Args:
        file: To be named with each column that might be a curve and is none.
    """
    x = options.get("x")
    if x is not None:
        return _over(columns, x, file)
    for name in COUNTERS:
        if name in columns and (curves := _over(columns, name)):
            return curves
    # As DVC draws it
    chosen = [*_texts(options.get("y"))] or [*columns][-1:]
    rows = [*range(len(next(iter(columns.values()), ())))]
    return _over({ROW: rows} | {name: columns[name] for name in chosen if name in columns}, ROW)


def _over(columns: Columns, x: str, file: Path | None = None) -> dict[str, Curve]:
    """The curves over a column that counts steps."""
    curves: dict[str, Curve] = {}
    wrong: dict[str, list[str]] = {}
    names = [name for name in columns if name != x]
    steps = [_number(cell) for cell in columns.get(x, ())]
    given = [n for n in steps if n is not None]
    bad = [n for n in given if isinstance(n, str) or not 0 <= n <= LAST_STEP]
    if x not in columns:
        wrong[f"it has no column {x}"] = names
    elif len(given) < 2 or any(isinstance(n, str) or n % 1 > 0 for n in given):
        return {}  # it is of another kind, such as the rates of a ROC curve
    elif bad:
        wrong[f"its x has {shortened(str(bad[0]), 40)}, which is no step"] = names
    else:
        for name in names:
            cells = [_number(cell) for cell in columns[name]]
            texts = [cell for cell in cells if isinstance(cell, str)]
            rows = [
                (int(at), values.as_float(n))
                for at, n in zip(steps, cells, strict=True)
                if not isinstance(at, str) and not isinstance(n, str | None) and at is not None
            ]
            if texts and rows:
                reason = f"it has {shortened(one_line(texts[0]), 40)}, which is no number"
                wrong.setdefault(reason, []).append(name)
            elif any(b <= a for (a, _), (b, _) in pairwise(rows)):
                wrong.setdefault(f"its steps, the column {x}, do not grow", []).append(name)
            elif rows:
                curves[name] = [at for at, _ in rows], [n for _, n in rows]
    for why, of in wrong.items() if file else ():
        values.note(f"{file}: no curve of {', '.join(of)} in MLflow, because {why}")
    return curves


def _number(cell: Any) -> int | float | str | None:
    """A cell as a number; None if it is empty, and otherwise its text."""
    if cell is None or isinstance(cell, int | float):
        return cell
    text = str(cell).strip()
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None


def _texts(tree: Any) -> Iterator[str]:
    """The names in the option `y`, which may be one, several, or those of each file."""
    if isinstance(tree, str):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _texts(item)


def as_table(columns: Columns) -> str:
    """A table in the format of MLflow. JSON has no NaN, no infinity and no dates."""
    rows = [
        [str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row]
        for row in zip(*columns.values(), strict=True)
    ]
    return json.dumps({"columns": list(columns), "data": rows}, default=str)
