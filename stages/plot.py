"""Stage plot: the figures, from what the other stages wrote."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages import alone, figures, files, mnist, params, scoring, tracking
from stages.errors import InputError, main_function
from stages.params import MODEL_NAMES
from stages.tables import TITLES


def read(path: Path, stage: str) -> dict[str, list[float]]:
    try:
        return files.read_csv(path)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): `dvc repro {stage}` makes it again"
        ) from None


@main_function
def main() -> None:
    settings = params.load()
    with alone.holding("plot"), tracking.run("plot"):
        histories: dict[str, figures.History] = {
            name: read(files.history_path(name), f"train_{name}") for name in MODEL_NAMES
        }
        for name, history in histories.items():
            title = f"{TITLES[name]}, recipe {settings.recipe}"
            figures.save(
                figures.curves({name: history}, title), files.FIGURES / f"curves_{name}.png"
            )
        title = f"LeNet-5 and the MLP, recipe {settings.recipe}"
        figures.save(figures.curves(histories, title), files.FIGURES / "curves.png")

        images = mnist.load_split(files.DATA_PREPARED, "test").images
        matrices: dict[str, NDArray[np.int64]] = {}
        bins: dict[str, list[scoring.CalibrationBin]] = {}
        for name in MODEL_NAMES:
            columns = read(files.predictions_path(name), "evaluate")
            actual = np.array(columns["actual"], np.int64)
            predicted = np.array(columns["predicted"], np.int64)
            confidence = np.array(columns["confidence"])
            matrices[name] = np.zeros((mnist.CLASSES, mnist.CLASSES), np.int64)
            np.add.at(matrices[name], (actual, predicted), 1)
            bins[name] = scoring.calibration(confidence, actual == predicted)
            figures.save(
                figures.mistakes(name, images, actual, predicted, confidence),
                files.FIGURES / f"mistakes_{name}.png",
            )
        figures.save(figures.confusion(matrices), files.FIGURES / "confusion.png")
        figures.save(figures.reliability(bins), files.FIGURES / "reliability.png")


if __name__ == "__main__":
    main()
