"""Stage plot: the figures, the comparison and the page, from the results of the other stages."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dvc_mlflow
from dvc_mlflow.errors import InputError, main_function
from dvc_mlflow.files import write_text
from stages import scoring
from stages.base import files, params, splits
from stages.base.params import MODEL_NAMES, TITLES
from stages.show import figures, page
from stages.show.tables import table


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


def comparison_markdown(rows: Sequence[Mapping[str, str]], difference: Mapping[str, Any]) -> str:
    """The table of the models, and a sentence about their difference.

    Args:
        rows: The rows of reports/comparison.csv.
        difference: `paired_difference` of reports/evaluation.json.
    """
    lines = []
    for row in rows:
        interval = error = ""
        if row["accuracy_low"]:
            interval = f"{float(row['accuracy_low']):.2%} to {float(row['accuracy_high']):.2%}"
            error = f"{float(row['calibration_error']):.4f}"
        scores = [f"{float(row['accuracy']):.2%}", interval, f"{float(row['loss']):.4f}", error]
        lines.append([TITLES[row["model"]], row["source"], *scores, f"{int(row['parameters']):,}"])
    shown = table(
        "model | source | test accuracy | 95 % interval | test loss | calibration error "
        "| parameters",
        "llrcrrr",
        lines,
    )
    points = [100 * difference[key] for key in ("accuracy", "low", "high")]
    return (
        f"{shown}\n\nLeNet-5 minus MLP on the same images: {points[0]:+.2f} percentage points "
        f"(95 % interval {points[1]:+.2f} to {points[2]:+.2f}; "
        f"exact McNemar p = {difference['mcnemar_p']:.2g}). LeNet-5 alone is right on "
        f"{difference['only_first']} images, the MLP alone on {difference['only_second']}.\n"
    )


def comparison() -> tuple[str, str]:
    """The sentence that comes first on the page, and the Markdown."""
    with reading(files.COMPARISON, "evaluate"), files.COMPARISON.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with reading(files.EVALUATION, "evaluate"):
        found = json.loads(files.EVALUATION.read_text(encoding="utf-8"))["paired_difference"]
        difference = {key: value for key, [value] in found.items()}
    lenet5, mlp = (f"{float(row['accuracy']):.2%}" for row in rows[:2])
    finding = (
        f"With the {rows[0]['source']}, LeNet-5 is right on {lenet5} of the test images, "
        f"the MLP on {mlp}."
    )
    return finding, comparison_markdown(rows, difference)


@main_function
def main() -> None:
    settings = params.load()
    with dvc_mlflow.run("plot"):
        histories: dict[str, figures.History] = {
            name: read(files.history_path(name), f"train_{name}") for name in MODEL_NAMES
        }
        for name, history in histories.items():
            title = f"{TITLES[name]}, recipe {settings.recipe}"
            figure = figures.four_curves(name, history, title)
            figures.save(figure, files.FIGURES / f"curves_{name}.png")
        title = f"LeNet-5 and the MLP, recipe {settings.recipe}"
        figures.save(figures.curves(histories, title), files.FIGURES / "curves.png")

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
            figures.save(
                figures.mistakes(name, images, actual, predicted, confidence),
                files.FIGURES / f"mistakes_{name}.png",
            )
        figures.save(figures.confusion(matrices), files.FIGURES / "confusion.png")
        figures.save(figures.reliability(bins), files.FIGURES / "reliability.png")
        networks: dict[str, page.Trained] = {}
        for name in MODEL_NAMES:
            with reading(files.model_path(name), f"train_{name}"):
                weights = files.model_path(name).read_bytes()
            networks[name] = page.Trained(weights, settings.of_model(name).dropout)
        finding, compared = comparison()
        write_text(files.COMPARISON.with_suffix(".md"), compared)
        whole = page.report(
            finding, compared, histories, predictions, matrices, bins, images, networks
        )
        write_text(page.PATH, whole)


if __name__ == "__main__":
    main()
