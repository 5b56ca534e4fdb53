"""Stage design: the settings of the search, and the configurations that it tries.

python -m study.design MODEL     draw the configurations of a model, and write them as a table
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.stats import qmc

from dvc_kit import strict
from dvc_kit.errors import InputError, StageError, main_function
from dvc_kit.strict import Section
from stages.base import files, params
from stages.base.params import (
    CLASSES,
    TRAIN_SIZE,
    Augmentation,
    Distillation,
    ModelName,
    PlainRecipe,
    Recipe,
    Seed,
)
from stages.base.stage import running
from study.settings import FOLDER

PATH = FOLDER / "search.yaml"
TABLES = FOLDER / "search"
LEAST_DISTORTION = 0.2  # a smaller strength stands for no distortion
LONGER = "longer"  # what comes after the last rung
DIGITS = 3  # significant ones, of a value that is drawn from a range

Row = dict[str, Any]


class Range(Section):
    low: float
    high: float
    logarithmic: bool = False

    def at(self, share: float) -> float:
        """The value at a share of the range, from 0 to 1."""
        if self.logarithmic:
            return rounded(self.low * (self.high / self.low) ** share)
        return rounded(self.low + (self.high - self.low) * share)


class OfOptimizer(Section):
    adamw: Range
    sgd: Range


class Space(Section):
    """The values of each setting."""

    optimizer: Annotated[list[Literal["adamw", "sgd"]], Field(min_length=1)]
    learning_rate: OfOptimizer
    weight_decay: OfOptimizer
    batch_size: Annotated[list[int], Field(min_length=1)]
    schedule: Annotated[list[Literal["one_cycle", "constant"]], Field(min_length=1)]
    distortion: Range
    averaging: Annotated[list[float], Field(min_length=1)]
    teachers: Annotated[list[int], Field(min_length=1)]
    teacher_epochs: Annotated[list[int], Field(min_length=1)]
    teacher_weight: Range
    temperature: Range


class Updates(Section):
    """How the weights of a network are updated."""

    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]


class Incumbent(Updates):
    """A configuration without teachers that is not drawn."""

    schedule: Literal["one_cycle", "constant"]
    distortion: Annotated[float, Field(ge=0)]
    averaging: Annotated[float, Field(ge=0, lt=1)]


class Rung(Section):
    """One rung: the best ``trials`` of the one before, and the incumbent, if there is one."""

    trials: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)]
    incumbent: Incumbent | None = None


class Changes(Section):
    """The incumbent with changes: each setting that is not None."""

    epochs: Annotated[int, Field(ge=1)]
    learning_rate: float | None = None
    weight_decay: float | None = None
    distortion: float | None = None
    averaging: float | None = None
    teachers: int | None = None
    teacher_epochs: int | None = None
    teacher_weight: float | None = None
    temperature: float | None = None


class Seconds(Section):
    """How long a training takes, on all training images."""

    limit: Annotated[float, Field(gt=0)]  # of a training, its teachers included
    epoch: dict[str, Annotated[float, Field(gt=0)]]  # of each model
    answers: Annotated[float, Field(gt=0)]  # of a teacher, in an epoch


OfModels = dict[str, Annotated[int, Field(ge=1)]]


class Epochs(Section):
    """How long the recipes are trained that the search chooses."""

    fast: OfModels
    record: OfModels


class Search(Section):
    """The content of study/search.yaml. `rungs` has the models that are searched for."""

    seed: Seed
    validation_size: Annotated[int, Field(ge=CLASSES, le=TRAIN_SIZE - CLASSES)]
    space: Space
    distortions: Augmentation
    teacher: Updates
    rungs: dict[str, Annotated[list[Rung], Field(min_length=1)]]
    epochs: Epochs
    longer: dict[str, Annotated[list[Changes], Field(min_length=1)]]
    seconds: Seconds

    @property
    def models(self) -> list[ModelName]:
        return [name for name in params.MODEL_NAMES if name in self.rungs]


def load() -> Search:
    """Read study/search.yaml.

    Raises:
        InputError: It cannot be used. One line per mistake.
    """
    search = strict.check(Search, PATH, strict.read(PATH))
    for name, rungs in search.rungs.items():
        if name not in params.MODEL_NAMES:
            raise strict.unknown_name(PATH, "rungs", name, params.MODEL_NAMES)
        trials = [rung.trials for rung in rungs]
        if trials != sorted(trials, reverse=True):
            raise InputError(
                f"{PATH}: {name} has rungs of {trials} trials, expected no rung larger than the "
                "one before"
            )
        for recipe, epochs in search.epochs:
            if name not in epochs:
                raise InputError(f"{PATH}: epochs.{recipe}.{name} is missing")
    for name in search.longer:
        if name not in search.rungs or not search.rungs[name][-1].incumbent:
            raise InputError(f"{PATH}: longer has {name}, and its last rung has no incumbent")
        if name not in search.seconds.epoch:
            raise InputError(f"{PATH}: seconds.epoch.{name} is missing")
    return search


def table_path(name: ModelName, rung: int | str) -> Path:
    """The table after a rung. Rung 0 is the design, and LONGER comes after the last one."""
    return TABLES / f"{name}-{rung}.csv"


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def design(space: Space, count: int, seed: int) -> list[Row]:
    """``count`` configurations, spread evenly over the values of each setting.

    A Latin hypercube (M. D. McKay, R. J. Beckman, W. J. Conover, Technometrics 21, 1979).
    """
    names = list(Space.model_fields)
    shares = qmc.LatinHypercube(len(names), rng=np.random.default_rng(seed)).random(count)
    rows = []
    for trial, point in enumerate(shares.tolist()):
        row: Row = {"trial": trial}
        for setting, share in zip(names, point, strict=True):
            values = getattr(space, setting)
            if isinstance(values, OfOptimizer):
                values = getattr(values, row["optimizer"])
            is_range = isinstance(values, Range)
            row[setting] = values.at(share) if is_range else values[int(share * len(values))]
        if row["distortion"] < LEAST_DISTORTION:
            row["distortion"] = 0.0
        if not row["teachers"]:
            row |= dict.fromkeys(("teacher_epochs", "teacher_weight", "temperature"))
        rows.append(row)
    return rows


def incumbent(search: Search, name: ModelName, settings: Incumbent) -> Row:
    """The row of a configuration that is not drawn. Its number follows the last one drawn."""
    others = dict.fromkeys(Space.model_fields)
    return {"trial": search.rungs[name][0].trials} | others | {"teachers": 0} | dict(settings)


def longer(search: Search, name: ModelName) -> list[Row]:
    """The rows of the incumbent with changes, numbered after the incumbent."""
    settings = search.rungs[name][-1].incumbent
    assert settings  # by load()
    first = incumbent(search, name, settings)
    return [
        first | changes.model_dump(exclude_none=True) | {"trial": first["trial"] + number}
        for number, changes in enumerate(search.longer[name], start=1)
    ]


def recipe(search: Search, row: Mapping[str, Any], epochs: int) -> Recipe:
    """The recipe of a configuration."""
    fixed: dict[str, Any] = {"momentum": 0.9, "dropout": 0.0, "softmax_before_loss": False}
    distillation = None
    if row["teachers"]:
        of_teacher = PlainRecipe(
            epochs=row["teacher_epochs"],
            schedule="one_cycle",
            augmentation=search.distortions,
            **dict(search.teacher),
            **fixed,
        )
        distillation = Distillation(
            teachers=row["teachers"],
            recipe=of_teacher,
            temperature=row["temperature"],
            weight=row["teacher_weight"],
        )
    return Recipe(
        epochs=epochs,
        batch_size=row["batch_size"],
        optimizer=row["optimizer"],
        learning_rate=row["learning_rate"],
        schedule=row["schedule"],
        weight_decay=row["weight_decay"],
        augmentation=distorted(search.distortions, row["distortion"]),
        averaging=row["averaging"],
        distillation=distillation,
        **fixed,
    )


def distorted(full: Augmentation, strength: float) -> Augmentation | None:
    """``full`` times ``strength``."""
    if not strength:
        return None
    return Augmentation(**{name: rounded(value * strength) for name, value in full})


# --- tables ---


def read_table(name: ModelName, rung: int | str) -> list[Row]:
    """The rows of a table, the best first.

    Raises:
        StageError: It is missing.
    """
    path = table_path(name, rung)
    if not path.is_file():
        raise StageError(f"{path} is missing: `dvc repro` in {FOLDER} writes it")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    return [{key: _value(text) for key, text in row.items()} for row in rows]


def _value(text: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


@main_function
def main() -> None:
    name, search = params.model_name(sys.argv[1:]), load()
    with running(f"design@{name}"):
        rows = design(search.space, search.rungs[name][0].trials, search.seed)
        files.write_rows(table_path(name, 0), rows)


if __name__ == "__main__":
    main()
