"""The figures, with matplotlib's Agg canvas: the same data gives the same PNG bytes."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dvc_kit.files import write_bytes
from stages.base.params import TITLES
from stages.networks import MODELS
from stages.scoring import CalibrationBin, accuracy_interval

History = Mapping[str, Sequence[float]]

COLORS = {name: model.color for name, model in MODELS.items()}
MARKERS = {name: model.marker for name, model in MODELS.items()}
DASHES: Any = {"train": (0, (2, 1.5)), "test": "-"}  # of the two splits
SPLITS = ("train", "test")
AXIS_LABELS = {"loss": "cross-entropy loss (nats, logarithmic)", "accuracy": "accuracy (%)"}
INK, SOFT, LINE = "#1b1d21", "#5b616a", "#e1e4e8"  # as in assets/style.css, in the light
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "mnist",  # otherwise each run has its own ids
}
ERROR_TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 50)  # of a logarithmic scale, in per cent
MISTAKES_SHOWN = 15


def error_ticks(low: float, high: float) -> dict[float, str]:
    """Where a logarithmic scale of errors from ``low`` to ``high``, in per cent, has labels, and
    the accuracies there."""
    return {tick: f"{100 - tick:g}" for tick in ERROR_TICKS if low <= tick <= high}


def show_errors_as_accuracy(axes: Axes, axis: str) -> None:
    """Label the errors on the axis ``x`` or ``y`` by accuracy, which grows to the right or up."""
    axes.set(**{f"{axis}scale": "log"})
    shown = error_ticks(*getattr(axes, f"get_{axis}lim")())
    getattr(axes, f"set_{axis}ticks")(list(shown), list(shown.values()))
    axes.minorticks_off()
    getattr(axes, f"invert_{axis}axis")()


def save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def svg(figure: Figure, model: str) -> str:
    """A figure for a page, in the page's colours and in that of its model."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawn = re.sub(r' id="[a-z]\w*_\d+"', "", buffer.getvalue().partition("<svg")[2])
    colors = {INK: "--ink", SOFT: "--soft", LINE: "--line", COLORS[model].lower(): "--of"}
    for color, name in colors.items():
        drawn = drawn.replace(color, f"var({name})")
    return f'<svg class="{model}" aria-hidden="true"{drawn}'


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def _draw_curve(axes: Axes, history: History, split: str, metric: str, model: str) -> None:
    """A curve, with its last value at its end."""
    scale, digits = (100, 2) if metric == "accuracy" else (1, 4)
    values = [scale * value for value in history[f"{split}_{metric}"]]
    axes.plot(
        history["epoch"],
        values,
        color=COLORS[model],
        linestyle=DASHES[split],
        marker=MARKERS[model],
        markersize=4,
        markerfacecolor="white" if split == "train" else COLORS[model],
    )
    other = history[f"{'train' if split == 'test' else 'test'}_{metric}"]
    axes.annotate(
        f"{split} {values[-1]:.{digits}f}",
        (history["epoch"][-1], values[-1]),
        (7, 0),
        textcoords="offset points",
        va="bottom" if values[-1] >= scale * other[-1] else "top",
        fontsize=9,
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel(AXIS_LABELS[metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if metric == "loss":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()


def _end_at_ticks(loss: Axes, accuracy: Axes) -> None:
    """Let both axes end at a tick that lies beyond their curves."""
    low, high = loss.get_ylim()
    ticks = loss.yaxis.get_major_locator().tick_values(low / 2, 2 * high)
    loss.set_ylim(max(t for t in ticks if t <= low), min(t for t in ticks if t >= high))
    accuracy.set_ylim(top=100)


def curves(histories: Mapping[str, History], title: str) -> Figure:
    """Loss and accuracy of each model, train and test on one axis."""
    with rc_context(STYLE):
        figure = blank(10, 3.5 * len(histories))
        panels = figure.subplots(len(histories), 2, sharey="col", squeeze=False)
        for row, (model, history) in zip(panels, histories.items(), strict=True):
            for axes, metric in zip(row, AXIS_LABELS, strict=True):
                for split in SPLITS:
                    _draw_curve(axes, history, split, metric, model)
                axes.set_title(f"{TITLES[model]}: {metric}")
        _end_at_ticks(*panels[0])
        figure.suptitle(f"{title} (train: mean over the epoch)")
    return figure


def four_curves(model: str, history: History, title: str) -> Figure:
    """The four plots of the published experiment: loss and accuracy, on train and test."""
    with rc_context(STYLE):
        figure = blank(10, 7)
        panels = figure.subplots(2, 2, sharey="row")
        for row, metric in zip(panels, AXIS_LABELS, strict=True):
            for axes, split in zip(row, SPLITS, strict=True):
                _draw_curve(axes, history, split, metric, model)
                axes.set_title(f"{split} {metric}".capitalize())
                axes.label_outer()
        _end_at_ticks(*panels[:, 0])
        figure.suptitle(f"{title} (train: mean over the epoch)")
    return figure


def confusion(matrices: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Confusion matrices side by side. The shade is the share of a mistake in its row."""
    with rc_context(STYLE | {"axes.grid": False}):
        figure = blank(6 * len(matrices), 5.6)
        panels = figure.subplots(1, len(matrices))
        wrong = {model: matrix * (1 - np.eye(len(matrix))) for model, matrix in matrices.items()}
        shades = {
            model: wrong[model] / np.maximum(1, matrices[model].sum(1, keepdims=True))
            for model in matrices
        }
        darkest = max(0.01, *(float(shade.max()) for shade in shades.values()))
        for axes, (model, matrix) in zip(panels, matrices.items(), strict=True):
            red, green, blue = (0.4 + 0.6 * part for part in to_rgb(COLORS[model]))
            darkest_color = to_hex((red, green, blue))  # a black number is legible on it
            cmap = LinearSegmentedColormap.from_list(model, ["white", darkest_color])
            image = axes.imshow(shades[model], cmap=cmap, vmin=0, vmax=darkest)
            for (actual, predicted), count in np.ndenumerate(matrix):
                if count:
                    axes.text(
                        predicted,
                        actual,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=9,
                        fontweight="bold" if actual == predicted else "normal",
                    )
            axes.set_xticks(range(len(matrix)))
            axes.set_yticks(range(len(matrix)))
            axes.set_xlabel("predicted digit")
            axes.set_ylabel("actual digit")
            mistaken = int(wrong[model].sum())
            axes.set_title(f"{TITLES[model]}: {mistaken} mistakes in {matrix.sum():,}")
            percent = PercentFormatter(1, 1, symbol=" %")
            figure.colorbar(image, ax=axes, shrink=0.4, ticks=[0, darkest], format=percent)
        figure.suptitle("Confusion on the test images (shade: share of the actual digit's images)")
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
        figure = blank(9, 6.4)
        panels = figure.subplots(3, MISTAKES_SHOWN // 3).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, index in zip(panels, shown, strict=False):  # a good model may have fewer
            axes.imshow(255 - images[index], cmap="gray", vmin=0, vmax=255)
            sure = f"{100 * confidence[index]:.2f} % sure"
            axes.set_title(
                f"{actual[index]} taken for {predicted[index]}\n{sure}",
                loc="center",
                fontsize=10,
                fontweight="normal",
            )
            axes.text(
                0.5,
                -0.02,
                f"no. {index}",
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=8,
                color=SOFT,
            )
        figure.suptitle(
            f"{TITLES[model]}: the most confident of its {len(wrong)} mistakes (test images)"
        )
    return figure


def bin_interval(part: CalibrationBin) -> tuple[float, float]:
    """Wilson's interval of the accuracy in a bin."""
    return accuracy_interval(np.arange(part.count) < round(part.accuracy * part.count))


def reliability(bins: Mapping[str, Sequence[CalibrationBin]]) -> Figure:
    """Accuracy against confidence with its interval, and the number of images of each point."""
    with rc_context(STYLE):
        figure = blank(7, 7)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 100], [0, 100], color=SOFT, linewidth=1, label="perfectly calibrated")
        for model, parts in bins.items():
            confidence = [100 * part.confidence for part in parts]
            accuracy = [100 * part.accuracy for part in parts]
            style: dict[str, Any] = {"color": COLORS[model], "marker": MARKERS[model]}
            upper.plot(confidence, accuracy, linestyle="", label=TITLES[model], **style)
            low, high = zip(*map(bin_interval, parts), strict=True)
            upper.vlines(confidence, 100 * np.array(low), 100 * np.array(high), COLORS[model])
            style |= {"linestyle": MODELS[model].dashes, "markersize": 5}
            lower.plot(confidence, [part.count for part in parts], **style)
        upper.set_ylabel("accuracy (%)")
        upper.legend(loc="lower right")
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter("{x:,.0f}")
        lower.minorticks_off()
        lower.set_ylabel("images")
        lower.set_xlabel("confidence of the predicted digit (%)")
        figure.suptitle("Reliability on the test images, with 95 % intervals")
    return figure
