"""Compute one trial of the search: train a configuration, and score it on validation images.

python -m study.trial MODEL RUNG TRIAL             once more, as a table of study/search has it
python -m study.trial MODEL RUNG TRIAL SETTINGS    for the engine, see study/search.py
"""

import hashlib
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from dvc_guard import alone
from dvc_kit.errors import InputError, StageError, main_function
from dvc_kit.files import write_text
from dvc_kit.strict import Section
from stages.arithmetic import numerics
from stages.base import files, params, splits
from stages.base.params import Distillation, ModelName, Recipe, Seed
from stages.base.splits import Split
from stages.learn.resume import Training, teach
from stages.networks import models
from study import design, inspection
from study.cell import check_inputs, divided, fitted_temperature, negative_log_likelihood, scaled
from study.tables import LONGER, read_table, table_path

FOLDER = Path(".dvc", "tmp", "trials")


class Settings(Section):
    """What a trial is computed from. ``inputs`` stands for the images and the code."""

    recipe: Recipe
    seed: Seed
    validation_size: int
    inputs: str = ""


class Scores(Section):
    """The scores on the validation images, and the SHA-256 of the weights.

    The loss is the mean negative log likelihood in nats, with the temperature that makes it
    smallest. All are None if the training came to a loss that is not finite.
    """

    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    loss: Annotated[float, Field(ge=0)] | None = None
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Result(Section):
    """The file of a trial."""

    settings: Settings
    scores: Scores


def path_of(name: ModelName, rung: str, trial: int) -> Path:
    return FOLDER / f"{name}-{rung}-{trial}.json"


def teachers_of(settings: Distillation, train: Split, seed: int) -> list[models.Network]:
    """The teachers, which all trials with these settings share. Trained if need be."""
    digest = hashlib.sha256(repr(settings.recipe).encode()).hexdigest()[:8]
    return teach(f"search-{digest}", train, settings, "cpu", seed)


def compute(name: ModelName, trial: int, settings: Settings, path: Path | None = None) -> Scores:
    """Train a configuration on one thread, and score it.

    Args:
        path: Of the file to write.
    """
    every = splits.load_split(files.DATA_PREPARED, "train")
    train, validation = divided(every, settings.validation_size, settings.seed)
    generator = numerics.configure(1, settings.seed)
    training = Training(
        f"search-{name}-{trial}", name, {"train": train}, settings.recipe, "cpu", generator
    )
    if settings.recipe.distillation:
        teachers = teachers_of(settings.recipe.distillation, train, settings.seed)
        training.state.teachers = teachers
    scores = Scores()
    try:
        for _ in training.epochs():
            pass
    except StageError:
        pass  # the loss was not finite
    else:
        network = training.state.result
        answers = models.answers(network, validation)
        temperature = fitted_temperature(answers.probabilities, answers.labels)
        probabilities = scaled(answers.probabilities, temperature)
        scores = Scores(
            accuracy=float(answers.correct.mean()),
            loss=files.rounded(negative_log_likelihood(probabilities, answers.labels)),
            weights=models.fingerprint(network),
        )
    if path:
        write_text(path, Result(settings=settings, scores=scores).model_dump_json())
    training.checkpoint.remove()
    return scores


def compare(name: ModelName, rung: str, trial: int) -> str:
    """Compute a trial once more.

    Returns:
        A line that says that it comes to what its table has.

    Raises:
        InputError: The table does not have it.
        StageError: The table is missing, or the trial comes to something else.
    """
    search, path = design.load(name), table_path(name, rung)
    rows = {row["trial"]: row for row in read_table(name, rung)}
    if trial not in rows:
        raise InputError(f"trial is {trial}, expected one of {path}")
    recipe = design.recipe(search, rows[trial], rows[trial]["epochs"])
    settings = Settings(recipe=recipe, seed=search.seed, validation_size=search.validation_size)
    scores = files.rounded(dict(compute(name, trial, settings)))
    there = {key: rows[trial][key] for key in scores}
    if scores != there:
        raise StageError(f"trial {trial} comes to {scores}, and {path} has {there}")
    return f"trial {trial} comes to what {path} has: {scores}"


@main_function
def main() -> None:
    given = sys.argv[1:]
    usable = len(given) in (3, 4) and given[2].isdecimal()
    if not usable or not (given[1].isdecimal() or given[1] == LONGER):
        raise InputError("usage: python -m study.trial MODEL RUNG TRIAL [SETTINGS]")
    name, rung, trial = params.model_name(given[:1]), given[1], int(given[2])
    check_inputs()
    if not given[3:]:
        print(compare(name, rung, trial))
        return
    try:
        settings = Settings.model_validate_json(given[3])
    except ValidationError as error:
        raise InputError(f"SETTINGS cannot be used: {inspection.explained(error)}") from None
    with alone.holding(f"trial@{name}-{rung}-{trial}"):
        compute(name, trial, settings, path_of(name, rung, trial))


if __name__ == "__main__":
    main()
