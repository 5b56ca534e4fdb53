"""Stage report of study/dvc.yaml: what all cells say together, as tables and two figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from stages import alone, figures, files, mnist, params, scoring, study, tracking
from stages.errors import main_function
from stages.params import MODEL_NAMES, ModelName, Params
from stages.study import OverSeeds, Row
from stages.tables import TITLES, interval, percent, table

FOLDER = files.STUDY / "report"
ALSO_OF_A_CELL = (
    "test_loss",
    "test_negative_log_likelihood",
    "test_calibration_error",
)
LOSS_FLOOR = math.log(math.e + 9) - 1


def spread(value: OverSeeds, scale: float, digits: int) -> str:
    sd = "" if value.sd is None else f" ± {scale * value.sd:.{digits}f}"
    return f"{scale * value.mean:.{digits}f}{sd}"


# --- the tables ---


def result_table(rows: Sequence[Row], further: Sequence[list[str]] = ()) -> str:
    """A line a row, then those of ``further``."""
    lines = []
    for row in rows:
        accuracy, loss = row.accuracy, row.loss
        clean = row.correct[:, study.kept(row.correct.shape[1])].mean()
        lines.append(
            [
                TITLES[row.model],
                row.recipe,
                spread(accuracy, 100, 2),
                interval(accuracy.low, accuracy.high, 100, 2),
                spread(loss, 1, 4),
                interval(loss.low, loss.high, 1, 4),
                percent(float(clean)),
            ]
        )
    return table(
        "model | recipe | test accuracy % | 95 % interval | test loss | 95 % interval "
        "| accuracy % without 15 labels",
        "llrcrcr",
        [*lines, *further],
    )


def published_lines() -> list[list[str]]:
    """What the published experiment states, for the end of the table above."""
    published = ((TITLES[model], *scoring.PUBLISHED[model]) for model in MODEL_NAMES)
    return [
        [title, "published experiment", percent(accuracy), "", f"{loss:.4f}", "", ""]
        for title, loss, accuracy in published
    ]


def reproduction_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        loss_there, accuracy_there = scoring.PUBLISHED[row.model]
        for name, there, found, scale, digits in (
            ("accuracy %", accuracy_there, row.accuracy, 100, 2),
            ("loss", loss_there, row.loss, 1, 4),
        ):
            lines.append(
                [
                    TITLES[row.model],
                    name,
                    f"{scale * there:.{digits}f}",
                    spread(found, scale, digits),
                    interval(found.low, found.high, scale, digits),
                    interval(found.next_low, found.next_high, scale, digits),
                    verdict(there, found, scale, digits),
                ]
            )
    return table(
        "model | on the test images | published | ours | 95 % interval of the mean "
        "| 95 % interval of one more run | reproduced",
        "llrrccl",
        lines,
    )


def verdict(there: float, found: OverSeeds, scale: float, digits: int) -> str:
    """Whether a published figure is what one more of our runs might give."""
    if found.next_low is None or found.next_high is None:
        return "one seed tells nothing"
    if found.next_low <= there <= found.next_high:
        return "yes"
    edge = found.next_low if there < found.next_low else found.next_high
    return f"no, {scale * abs(there - edge):.{digits}f} outside"


Differences = list[tuple[str, study.Difference]]


def difference_rows(settings: Params, rows: Sequence[Row]) -> tuple[Differences, Differences]:
    """LeNet-5 minus MLP of each recipe, then each pair of recipes that params.yaml names; and those
    pairs of which one is an ablation."""
    by_name = {(row.recipe, row.model): row for row in rows}
    found = [
        (
            f"LeNet-5 minus MLP, {recipe}",
            study.difference(by_name[recipe, "lenet5"], by_name[recipe, "mlp"]),
        )
        for recipe in settings.study.recipes
    ]
    ablations: Differences = []
    for model in MODEL_NAMES:
        for first, second in settings.study.differences:
            one = study.difference(by_name[first, model], by_name[second, model])
            is_ablation = {first, second} & set(settings.study.ablations)
            name = f"{TITLES[model]}, {first} minus {second}"
            (ablations if is_ablation else found).append((name, one))
    return found, ablations


def difference_table(differences: Sequence[tuple[str, study.Difference]]) -> str:
    lines = [
        [
            name,
            f"{100 * found.seeds.mean:+.2f}",
            interval(found.seeds.low, found.seeds.high, 100, 2),
            interval(found.images_low, found.images_high, 100, 2),
            f"{min(found.p_values):.1g} to {max(found.p_values):.1g}",
        ]
        for name, found in differences
    ]
    return table(
        "difference | points | 95 % over seeds | 95 % over images | exact McNemar p of the seeds",
        "lrccc",
        lines,
    )


def calibration_table(rows: Sequence[Row]) -> str:
    lines = []
    for row, twin in ((row, row.twin) for row in rows if row.twin):
        scores = twin.scores
        pairs = [
            scores[f"test_{scaled}{name}"]
            for name in ("calibration_error", "negative_log_likelihood")
            for scaled in ("", "scaled_")
        ]
        lines.append(
            [
                TITLES[row.model],
                row.recipe,
                percent(scores["validation_accuracy"]),
                f"{scores['temperature']:.3f}",
                *(f"{value:.4f}" for value in pairs),
            ]
        )
    return table(
        "model | recipe | validation accuracy % | temperature | calibration error | after "
        "| negative log likelihood | after",
        "llrrrrrr",
        lines,
    )


def best(settings: Params, rows: Sequence[Row]) -> str:
    """The recipe with the highest mean accuracy of both models."""
    return max(
        settings.study.recipes,
        key=lambda recipe: sum(int(row.correct.sum()) for row in rows if row.recipe == recipe),
    )


def reproduction_section(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    return f"""\
## Is the published result reproduced?

