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
    column `step` or `epoch`, or else counts rows, unless its rows are the labels of samples. A
    curve has the name of its column, and the path of its file before it where two files have the
    same column or the plot is a folder. What is no curve for another reason than its kind is named.
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

    def noted(curves: dict[str, Curve], wrong: Mapping[str, str]) -> dict[str, Curve]:
        """The curves, after saying why other columns are none."""
        for why in dict.fromkeys(wrong.values()) if file else ():
            names = ", ".join(name for name in columns if wrong.get(name) == why)
            values.note(f"{file}: no curve of {names} in MLflow, because {why}")
        return curves

    x, chosen = options.get("x"), [*_texts(options.get("y"))]
    if x is not None:
        return noted(*_over(columns, x))
    for name in COUNTERS:
        curves, wrong = _over(columns, name) if name in columns else ({}, {})
        if curves:
            return noted(curves, wrong)
    rows = [*range(len(next(iter(columns.values()), ())))]
    curves, wrong = _over({**columns, ROW: rows}, ROW)
    others = curves.keys() & {*COUNTERS} - {*chosen}
    wrong |= dict.fromkeys(others, "it counts no steps, and the others are over the rows")
    if chosen:
        others = {*columns} - {*chosen}
    elif not options.get("template"):
        others |= {*_labels(columns)}
        why = "its rows are labels; `x` or `template: linear` in dvc.yaml makes it one"
        wrong |= dict.fromkeys(curves.keys() & {*_labels(columns)}, why)
    return noted({name: curves[name] for name in curves if name not in others}, wrong)


def _over(columns: Columns, x: str) -> tuple[dict[str, Curve], dict[str, str]]:
    """The curves over a column that counts steps, and why other columns are none."""
    curves: dict[str, Curve] = {}
    wrong: dict[str, str] = {}
    if x not in columns:
        return {}, dict.fromkeys(columns, f"it has no column {x}")
    steps, why = _steps(columns[x])
    if why or len(steps) < 2:
        return {}, dict.fromkeys(columns.keys() - {x}, why) if why else {}
    for name in columns.keys() - {x}:
        try:
            cells = [_number(cell) for cell in columns[name]]
        except ValueError as error:
            if any(_numbers([cell])[:1] not in ([], [None]) for cell in columns[name]):
                wrong[name] = str(error)  # otherwise it is of another kind
            continue
        rows = [
            (at, _float(n))
            for at, n in zip(steps, cells, strict=True)
            if at is not None and n is not None
        ]
        if any(b <= a for (a, _), (b, _) in pairwise(rows)):
            wrong[name] = f"its steps, the column {x}, do not grow"
        elif rows:
            curves[name] = [at for at, _ in rows], [n for _, n in rows]
    return {name: curves[name] for name in columns if name in curves}, wrong


def _steps(cells: list[Any]) -> tuple[list[int | None], str]:
    """The cells as steps, where they are not empty; or why they are none, if they might be."""
    try:
        numbers = [_number(cell) for cell in cells]
    except ValueError:
        return [], ""
    given = [number for number in numbers if number is not None]
    fractions = [n for n in given if isinstance(n, float) and math.isfinite(n) and n % 1]
    if fractions:  # of another kind, such as the rates of a ROC curve
        return [], ""
    if wrong := [n for n in given if not 0 <= n <= LAST_STEP]:
        return [], f"its x has {shortened(str(wrong[0]), 40)}, which is no step"
    return [None if number is None else int(number) for number in numbers], ""


def _number(cell: Any) -> int | float | None:
    """A cell as a number; None if it is empty.

    Raises:
        ValueError: It is something else.
    """
    if cell is None or isinstance(cell, int | float):
        return cell
    if isinstance(cell, str) and not cell.strip():
        return None
    for kind in (int, float) if isinstance(cell, str) and "_" not in cell else ():
        with contextlib.suppress(ValueError):
            return kind(cell)
    raise ValueError(f"it has {shortened(one_line(str(cell)), 40)}, which is no number")


def _numbers(cells: list[Any]) -> list[float | None]:
    """The cells as numbers where they are not empty, or nothing if one is something else."""
    try:
        return [None if (n := _number(cell)) is None else _float(n) for cell in cells]
    except ValueError:
        return []


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _labels(columns: Columns) -> list[str]:
    """The columns that say of which class something is: texts or whole numbers of a small set.

    If two of them have the same classes, such as `actual` and `predicted`, the rows are samples in
    no order, and all columns are returned.
    """
    classes: dict[str, tuple[set[Any], bool]] = {}  # and whether they are in order
    for name, cells in columns.items():
        numbers = [n for n in _numbers(cells) if n is not None and n % 1 == 0]
        texts = [] if _numbers(cells) else [str(cell) for cell in cells]
        its = {*numbers, *texts}
        pairs = [*pairwise(numbers)]
        counts = numbers and all(a < b for a, b in pairs)
        if len(numbers or texts) < len(cells) or len(its) < 2 or counts:
            continue
        ordered = all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)
        classes[name] = its, bool(numbers) and ordered
    for column, (its, ordered) in classes.items():
        if any(
            its <= others and not (ordered and also)
            for other, (others, also) in classes.items()
            if other != column
        ):
            return [*columns]
    return [
        name
        for name, (its, ordered) in classes.items()
        if not ordered and _numbers(columns[name]) and len(its) * 2 <= len(columns[name])
    ]


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
