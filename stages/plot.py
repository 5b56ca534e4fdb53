"""Stage plot: the figures and the page, from the results of the other stages."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dvc_kit.errors import InputError, main_function
from dvc_kit.files import write_text
from stages import scoring
from stages.base import files, params, splits
from stages.base.params import MODEL_NAMES, TITLES
from stages.base.stage import running
from stages.networks import MODELS
from stages.networks.model import listed
from stages.show import figures, page

NUMBERS = files.REPORTS / "plot.json"  # not among DVC's metrics: evaluate has shown the same


@contextmanager
def reading(path: Path, stage: str) -> Iterator[None]:
    """Say in one line why a result of ``stage`` cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): `dvc repro {stage}` makes it again"
        ) from None


def read(path: Path, stage: str) -> dict[str, list[float]]:
    with reading(path, stage):
        return files.read_csv(path)


def comparison() -> tuple[str, str, str]:
    """The first sentence of the page, its cards, and the Markdown that evaluate wrote."""
    with reading(files.COMPARISON, "evaluate"), files.COMPARISON.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        source = rows[0]["source"]
        ours = [row for row in rows if row["source"] == source]
        first, *others = (
            f"{MODELS[row['model']].spoken} {{}}on {100 * float(row['accuracy']):.2f}\u00a0%"
            for row in ours
        )
        cards = page.cards(ours)
    parts = [
        f"{first.format('is right ')} of the test images",
        *(text.format("") for text in others),
    ]
    finding = f"With the {source}, {', '.join(parts)}."
    readable = files.COMPARISON.with_suffix(".md")
    with reading(readable, "evaluate"):
        return finding, cards, readable.read_text(encoding="utf-8")


def numbers(
    histories: Mapping[str, figures.History],
    predictions: Mapping[str, page.Predictions],
    figure_count: int,
) -> dict[str, Any]:
    """What the figures and the page end with: the last loss of each curve (nats), the accuracy of
    each confusion matrix (a fraction), the number of test images that all models miss, and the
    number of figures."""
    right = {name: found["actual"] == found["predicted"] for name, found in predictions.items()}
    scores = {
        name: {"accuracy": float(right[name].mean()), "loss": history["test_loss"][-1]}
        for name, history in histories.items()
    }
    missed = int((~np.logical_or.reduce(list(right.values()))).sum())
    return {**scores, "missed_by_all": missed, "figures": figure_count}


@main_function
def main() -> None:
    settings = params.load()
    with running("plot"):
        histories: dict[str, figures.History] = {
            name: read(files.history_path(name), f"train_{name}") for name in MODEL_NAMES
        }
        drawn: dict[str, Figure] = {}
        for name, history in histories.items():
            title = f"{TITLES[name]}, recipe {settings.recipe}"
            drawn[f"curves_{name}"] = figures.four_curves(name, history, title)
        title = f"{listed([model.spoken for model in MODELS.values()])}, recipe {settings.recipe}"
        drawn["curves"] = figures.curves(histories, title)

        images = splits.load_split(files.DATA_PREPARED, "test").images
        predictions: dict[str, page.Predictions] = {}
        matrices: dict[str, NDArray[np.int64]] = {}
        bins: dict[str, list[scoring.CalibrationBin]] = {}
        for name in MODEL_NAMES:
            columns = read(files.predictions_path(name), "evaluate")
            actual = np.array(columns["actual"], np.int64)
            predicted = np.array(columns["predicted"], np.int64)
            confidence = np.array(columns["confidence"])
            predictions[name] = {"actual": actual, "predicted": predicted, "confidence": confidence}
            matrices[name] = np.zeros((params.CLASSES, params.CLASSES), np.int64)
            np.add.at(matrices[name], (actual, predicted), 1)
            bins[name] = scoring.calibration(confidence, actual == predicted)
            drawn[f"mistakes_{name}"] = figures.mistakes(
                name, images, actual, predicted, confidence
            )
        drawn["confusion"] = figures.confusion(matrices)
        drawn["reliability"] = figures.reliability(bins)
        for name, figure in drawn.items():
            figures.save(figure, files.FIGURES / f"{name}.png")
        networks: dict[str, page.Trained] = {}
        for name in MODEL_NAMES:
            with reading(files.model_path(name), f"train_{name}"):
                weights = files.model_path(name).read_bytes()
            networks[name] = page.Trained(weights, settings.of_model(name).dropout)
        whole = page.report(*comparison(), histories, predictions, matrices, bins, images, networks)
        write_text(page.PATH, whole)
        files.write_json(NUMBERS, numbers(histories, predictions, len(drawn)))


if __name__ == "__main__":
    main()
