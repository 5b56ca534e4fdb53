"""Stages cell, ablation and validation: train one model with one recipe and one seed.

    python -m study.cell RECIPE MODEL SEED          trained on all training images
    python -m study.cell RECIPE MODEL validation    trained without the validation images

The trained network is scored once on the test images. With `validation`, a temperature is fitted on
the validation images first. A cell is a file of a few kilobytes, which git tracks. It holds the
SHA-256 of the weights instead of the weights, which the same command computes again.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from scipy.optimize import minimize_scalar

from dvc_kit import strict
from dvc_kit.commands import shown
from dvc_kit.errors import InputError, StageError, main_function
from dvc_kit.files import md5
from stages import scoring
from stages.arithmetic import functions, losses, numerics
from stages.base import files, params, splits
from stages.base.params import SEEDS, Device, ModelName, Params
from stages.base.splits import Split
from stages.base.stage import running
from stages.learn.resume import Training
from stages.learn.training import Row
from stages.networks import models
from stages.networks.models import Answers
from study import settings
from study.settings import VALIDATION

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]  # (N,)


def check_inputs() -> None:
    """Check the prepared images and study/bits.json. They must be those of the last `dvc repro`.

    With `dvc repro --single-item` or without DVC, a training would take them as they are.

    Raises:
        StageError: An out is missing or was changed, or a setting of its stage was.
    """
    locked = _check_outs(Path(), "prepare")
    content = strict.read(params.PATH)
    for key, value in locked["params"][params.PATH.as_posix()].items():
        if content.get(key) != value:
            cure = shown(["dvc", "repro", "prepare"])
            raise StageError(f"{params.PATH}: {key} was changed since `prepare` ran: `{cure}`")
    _check_outs(settings.FOLDER, "bits")
    version = json.loads(settings.BITS.read_text(encoding="utf-8")).get("format")
    if version != settings.BITS_FORMAT:
        cure = shown(["dvc", "repro", "bits"], folder=settings.FOLDER)
        raise StageError(
            f"{settings.BITS} has format {version}, expected {settings.BITS_FORMAT}: `{cure}`"
        )


def _check_outs(project: Path, stage: str) -> dict[str, Any]:
    """What dvc.lock has of a stage, whose outs are the ones that it names."""
    path, cure = project / "dvc.lock", shown(["dvc", "repro", stage], folder=project)
    try:
        lock = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        locked: dict[str, Any] = lock["stages"][stage]
    except (OSError, YAMLError, KeyError, TypeError):
        raise StageError(f"{path} does not have the stage {stage}: `{cure}`") from None
    for entry in locked["outs"]:
        out = project / entry["path"]
        if not out.exists() or md5(out) != entry["md5"]:
            what = "was changed since" if out.exists() else "is gone since"
            raise StageError(f"{out} {what} the stage {stage} wrote it: `{cure}`")
    return locked


def parse(arguments: list[str], known: Params) -> tuple[str, ModelName, str]:
    """The recipe, the model, and the seed or `validation`.

    Raises:
        InputError: There is no such recipe, model or seed.
    """
    if len(arguments) != 3:
        raise InputError(f"usage: python -m study.cell RECIPE MODEL SEED|{VALIDATION}")
    recipe, name, seed = arguments
    if recipe not in known.recipes:
        raise InputError(f"recipe is {recipe}, expected one of: {', '.join(known.recipes)}")
    if seed != VALIDATION and not (seed.isascii() and seed.isdecimal() and int(seed) < SEEDS):
        raise InputError(f"seed is {seed}, expected a number from 0 to {SEEDS - 1}")
    return recipe, params.model_name([name]), seed


def divided(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """The images that stay, and ``size`` images that are held out."""
    stay, drawn = splits.hold_out(train.labels, size, seed)
    rest = Split(train.images[stay], train.labels[stay])
    return rest, Split(train.images[drawn], train.labels[drawn])


# --- scores ---

# By stages.networks, because the exp and log of NumPy and SciPy differ between processors. A
# small difference could lead the search for the temperature to another result


def logarithms(probabilities: Floats) -> Floats:
    """The logarithms. They are finite, also for a probability that is zero in float64."""
    above_0 = np.maximum(probabilities, np.finfo(np.float64).tiny)
    result: Floats = functions.log(torch.from_numpy(above_0)).numpy()
    return result


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """The mean over images, in nats. It does not depend on the loss of the training."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return -math.fsum(logarithms(of_label)) / len(labels)


