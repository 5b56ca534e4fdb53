"""Stages cell, ablation and validation of study/dvc.yaml: one recipe, one model, one seed.

    python -m stages.cell RECIPE MODEL SEED          trained on all training images
    python -m stages.cell RECIPE MODEL validation    trained without the validation images

Both score their network once on the test images, when it is trained; the second fits a temperature
on the validation images before. A cell is a few kilobytes of text, which git keeps: the SHA-256 of
the weights stand for the weights, which the same command computes again.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from stages import calibration, files, mnist, models, numerics, params, scoring, tracking
from stages.calibration import Floats, Labels
from stages.errors import InputError, main_function
from stages.files import VALIDATION
from stages.params import SEEDS, Device, ModelName, Params
from stages.train import fit, model_name


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


@dataclass(frozen=True)
class Answers:
    """What a network says of a split."""

    outputs_sha256: str  # of the outputs (N, 10) as float32, row by row
    loss: float  # the one it was trained with
    probabilities: Floats  # (N, 10)
    labels: Labels  # (N,)

    def scores(self, split: str) -> dict[str, Any]:
        predicted = self.probabilities.argmax(1)
        return {
            f"{split}_images": len(self.labels),
            f"{split}_accuracy": float((predicted == self.labels).mean()),
            f"{split}_loss": self.loss,
        } | confidence(split, self.probabilities, self.labels)


def answers(network: models.Network, split: mnist.Split, device: Device) -> Answers:
    examples = models.examples(split, device)
    outputs = models.outputs(network, examples.images)
    values = outputs.cpu().numpy()
    return Answers(
        outputs_sha256=files.sha256(values.tobytes()),
        loss=scoring.loss(outputs, examples.labels),
        probabilities=as_probabilities(values.astype(np.float64), network.softmax_before_loss),
        labels=split.labels,
    )


def as_probabilities(outputs: Floats, softmax_before_loss: bool) -> Floats:
    result: Floats = outputs if softmax_before_loss else softmax(outputs, axis=1)
    return result


def confidence(name: str, probabilities: Floats, labels: Labels) -> dict[str, float]:
    return {
        f"{name}_negative_log_likelihood": calibration.negative_log_likelihood(
            probabilities, labels
        ),
        f"{name}_calibration_error": calibration.calibration_error(probabilities, labels),
    }


def error_rows(found: Answers) -> list[list[int]]:
    """Index, label and predicted class of each image that the network gets wrong."""
    predicted = found.probabilities.argmax(1)
    return [
        [index, int(found.labels[index]), int(predicted[index])]
        for index in np.flatnonzero(predicted != found.labels).tolist()
    ]


@main_function
def main() -> None:
    settings = params.load()
    recipe_name, name, seed = parse(sys.argv[1:], settings)
    recipe = getattr(settings.recipes[recipe_name], name)
    folder = files.cell_path(recipe_name, name, seed)
    is_twin = seed == VALIDATION
    kind = "ablation" if recipe_name in settings.study.ablations else "cell"
    stage = f"validation@{recipe_name}-{name}" if is_twin else f"{kind}@{folder.name}"
    with tracking.run(stage) as run:
        train, test = (mnist.load_split(files.DATA_PREPARED, part) for part in ("train", "test"))
        if is_twin:
            size = settings.study.validation_size
            stay, drawn = mnist.hold_out(train.labels, size, settings.seed)
            validation = mnist.Split(train.images[drawn], train.labels[drawn])
            train = mnist.Split(train.images[stay], train.labels[stay])
        number = settings.seed if is_twin else int(seed)
        generator = numerics.configure(settings.threads, number, settings.device)
        network, history, _ = fit(name, {"train": train}, recipe, settings.device, generator, run)
        scores: dict[str, Any] = {}
        if is_twin:
            of_validation = answers(network, validation, settings.device)
            temperature = calibration.fitted_temperature(
                of_validation.probabilities, of_validation.labels
            )
            scores = of_validation.scores("validation") | {"temperature": temperature}
        of_test = answers(network, test, settings.device)
        scores |= of_test.scores("test")
        if is_twin:
            scaled = calibration.scaled(of_test.probabilities, temperature)
            scores |= confidence("test_scaled", scaled, of_test.labels)
        scores |= {
            "weights_sha256": models.fingerprint(network),
            "outputs_sha256": of_test.outputs_sha256,
        }
        files.write_csv(
            folder / "history.csv", list(history[0]), (list(row.values()) for row in history)
        )
        header = ["index", "label", "predicted"]
        files.write_csv(folder / "errors.csv", header, error_rows(of_test))
        files.write_json(folder / "scores.json", scores)
        print(f"{folder.name}: test accuracy {scores['test_accuracy']:.2%}")


if __name__ == "__main__":
    main()