{reproduction_table(rows)}

A published figure comes from one run, so it counts as reproduced where it lies in the interval of
one more run of ours.

LeNet-5's published loss is explained by one line. The network ends in softmax, and the
cross-entropy applies softmax again; a certain and right answer (1, 0, ..., 0) then costs
-ln(e / (e + 9)) = ln(e + 9) - 1 = {LOSS_FLOOR:.4f}, and no answer costs less. The recipe
published_without_softmax leaves that call out and nothing else. The published code also constructs
a dropout of 0.5 that it never applies; documented is published_without_softmax with it applied.

"""


def ablation_section(rows: Sequence[Row], differences: Differences) -> str:
    if not rows:
        return ""
    return f"""\
## What each ingredient is worth

{result_table(rows)}

{difference_table(differences)}

One ingredient taken away alone, and nothing tuned anew for what is left.

"""


def markdown(
    settings: Params, rows: Sequence[Row], recipe: str, missed: Sequence[Mapping[str, Any]]
) -> str:
    ambiguous = sum(row["no_majority"] for row in missed)
    differences, ablations = difference_rows(settings, rows)
    whole = [row for row in rows if row.recipe in settings.study.recipes]
    published = [row for row in rows if row.recipe == "published"]
    lessened = [row for row in rows if row.recipe in settings.study.ablations]
    return f"""\
# The study

By `make study`: {len(settings.study.every_recipe)} recipes, two models, {len(settings.study.seeds)}
seeds. Each network is scored once on the 10,000 test images.

![Test error of every recipe, model and seed](story.png)

## Results

{result_table(whole, published_lines())}

Mean ± standard deviation over the seeds, and Student's 95 % interval of the mean. The loss is the
one that the recipe trains with. The last column leaves out the fifteen test images whose label no
majority of five annotators confirms (Northcutt et al., 2021).

{reproduction_section(published)}## Differences

{difference_table(differences)}

Percentage points of accuracy; each pair of networks has the same seed and sees the same test
images. *Over seeds* is Student's paired interval: where it leaves out 0, training again would give
the same sign on these 10,000 images, but it knows no other images. *Over images* is the bootstrap's
interval of the mean over the seeds, and McNemar's test is made for each seed: where they say so,
these trained networks would keep the sign on other such images, but neither knows how another
training would end. A difference holds where both agree. Nothing is corrected for their number.

{ablation_section(lessened, ablations)}## Calibration

{calibration_table(rows)}

Of one more network a row, with seed {settings.seed}, trained without
{settings.study.validation_size:,} of the training images. On these a temperature is fitted, by
which its logits are then divided on the test images: that changes no answer, only how sure it is.

## What both models miss

With the recipe {recipe}, {len(missed)} test images are wrong for both models with
every seed; {ambiguous} of them are among the fifteen without a majority ([missed.csv](missed.csv)).

![The images that both models miss with every seed](missed.png)
"""


# --- what is written ---


def story(rows: Sequence[Row]) -> Figure:
    accuracies: dict[tuple[str, str], list[float]] = {
        (row.recipe, row.model): [100 * cell.scores["test_accuracy"] for cell in row.cells]
        for row in rows
    }
    over = {key: study.over_seeds(values) for key, values in accuracies.items()}
    intervals: dict[tuple[str, str], tuple[float, float] | None] = {
        key: None if value.low is None or value.high is None else (value.low, value.high)
        for key, value in over.items()
    }
    published = {model: 100 * accuracy for model, (_, accuracy) in scoring.PUBLISHED.items()}
    return figures.story(accuracies, intervals, published)


def cell_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One network a row, with the SHA-256 of its weights and outputs."""
    found = []
    for row in rows:
        for cell in [*row.cells, *([row.twin] if row.twin else [])]:
            low, high = scoring.accuracy_interval(cell.correct)
            scores = cell.scores
            found.append(
                {
                    "recipe": row.recipe,
                    "model": row.model,
                    "seed": cell.seed,
                    "test_accuracy": scores["test_accuracy"],
                    "test_accuracy_low": low,
                    "test_accuracy_high": high,
                }
                | {name: scores[name] for name in ALSO_OF_A_CELL}
                | {f"{name}_sha256": cell.sha256[name] for name in ("weights", "outputs")}
            )
    return found


def metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, by recipe and model."""
    found: dict[str, Any] = {}
    for row in rows:
        values: dict[str, float] = {}
        for name, over in ("accuracy", row.accuracy), ("loss", row.loss):
            values |= {name: over.mean} | ({} if over.sd is None else {f"{name}_sd": over.sd})
        found.setdefault(row.recipe, {})[row.model] = values
    return found


@main_function
def main() -> None:
    settings = params.load()
    with alone.holding("report"), tracking.run("report"):
        rows = study.load_rows(settings)
        recipe = best(settings, rows)
        pair: dict[ModelName, Row] = {row.model: row for row in rows if row.recipe == recipe}
        missed = study.missed(pair)
        images = mnist.load_split(files.DATA_PREPARED, "test").images
        cells = cell_rows(rows)
        files.write_rows(FOLDER / "cells.csv", cells)
        header = ["index", "label", *MODEL_NAMES, "no_majority"]
        files.write_csv(FOLDER / "missed.csv", header, (list(row.values()) for row in missed))
        figures.save(story(rows), FOLDER / "story.png")
        figures.save(figures.missed(images, missed), FOLDER / "missed.png")
        files.write_json(FOLDER / "metrics.json", metrics(rows))
        files.write_text(FOLDER / "study.md", markdown(settings, rows, recipe, missed))
        print(result_table(rows))


if __name__ == "__main__":
    main()
