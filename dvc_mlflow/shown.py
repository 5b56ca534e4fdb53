"""What a run shows of a result: its files, its metrics and its curves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_mlflow import curves, schema, values
from dvc_mlflow.hooks import hook
from dvc_mlflow.result import Result

SOME = "/*"  # after a folder: those files in it that people look at
SHOWN = (".csv", ".html", ".json", ".md", ".png", ".svg", ".txt", ".yaml")  # kept of a folder
SMALL = 2**20  # bytes: the largest out that is copied, if it is no metric, plot or model
LARGEST = 2**26  # bytes: the largest metric, plot or model
MOST_SAME = 10  # files with the same metric that the run over all stages tells apart
MOST_FILES = 20  # copied of a folder that is neither metric nor plot


@dataclass(frozen=True)
class Shown:
    """What is here of a result."""

    files: dict[Path, Path]  # by their place among the artifacts of the run
    points: list[tuple[str, float, int]]  # metrics and curves: name, value, step


def of_result(result: Result, missing: Sequence[str] = ()) -> Shown:
    """Read what a run shows.

    Args:
        result: Everything that :func:`wanted` names lies in this folder.
        missing: Except for these.

    Raises:
        StageError: A file cannot be read.
    """
    elsewhere = {*hook("reads", lambda _: ())(result)} - {*result.outs}
    here = [path for path in wanted(result) if path not in {*missing, *elsewhere}]
    points = list(curves.of_result(result, here))
    for path in here:
        points += curves.points(hook("history", lambda _: {})(Path(path)), "epoch")
    points += _numbers(result, here, {key: value for key, value, _ in points})
    return Shown(_files(result, here), points)


def wanted(result: Result) -> list[str]:
    """The outs, or files in them, that a run shows, and the models. Large data is only linked."""
    read = hook("reads", lambda _: ())(result)
    shown = [*result.metrics, *result.plots, *models_of(result)]
    others = [
        f"{out}{SOME}" if md5.endswith(".dir") else out
        for out, md5 in result.outs.items()
        if out not in shown and out not in result.models
        and (md5.endswith(".dir") or result.sizes.get(out, LARGEST) <= SMALL)
    ]  # fmt: skip
    return list(dict.fromkeys([*shown, *others, *read]))


def models_of(result: Result) -> list[str]:
    """The models of a result that are not too large to be logged."""
    return [path for path in result.models if result.sizes.get(path, 0) <= LARGEST]


def _files(result: Result, here: Sequence[str]) -> dict[Path, Path]:
    """The files that become artifacts: all of metrics and plots, and outs that are not large.

    Of a folder that is neither metric nor plot, they are the small files that people look at.
    """
    placed: dict[Path, Path] = {}
    for path in here:
        if path in result.models:
            continue
        out = Path(path.removesuffix(SOME))
        whole = path in result.plots or path in result.metrics
        inside = [out] if out.is_file() else sorted(out.rglob("*") if whole else out.iterdir())
        chosen = [
            file for file in inside
            if file.is_file() and (whole or file == out or file.suffix in SHOWN)
            and file.stat().st_size <= (LARGEST if whole else SMALL)
        ]  # fmt: skip
        for file in chosen if whole else chosen[:MOST_FILES]:
            place = file.relative_to(out.parent) if whole else Path(file.name)
            placed[file if place in placed else place] = file
            if whole and file.suffix in (".json", ".yaml", ".yml") and curves.read(file):
                placed[(Path(schema.TABLES) / place).with_suffix(".json")] = file
    return placed


def _numbers(
    result: Result, here: Sequence[str], drawn: Mapping[str, float]
) -> list[tuple[str, float, int]]:
    """The metrics in the outs as points, without those that a curve ends with.

    Args:
        drawn: The last value of each curve. A metric with another value and the same name gets the
            name of its file before it.
    """
    by_file: dict[Path, dict[str, float]] = {}
    further = hook("metrics", lambda _: {})
    for path in here:
        numbers = values.of_file(Path(path)) if path in result.metrics else {}
        numbers |= further(Path(path.removesuffix(SOME)))
        by_file |= {Path(path): numbers} if numbers else {}
    if result.state:  # each stage has its own; those of many stages would hide all others
        counted = Counter(key for numbers in by_file.values() for key in numbers)
        by_file = {
            path: {key: value for key, value in numbers.items() if counted[key] <= MOST_SAME}
            for path, numbers in by_file.items()
        }
    points: list[tuple[str, float, int]] = []
    for key, value in values.joined(by_file).items():
        if key not in drawn:
            points.append((key, value, 0))
        elif repr(value) != repr(float(drawn[key])):  # NaN is not equal to itself
            file = next(path for path, numbers in by_file.items() if key in numbers)
            points.append((f"{file.stem}.{key}", value, 0))
    return points


def tree(path: Path) -> dict[str, Any]:
    """The content of a metrics file, or nothing if it is no mapping."""
    content = files.read_tree(path)
    return content if isinstance(content, dict) else {}
