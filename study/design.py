"""Stage design: the settings of the search, and the configurations that it tries.

python -m study.design MODEL     draw the configurations of a model, and write them as a table
"""

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from scipy.stats import qmc

from dvc_kit import strict
from dvc_kit.errors import InputError, main_function
from dvc_kit.strict import Section
from stages.base import files, params
from stages.base.params import (
    CLASSES,
    LARGEST_BATCH,
    TRAIN_SIZE,
    Augmentation,
    ModelName,
    Recipe,
    Seed,
)
from stages.base.stage import running
from study.settings import FOLDER
from study.tables import DRAWN, Row, table_path

PATH = FOLDER / "search.yaml"
LEAST_DISTORTION = 0.2  # a smaller strength stands for no distortion
DIGITS = 3  # significant ones, of a value that is drawn from a range

Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=1, le=10_000)]  # in epochs, as in a recipe
Batch = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Teachers = Annotated[int, Field(ge=0, le=16)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Averaging = Annotated[float, Field(ge=0, lt=1)]
Number = TypeVar("Number", bound=float)


class Range(Section, Generic[Number]):
    low: Number
    high: Number
    logarithmic: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> "Range[Number]":
        if self.low > self.high or (self.logarithmic and self.low <= 0):
            raise PydanticCustomError("order", "low <= high, and low > 0 if it is logarithmic")
        return self

    def at(self, share: float) -> float:
        """The value at a share of the range, from 0 to 1."""
        if self.logarithmic:
            return rounded(self.low * (self.high / self.low) ** share)
        return rounded(self.low + (self.high - self.low) * share)


class OfOptimizer(Section, Generic[Number]):
    adamw: Range[Number]
    sgd: Range[Number]


class Space(Section):
    """The values of each setting."""

    optimizer: Annotated[list[Literal["adamw", "sgd"]], Field(min_length=1)]
    learning_rate: OfOptimizer[Positive]
    weight_decay: OfOptimizer[NotNegative]
    batch_size: Annotated[list[Batch], Field(min_length=1)]
    schedule: Annotated[list[Literal["one_cycle", "constant"]], Field(min_length=1)]
    distortion: Range[NotNegative]
    averaging: Annotated[list[Averaging], Field(min_length=1)]
    teachers: Annotated[list[Teachers], Field(min_length=1)]
    teacher_epochs: Annotated[list[Length], Field(min_length=1)]
    teacher_weight: Range[Share]
    temperature: Range[Positive]


class Updates(Section):
    """How the weights of a network are updated."""

    optimizer: Literal["adamw", "sgd"]
    learning_rate: Positive
    weight_decay: NotNegative
    batch_size: Batch


class Incumbent(Updates):
    """A configuration without teachers that is not drawn."""

    schedule: Literal["one_cycle", "constant"]
    distortion: NotNegative
    averaging: Averaging


class Rung(Section):
    """One rung: the best ``trials`` of the one before, and the incumbent, if there is one."""

    trials: Count
    epochs: Length
    incumbent: Incumbent | None = None


class Changes(Section):
    """The incumbent with changes: each setting that is not None."""

    epochs: Length
    learning_rate: Positive | None = None
    weight_decay: NotNegative | None = None
    distortion: NotNegative | None = None
    averaging: Averaging | None = None
    teachers: Teachers | None = None
    teacher_epochs: Length | None = None
    teacher_weight: Share | None = None
    temperature: Positive | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Changes":
        of_teachers = (self.teacher_epochs, self.teacher_weight, self.temperature)
        if any(((value is not None) != bool(self.teachers)) for value in of_teachers):
            raise PydanticCustomError(
                "teachers",
                "teachers with teacher_epochs, teacher_weight and temperature, or none of these",
            )
        return self


class Seconds(Section):
    """How long a training takes, on all training images."""

    limit: Positive  # of a training, its teachers included
    epoch: dict[str, Positive]  # of each model
    answers: Positive  # of a teacher, in an epoch


class Epochs(Section):
    """How long the recipes are trained that the search chooses, by model."""

    fast: dict[str, Length]
    record: dict[str, Length]


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

    def rungs_of(self, name: ModelName) -> list[str]:
        """The names of a model's rungs, from the first, without the longer trainings."""
        return [str(number) for number in range(1, len(self.rungs[name]) + 1)]


def load(needed: ModelName | None = None) -> Search:
    """Read study/search.yaml, which must have rungs of the model that is needed.

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
    if needed and needed not in search.rungs:
        raise InputError(f"{PATH}: rungs.{needed} is missing")
    for name in search.longer:
        if name not in search.rungs or not search.rungs[name][-1].incumbent:
            raise InputError(f"{PATH}: longer has {name}, and its last rung has no incumbent")
    for name in ("lenet5", *search.longer):  # teachers are LeNet-5
        if name not in search.seconds.epoch:
            raise InputError(f"{PATH}: seconds.epoch.{name} is missing")
    if 0 not in search.space.teachers:
        raise InputError(f"{PATH}: space.teachers has no 0, but the recipe `fast` has no teachers")
    check_distortions(search)
    return search


def check_distortions(search: Search) -> None:
    """Check that the distortions can be as strong as in any configuration."""
    rows: list[Any] = [rung.incumbent for rungs in search.rungs.values() for rung in rungs]
    rows += [changes for changed in search.longer.values() for changes in changed]
    most = max([search.space.distortion.high, *(row.distortion or 0.0 for row in rows if row)])
    found = {f"distortions times {most:g}": distorted(search.distortions, most)}
    strict.check(dict[str, Augmentation | None], PATH, found)


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
    fixed = {"momentum": 0.9, "dropout": 0.0, "softmax_before_loss": False}
    taught = {
        "teachers": row["teachers"],
        "temperature": row["temperature"],
        "weight": row["teacher_weight"],
        "recipe": {
            "epochs": row["teacher_epochs"],
            "schedule": "one_cycle",
            "augmentation": dict(search.distortions),
            **dict(search.teacher),
            **fixed,
        },
    }
    same = ("batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "averaging")
    settings = {
        **{name: row[name] for name in same},
        "epochs": epochs,
        "augmentation": distorted(search.distortions, row["distortion"]),
        "distillation": taught if row["teachers"] else None,
        **fixed,
    }
    return Recipe.model_validate(settings)


def distorted(full: Augmentation, strength: float) -> dict[str, float] | None:
    """``full`` times ``strength``."""
    return {name: rounded(value * strength) for name, value in full} if strength else None


@main_function
def main() -> None:
    name = params.model_name(sys.argv[1:])
    search = load(name)
    with running(f"design@{name}"):
        rows = design(search.space, search.rungs[name][0].trials, search.seed)
        files.write_rows(table_path(name, DRAWN), rows)


if __name__ == "__main__":
    main()
