"""The two figures of the report: every seed of every recipe, and the images that all get wrong."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stages.base.params import TITLES
from stages.networks import MODELS
from stages.networks.model import listed
from stages.show import figures
from stages.show.figures import COLORS, INK, MARKERS, STYLE, blank

MISSED_SHOWN = 48
# In per cent: LeNet-5 trained on distorted images, from the paper that lenet5.py names. Its pooling
# and its output layer are not the same as here
LECUN_ERROR = 0.8
ABLATIONS = "record without one ingredient"  # the heading above the ablations
PUBLISHED_MARK: Any = {
    "marker": "D",
    "s": 110,
    "facecolor": "none",
    "edgecolor": INK,
    "zorder": 3,
    "label": "published experiment",
}


def _draw_variant(
    axes: Axes,
    height: float,
    model: str,
    accuracies: Sequence[float],
    interval: tuple[float, float] | None,
) -> None:
    """One mark per seed, their mean with its interval, and the mean as a number."""
    errors, mean = [100 - value for value in accuracies], math.fsum(accuracies) / len(accuracies)
    style: dict[str, Any] = {"color": COLORS[model], "marker": MARKERS[model]}
    axes.plot(
        errors,
        [height] * len(errors),
        linestyle="",
        alpha=0.45,
        label=f"{TITLES[model]}, a seed",
        **style,
    )
    of_mean: dict[str, Any] = {"color": INK, "label": "mean, with its 95 % interval"}
    axes.plot([100 - mean] * 2, [height - 0.15, height + 0.15], linewidth=2, **of_mean)
    least = min(errors)
    if interval is not None:
        low, high = interval
        axes.plot([100 - high, 100 - low], [height, height], color=INK, linewidth=1)
        least = min(least, 100 - high)
    axes.annotate(
        f"{mean:.2f}",
        (least, height),
        (9, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        bbox={"color": "white", "pad": 1},
    )


def story(
    accuracies: Mapping[tuple[str, str], Sequence[float]],
    intervals: Mapping[tuple[str, str], tuple[float, float] | None],
    published: Mapping[str, float],
    ablations: Collection[str],
    title: str,
) -> Figure:
    """Test accuracy of every recipe, model and seed, with the errors on a logarithmic scale.

    Args:
        accuracies: In per cent, one per seed, by recipe and model.
        intervals: Of the mean accuracy, in per cent.
        published: Accuracy of the published experiment by model, shown at the recipe `published`.
        ablations: The recipes that stand apart, below the others.
    """
    recipes = list(dict.fromkeys(recipe for recipe, _ in accuracies))
    rows = [recipe for recipe in recipes if recipe not in ablations]
    if len(rows) < len(recipes):
        rows += [ABLATIONS, *(recipe for recipe in recipes if recipe in ablations)]
    beside = dict(zip(MODELS, np.linspace(-0.18, 0.18, len(MODELS)).tolist(), strict=True))
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = blank(8, 2 + 0.44 * len(rows))
        axes = figure.subplots()
        for (recipe, model), values in accuracies.items():
            height = rows.index(recipe) + beside[model]
            _draw_variant(axes, height, model, values, intervals[recipe, model])
            if recipe == "published":
                axes.scatter(100 - published[model], height, **PUBLISHED_MARK)
        axes.axvline(
            LECUN_ERROR,
            color=COLORS["lenet5"],
            linestyle=":",
            label="LeNet-5 of 1998, with distortions",
        )
        figures.show_errors_as_accuracy(axes, "x")
        axes.set_xlabel("accuracy on the 10,000 test images (%, logarithmic in the errors)")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        names = [recipe.removeprefix("record_").replace("_", " ") for recipe in rows]
        axes.set_yticks(range(len(rows)), names)
        if ABLATIONS in rows:
            axes.get_yticklabels()[rows.index(ABLATIONS)].set_fontweight("bold")
        marks, labels = axes.get_legend_handles_labels()
        by_label = dict(zip(labels, marks, strict=True))  # each once
        figure.legend(
            by_label.values(), by_label, loc="outside lower center", ncols=2, frameon=False
        )
        figure.suptitle(title)
    return figure


def missed(images: NDArray[np.uint8], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The images that all models get wrong with every seed, and their answers.

    Args:
        images: All test images (N, H, W).
        rows: From :func:`study.comparison.missed`.
    """
    shown = rows[:MISSED_SHOWN]
    columns = max(1, min(8, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = blank(max(5, 1.375 * columns), 1.1 + 1.75 * lines)  # as wide as the title, or more
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, row in zip(panels, shown, strict=False):
            axes.imshow(255 - images[row["index"]], cmap="gray", vmin=0, vmax=255)
            doubtful = " *" if row["no_majority"] else ""
            answers = ", ".join(str(row[name]) for name in MODELS)
            text = f"no. {row['index']}: {row['label']}{doubtful}\n{answers}"
            axes.set_title(text, loc="center", fontsize=9, fontweight="normal")
        first, *others = (f"{model.spoken}'s" for model in MODELS.values())
        figure.suptitle(
            f"Label, then {listed([f'{first} answer', *others])}\n"
            "(* no majority of annotators for a label)"
        )
    return figure
