"""The tables of the search: what was drawn, and the scores of each rung."""

import csv
from pathlib import Path
from typing import Any

from dvc_kit.errors import StageError
from stages.base.params import ModelName
from study.settings import FOLDER

TABLES = FOLDER / "search"
DRAWN = "0"  # the table before the first rung, which is "1"
LONGER = "longer"  # the table of the trainings after the last rung

Row = dict[str, Any]


def table_path(name: ModelName, rung: str) -> Path:
    return TABLES / f"{name}-{rung}.csv"


def read_table(name: ModelName, rung: str) -> list[Row]:
    """The rows of a table, the best first. An empty field is None.

    Raises:
        StageError: It is missing.
    """
    path = table_path(name, rung)
    if not path.is_file():
        raise StageError(f"{path} is missing: `dvc repro` in {FOLDER} writes it")
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return [{key: _value(text) for key, text in row.items()} for row in rows]


def _value(text: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