def calibration_error(probabilities: Floats, labels: Labels) -> float:
    correct = probabilities.argmax(1) == labels
    return scoring.calibration_error(scoring.calibration(probabilities.max(1), correct))


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities after the logits are divided by a temperature."""
    logits = torch.from_numpy(logarithms(probabilities) / temperature)
    result: Floats = losses.probabilities(logits).numpy()
    return result


def fitted_temperature(probabilities: Floats, labels: Labels) -> float:
    """The temperature with the least negative log likelihood on these images
    (C. Guo et al., "On calibration of modern neural networks", ICML 2017)."""
    logits = torch.from_numpy(logarithms(probabilities))
    chosen = torch.from_numpy(labels).long()

    def loss(factor: float) -> float:
        return losses.cross_entropy(logits * factor, chosen).item()

    # SciPy's bounded search only adds, multiplies, divides and takes square roots of floats
    found = minimize_scalar(loss, bounds=(0.02, 50.0), method="bounded", options={"xatol": 1e-7})
    return 1 / float(found.x)


def score(
    network: models.Network, test: Split, validation: Split | None, device: Device
) -> tuple[Answers, dict[str, Any]]:
    """The answers for the test images, and all scores by name."""
    of_test = models.answers(network, test, device)
    of_validation = models.answers(network, validation, device) if validation else None
    return of_test, scores_of(of_test, of_validation)


def scores_of(of_test: Answers, of_validation: Answers | None) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    if of_validation:
        temperature = fitted_temperature(of_validation.probabilities, of_validation.labels)
        after = scaled(of_test.probabilities, temperature)
        scores = split_scores("validation", of_validation) | {"temperature": temperature}
        scores |= confidence_scores("test_scaled", after, of_test.labels)
    return scores | split_scores("test", of_test)


def split_scores(split: str, answers: Answers) -> dict[str, Any]:
    return {
        f"{split}_images": len(answers.labels),
        f"{split}_accuracy": float(answers.correct.mean()),
        f"{split}_loss": answers.loss,
    } | confidence_scores(split, answers.probabilities, answers.labels)


def confidence_scores(name: str, probabilities: Floats, labels: Labels) -> dict[str, float]:
    likelihood = negative_log_likelihood(probabilities, labels)
    error = calibration_error(probabilities, labels)
    return {f"{name}_negative_log_likelihood": likelihood, f"{name}_calibration_error": error}


def content(
    scores: Mapping[str, Any], of_test: Answers, network: models.Network, history: Sequence[Row]
) -> dict[str, Any]:
    """A cell: two metrics, and tables by column. `dvc metrics show` does not show lists."""
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
    known, study = params.load(), settings.load()
    recipe_name, name, seed = parse(sys.argv[1:], known)
    recipe = params.of_recipe(known.recipes, recipe_name, name)
    path = settings.cell_path(recipe_name, name, seed)
    kind = "ablation" if recipe_name in study.ablations else "cell"
    stage = f"{kind}@{path.stem}"
    if seed == VALIDATION:
        stage = f"validation@{recipe_name}-{name}"
    with running(stage) as run:
        check_inputs()
        train, test = (splits.load_split(files.DATA_PREPARED, part) for part in ("train", "test"))
        validation = None
        if seed == VALIDATION:
            train, validation = divided(train, study.validation_size, known.seed)
        number = known.seed if validation else int(seed)
        generator = numerics.configure(known.threads, number, known.device)
        training = Training(stage, name, {"train": train}, recipe, known.device, generator)
        for row in training.epochs():
            run.log_epoch(row)
        network, history = training.state.result, training.state.history
        of_test, scores = score(network, test, validation, known.device)
        files.write_json(path, content(scores, of_test, network, history))
        training.finish()
        print(f"{path.stem}: test accuracy {scores['test_accuracy']:.2%}")


if __name__ == "__main__":
    main()
