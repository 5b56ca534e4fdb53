"""Stage rung: a search for recipes, on validation images only.

    python -m study.search MODEL RUNG     train the best of the table before, and write the next
    python -m study.search MODEL longer   train the incumbent with changes, after the last rung

Successive halving (K. Jamieson, A. Talwalkar, "Non-stochastic best arm identification and
hyperparameter optimization", AISTATS 2016): many configurations are trained shortly, the best of
them again for longer, and so on. All configurations are drawn before the first training, and a rung
begins when the one before has ended. So the tables do not depend on the number of workers.

How much distortion is best depends on the length of a training. So equally many configurations go
on from each quarter of the strengths of distortion, and only the last rung compares them all. There
the recipe that was found by hand joins them, so the tables also show whether the search beats it.

The trials are computed by the engine of the study, where ENGINE says. A finished one is kept until
its rung is written, so an interrupted rung loses only the trials that were running, and of those
the last epoch.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dvc_kit.errors import InputError, StageError, main_function
from dvc_kit.files import md5, write_bytes, writing
from stages.base import files, params
from stages.base.params import ModelName
from stages.base.stage import running
from study import design, engine, inspection, settings
from study.cell import check_inputs
from study.design import Search, Space
from study.orders import Order
from study.ranking import ranked, survivors
from study.tables import LONGER, Row, read_table, table_path
from study.trial import Result, Scores, Settings, path_of

# What a trial depends on, besides its settings
INPUTS = (files.DATA_PREPARED, settings.BITS)


# --- trials ---


@dataclass(frozen=True)
class Trial:
    """A trial of a rung, as a task for the engine."""

    name: ModelName
    rung: str
    number: int
    settings: Settings

    @property
    def epochs(self) -> int:
        return self.settings.recipe.epochs

    @property
    def path(self) -> Path:
        return path_of(self.name, self.rung, self.number)

    @property
    def order(self) -> Order:
        return Order(
            f"trial@{self.name}-{self.rung}-{self.number}",
            "study.trial",
            (self.name, self.rung, str(self.number)),
            self.path.as_posix(),
            self.settings.model_dump_json(),
        )

    @property
    def here(self) -> bool:
        return self.path.is_file() and not self.mistake(self.path.read_bytes())

    @property
    def scores(self) -> Scores:
        return Result.model_validate_json(self.path.read_bytes()).scores

    def mistake(self, content: bytes) -> str:
        try:
            result = Result.model_validate_json(content)
        except ValidationError as error:
            return inspection.explained(error)
        if len({score is None for score in dict(result.scores).values()}) > 1:
            return "some of its scores are missing"
        return "" if result.settings == self.settings else "it has other settings"

    def check(self) -> None:
        if inputs() != self.settings.inputs:
            raise StageError(
                "the code or the prepared images were changed while trials were computed: "
                "`make search` computes those again that depend on them"
            )

    def keep(self, content: bytes) -> None:
        write_bytes(self.path, content)

    def forget(self) -> None:
        with writing(self.path):
            self.path.unlink(missing_ok=True)


def inputs() -> str:
    """SHA-256 of what all trials depend on."""
    found = [md5(path) if path.exists() else "" for path in INPUTS]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def configurations(search: Search, name: ModelName, rung: str) -> list[Row]:
    """The best of the table before and the incumbent if there is one, or the longer trainings."""
    if rung == LONGER:
        return design.longer(search, name)
    number = int(rung)
    settings = search.rungs[name][number - 1]
    chosen = survivors(read_table(name, str(number - 1)), settings.trials)
    if settings.incumbent:
        chosen.append(design.incumbent(search, name, settings.incumbent))
    return [row | {"epochs": settings.epochs} for row in chosen]


def train(search: Search, name: ModelName, rung: str) -> list[Row]:
    """Train the configurations of a rung.

    Returns:
        Their rows, the best first.

    Raises:
        StageError: A trial could not be computed.
    """
    chosen, same, trials = configurations(search, name, rung), inputs(), []
    for row in chosen:
        recipe = design.recipe(search, row, row["epochs"])
        size = search.validation_size
        settings = Settings(recipe=recipe, seed=search.seed, validation_size=size, inputs=same)
        trials.append(Trial(name, rung, row["trial"], settings))
    # The longest first, so that no worker is left alone with a long one
    in_order = sorted(trials, key=lambda trial: not trial.settings.recipe.distillation)
    faults = engine.compute(in_order, f"missing trials of {stage_of(name, rung)}")
    if left := sum(not trial.here for trial in trials):
        raise StageError(f"{left} trials are missing, the others are kept. {'. '.join(faults)}")
    keys = ("trial", *Space.model_fields, "epochs")
    rows = [
        {key: row[key] for key in keys} | dict(trial.scores)
        for row, trial in zip(chosen, trials, strict=True)
    ]
    return ranked(rows)


def stage_of(name: ModelName, rung: str) -> str:
    """The DVC stage of a rung, see study/dvc.yaml."""
    return f"{LONGER}@{name}" if rung == LONGER else f"rung@{name}-{rung}"


@main_function
def main() -> None:
    if len(sys.argv) != 3:
        raise InputError("usage: python -m study.search MODEL RUNG")
    name, rung = params.model_name(sys.argv[1:2]), sys.argv[2]
    search = design.load(name)
    names = [*search.rungs_of(name), *([LONGER] if name in search.longer else [])]
    if rung not in names:
        raise InputError(f"rung is {rung}, expected one of: {', '.join(names)}")
    with running(stage_of(name, rung)):
        check_inputs()
        rows = train(search, name, rung)
        files.write_rows(table_path(name, rung), rows)
        for row in rows:
            path_of(name, rung, row["trial"]).unlink(missing_ok=True)
        print(f"{name}: the best of {len(rows)} is trial {rows[0]['trial']}")


if __name__ == "__main__":
    main()
