"""The figures, with matplotlib's Agg canvas: the same data gives the same PNG bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dvc_mlflow.files import write_bytes
from stages.base.params import TITLES
from stages.scoring import CalibrationBin

History = Mapping[str, Sequence[float]]

# The palette of Okabe and Ito, which colour-blind people can tell apart. Dashes are a second cue
COLORS = {"lenet5": "#0072B2", "mlp": "#D55E00"}
DASHES = {"lenet5": "-", "mlp": (0, (5, 2))}
MARKERS = {"lenet5": "o", "mlp": "s"}
SPLIT_TITLES = {"train": "train (mean over the epoch)", "validation": "validation", "test": "test"}
AXIS_LABELS = {"loss": "cross-entropy loss (nats)", "accuracy": "accuracy (%)"}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "savefig.dpi": 100,
}
MISTAKES_SHOWN = 15
MISSED_SHOWN = 48
# In per cent: LeNet-5 trained on distorted images, from the paper that models.py names. Its pooling
# and its output layer are not the same as here
LECUN_ERROR = 0.8


def save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _draw_curve(axes: Axes, history: History, split: str, metric: str, model: str) -> None:
    scale = 100 if metric == "accuracy" else 1
    values = [scale * value for value in history[f"{split}_{metric}"]]
    axes.plot(
        history["epoch"],
        values,
        color=COLORS[model],
        linestyle=DASHES[model],
        marker=MARKERS[model],
        markersize=4,
        label=TITLES[model],
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel(AXIS_LABELS[metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def curves(histories: Mapping[str, History], title: str) -> Figure:
    """Four panels: loss and accuracy on train and test, with one line per model."""
    with rc_context(STYLE):
        figure = _figure(10, 7)
        panels = figure.subplots(2, 2)
        for row, split in enumerate(("train", "test")):
            for column, metric in enumerate(("loss", "accuracy")):
                axes = panels[row][column]
                for model, history in histories.items():
                    _draw_curve(axes, history, split, metric, model)
                axes.set_title(f"{SPLIT_TITLES[split]}: {metric}", fontsize=11)
        if len(histories) > 1:
            panels[0][0].legend(frameon=False)
        figure.suptitle(title)
    return figure


def confusion(matrices: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Confusion matrices side by side. The shade is the share of a mistake in its row."""
    with rc_context(STYLE | {"axes.grid": False}):
        figure = _figure(12, 7)
        wrong = {model: matrix * (1 - np.eye(len(matrix))) for model, matrix in matrices.items()}
        shades = {
            model: wrong[model] / np.maximum(1, matrices[model].sum(1, keepdims=True))
            for model in matrices
        }
        darkest = max(0.01, *(float(shade.max()) for shade in shades.values()))
        for axes, (model, matrix) in zip(
            figure.subplots(1, len(matrices)), matrices.items(), strict=True
        ):
            axes.imshow(shades[model], cmap="Oranges", vmin=0, vmax=darkest)
            for (actual, predicted), count in np.ndenumerate(matrix):
                if count:
                    dark = shades[model][actual, predicted] > 0.6 * darkest
                    axes.text(
                        predicted,
                        actual,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="white" if dark else "black",
                        fontweight="bold" if actual == predicted else "normal",
                    )
            axes.set_xticks(range(len(matrix)))
            axes.set_yticks(range(len(matrix)))
            axes.set_xlabel("predicted digit")
            axes.set_ylabel("actual digit")
            mistaken = int(wrong[model].sum())
            axes.set_title(f"{TITLES[model]}: {mistaken} mistakes in {matrix.sum():,}")
        figure.suptitle("Confusion on the test images (shade: share of the digit's images)")
    return figure


