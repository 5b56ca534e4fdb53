"""Stages cell, ablation and validation of study/dvc.yaml: one recipe, one model, one seed.

    python -m stages.cell RECIPE MODEL SEED          trained on all training images
    python -m stages.cell RECIPE MODEL validation    trained without the validation images

Both score their network once on the test images, when it is trained; the second fits a temperature
on the validation images before. A cell is a file of a few kilobytes, which git keeps: the SHA-256
of the weights stand for the weights, which the same command computes again.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import alone, calibration, files, mnist, models, numerics, params, tracking
from stages.calibration import Floats, Labels
from stages.errors import InputError, StageError, main_function
from stages.files import VALIDATION
from stages.models import Answers
from stages.params import SEEDS, Device, ModelName, Params
from stages.train import fit, model_name
from stages.training import Row


def check_prepared() -> None:
    """DVC does not see from the study's project that `prepare` has to run again.

    Raises:
        StageError: Its out, or something that it was made from, is not the one in dvc.lock.
    """
    cure = "run `dvc repro prepare` in the main folder first"
    try:
        lock = YAML(typ="safe").load(Path("dvc.lock").read_text(encoding="utf-8"))
        locked = lock["stages"]["prepare"]
    except (OSError, YAMLError, KeyError, TypeError):
        raise StageError(f"dvc.lock does not have the stage prepare: {cure}") from None
    for entry in (*locked["outs"], *locked["deps"]):
        path = Path(entry["path"])
        if not path.exists() or files.md5(path) != entry["md5"]:
            raise StageError(f"{path} is not the one that `prepare` last ran with: {cure}")
    settings = params.read()
    for key, value in locked["params"][params.PATH.as_posix()].items():
        if settings.get(key) != value:
            raise StageError(f"{params.PATH}: {key} was changed since `prepare` ran: {cure}")


def parse(arguments: list[str], settings: Params) -> tuple[str, ModelName, str]:
    """Recipe, model, and the seed or `validation`.

    Raises:
        InputError: They are not what params.yaml has.
    """
    if len(arguments) != 3:
        raise InputError(f"usage: python -m stages.cell RECIPE MODEL SEED|{VALIDATION}")
    recipe, name, seed = arguments
    if recipe not in settings.recipes:
        raise InputError(f"recipe is {recipe}, expected one of: {', '.join(settings.recipes)}")
    if seed != VALIDATION and not (seed.isascii() and seed.isdecimal() and int(seed) < SEEDS):
        raise InputError(f"seed is {seed}, expected a number from 0 to {SEEDS - 1}")
    return recipe, model_name([name]), seed


def score(
    network: models.Network, test: mnist.Split, validation: mnist.Split | None, device: Device
) -> tuple[Answers, dict[str, Any]]:
    """The answers on the test images, and all scores."""
    scores: dict[str, Any] = {}
    of_test = models.answers(network, test, device)
    if validation:
        found = models.answers(network, validation, device)
        temperature = calibration.fitted_temperature(found.probabilities, found.labels)
        scaled = calibration.scaled(of_test.probabilities, temperature)
        scores = split_scores("validation", found) | {"temperature": temperature}
        scores |= confidence_scores("test_scaled", scaled, of_test.labels)
    return of_test, scores | split_scores("test", of_test)


def split_scores(split: str, answers: Answers) -> dict[str, Any]:
    return {
        f"{split}_images": len(answers.labels),
        f"{split}_accuracy": float(answers.correct.mean()),
        f"{split}_loss": answers.loss,
    } | confidence_scores(split, answers.probabilities, answers.labels)


def confidence_scores(name: str, probabilities: Floats, labels: Labels) -> dict[str, float]:
    likelihood = calibration.negative_log_likelihood(probabilities, labels)
    error = calibration.calibration_error(probabilities, labels)
    return {f"{name}_negative_log_likelihood": likelihood, f"{name}_calibration_error": error}


def content(
    scores: Mapping[str, Any], of_test: Answers, network: models.Network, history: Sequence[Row]
) -> dict[str, Any]:
    """A cell: two metrics, and tables by column. `dvc metrics show` leaves lists out."""
    wrong = np.flatnonzero(~of_test.correct)
    errors = {
        "index": wrong.tolist(),
        "label": of_test.labels[wrong].tolist(),
        "predicted": of_test.predicted[wrong].tolist(),
    }
    sha256 = {"weights": models.fingerprint(network), "outputs": of_test.outputs_sha256}
    return {
        "test_accuracy": scores["test_accuracy"],
        "test_loss": scores["test_loss"],
        "scores": {name: [value] for name, value in scores.items()},
        "errors": errors,
        "history": {name: [row[name] for row in history] for name in history[0]},
        "sha256": files.fingerprint_lines(sha256.items()),
    }


@main_function
def main() -> None:
    settings = params.load()
    recipe_name, name, seed = parse(sys.argv[1:], settings)
    recipe = getattr(settings.recipes[recipe_name], name)
    path = files.cell_path(recipe_name, name, seed)
    kind = "ablation" if recipe_name in settings.study.ablations else "cell"
    stage = f"{kind}@{path.stem}"
    if seed == VALIDATION:
        stage = f"validation@{recipe_name}-{name}"
    with alone.holding(stage), tracking.run(stage) as run:
        check_prepared()
        train, test = (mnist.load_split(files.DATA_PREPARED, part) for part in ("train", "test"))
        validation = None
        if seed == VALIDATION:
            size = settings.study.validation_size
            stay, drawn = mnist.hold_out(train.labels, size, settings.seed)
            validation = mnist.Split(train.images[drawn], train.labels[drawn])
            train = mnist.Split(train.images[stay], train.labels[stay])
        number = settings.seed if validation else int(seed)
        generator = numerics.configure(settings.threads, number, settings.device)
        with fit(stage, name, {"train": train}, recipe, settings.device, generator, run) as state:
            of_test, scores = score(state.network, test, validation, settings.device)
            files.write_json(path, content(scores, of_test, state.network, state.history))
        print(f"{path.stem}: test accuracy {scores['test_accuracy']:.2%}")


if __name__ == "__main__":
    main()