def mistakes(
    model: str,
    images: NDArray[np.uint8],
    actual: NDArray[np.int64],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
) -> Figure:
    """The mistakes with the highest confidence, in descending order.

    Args:
        images: All test images (N, H, W). The other arrays have N elements, in the same order.
    """
    wrong = np.flatnonzero(actual != predicted)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES_SHOWN]
    with rc_context(STYLE | {"axes.grid": False}):
        figure = _figure(9, 6.4)
        panels = figure.subplots(3, MISTAKES_SHOWN // 3).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, index in zip(panels, shown, strict=False):  # a good model may have fewer
            axes.imshow(255 - images[index], cmap="gray", vmin=0, vmax=255)
            axes.set_title(
                f"{actual[index]} taken for {predicted[index]}\n{confidence[index]:.2%} sure",
                fontsize=10,
            )
            axes.text(
                0.5,
                -0.02,
                f"no. {index}",
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=8,
                color="#555555",
            )
        figure.suptitle(
            f"{TITLES[model]}: the most confident of its {len(wrong)} mistakes (test images)"
        )
    return figure


def reliability(bins: Mapping[str, Sequence[CalibrationBin]]) -> Figure:
    """Accuracy against confidence, and the number of images behind each point."""
    with rc_context(STYLE):
        figure = _figure(7, 7)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 100], [0, 100], color="#888888", linewidth=1, label="perfectly calibrated")
        for model, parts in bins.items():
            confidence = [100 * part.confidence for part in parts]
            style: dict[str, Any] = {
                "color": COLORS[model],
                "linestyle": DASHES[model],
                "marker": MARKERS[model],
                "markersize": 5,
            }
            upper.plot(
                confidence, [100 * part.accuracy for part in parts], label=TITLES[model], **style
            )
            lower.plot(confidence, [part.count for part in parts], **style)
        upper.set_ylabel("accuracy (%)")
        upper.legend(frameon=False)
        lower.set_yscale("log")
        lower.set_ylabel("images")
        lower.set_xlabel("confidence of the predicted digit (%)")
        figure.suptitle("Reliability on the test images")
    return figure


def story(
    accuracies: Mapping[tuple[str, str], Sequence[float]],
    intervals: Mapping[tuple[str, str], tuple[float, float] | None],
    published: Mapping[str, float],
) -> Figure:
    """Test error of every recipe, model and seed, on a logarithmic scale.

    Args:
        accuracies: In per cent, one per seed, by recipe and model.
        intervals: Of the mean accuracy, in per cent.
        published: Accuracy of the published experiment by model, shown at the recipe `published`.
    """
    recipes = list(dict.fromkeys(recipe for recipe, _ in accuracies))
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = _figure(10, 2.2 + 0.62 * len(recipes))
        axes = figure.subplots()
        for (recipe, model), values in accuracies.items():
            height = len(recipes) - recipes.index(recipe) + (0.16 if model == "lenet5" else -0.16)
            errors, mean = [100 - value for value in values], 100 - math.fsum(values) / len(values)
            style: dict[str, Any] = {"color": COLORS[model], "marker": MARKERS[model]}
            label = TITLES[model] if recipe == recipes[0] else None
            axes.plot(
                errors, [height] * len(errors), linestyle="", alpha=0.45, label=label, **style
            )
            axes.plot([mean, mean], [height - 0.13, height + 0.13], color="black", linewidth=1.6)
            if (found := intervals[recipe, model]) is not None:
                low, high = found
                axes.plot([100 - high, 100 - low], [height, height], color="black", linewidth=1)
            axes.annotate(
                f"{100 - mean:.2f}",
                (min(errors), height),
                (-9, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9,
                color=COLORS[model],
                bbox={"color": "white", "pad": 1},
            )
            if recipe == "published":
                axes.plot(
                    [100 - published[model]],
                    [height],
                    marker="D",
                    markersize=11,
                    markerfacecolor="none",
                    markeredgecolor="black",
                    linestyle="",
                    label="published figure" if model == "lenet5" else None,
                )
        axes.axvline(
            LECUN_ERROR,
            color=COLORS["lenet5"],
            linestyle=":",
            label="LeNet-5 of 1998, with distortions",
        )
        axes.set_xscale("log")
        ticks = [0.3, 0.5, 1, 2, 3, 5]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks(
            range(len(recipes), 0, -1), [recipe.replace("_", " ") for recipe in recipes]
        )
        axes.set_xlabel(
            "wrong on the 10,000 test images (%, logarithmic); beside it the mean accuracy"
        )
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10)
        figure.suptitle("One mark per seed. Bar: their mean, line: its 95 % interval")
    return figure


def missed(images: NDArray[np.uint8], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The images that both models get wrong with every seed, and their answers.

    Args:
        images: All test images (N, H, W).
        rows: From :func:`study.comparison.missed`.
    """
    columns, shown = 8, rows[:MISSED_SHOWN]
    lines = max(1, -(-len(shown) // columns))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = _figure(11, 0.9 + 1.75 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, row in zip(panels, shown, strict=False):
            axes.imshow(255 - images[row["index"]], cmap="gray", vmin=0, vmax=255)
            doubtful = " *" if row["no_majority"] else ""
            axes.set_title(
                f"no. {row['index']}: {row['label']}{doubtful}\n{row['lenet5']}, {row['mlp']}",
                fontsize=9,
            )
        figure.suptitle(
            "Label, then LeNet-5's answer and the MLP's (* no majority of annotators for a label)"
        )
    return figure
