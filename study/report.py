"""Stage report: compare all cells, in tables and two figures."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

import dvc_mlflow
from dvc_mlflow.errors import main_function
from dvc_mlflow.files import write_text
from stages import scoring
from stages.base import files, params, splits
from stages.base.params import MODEL_NAMES, TITLES
from stages.show import figures
from stages.show.tables import interval, percent, table
from study import comparison, page, settings
from study.comparison import OverSeeds, Variant
from study.settings import REPORT, Study

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


def result_table(variants: Sequence[Variant], further: Sequence[list[str]] = ()) -> str:
    """One line per variant, then the lines of ``further``."""
    lines = []
    for variant in variants:
        accuracy, loss = variant.accuracy, variant.loss
        clean = variant.correct[:, comparison.with_majority(variant.correct.shape[1])].mean()
        lines.append(
            [
                TITLES[variant.model],
                variant.recipe,
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
    """The figures of the published experiment, for the end of the table above."""
    published = ((TITLES[model], *scoring.PUBLISHED[model]) for model in MODEL_NAMES)
    return [
        [title, "published experiment", percent(accuracy), "", f"{loss:.4f}", "", ""]
        for title, loss, accuracy in published
    ]


def reproduction_table(variants: Sequence[Variant]) -> str:
    lines = []
    for variant in variants:
        loss_there, accuracy_there = scoring.PUBLISHED[variant.model]
        for name, there, found, scale, digits in (
            ("accuracy %", accuracy_there, variant.accuracy, 100, 2),
            ("loss", loss_there, variant.loss, 1, 4),
        ):
            lines.append(
                [
                    TITLES[variant.model],
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
    """Whether a published figure is in the interval of one more run of ours."""
    if found.next_low is None or found.next_high is None:
        return "one seed tells nothing"
    if found.next_low <= there <= found.next_high:
        return "yes"
    edge = found.next_low if there < found.next_low else found.next_high
    return f"no, {scale * abs(there - edge):.{digits}f} outside"


Differences = list[tuple[str, comparison.Difference]]


def all_differences(study: Study, variants: Sequence[Variant]) -> tuple[Differences, Differences]:
    """The differences between the models and between recipes, and those to an ablation.

    The first list has LeNet-5 minus MLP for each recipe, and the pairs of `differences` in
    study/params.yaml. The second list has the pairs of which one is an ablation.
    """
    by_name = {(variant.recipe, variant.model): variant for variant in variants}
    found = [
        (
            f"LeNet-5 minus MLP, {recipe}",
            comparison.difference(by_name[recipe, "lenet5"], by_name[recipe, "mlp"]),
        )
        for recipe in study.recipes
    ]
    ablations: Differences = []
    for model in MODEL_NAMES:
        for first, second in study.differences:
            one = comparison.difference(by_name[first, model], by_name[second, model])
            is_ablation = {first, second} & set(study.ablations)
            name = f"{TITLES[model]}, {first} minus {second}"
            (ablations if is_ablation else found).append((name, one))
    return found, ablations


def difference_table(differences: Sequence[tuple[str, comparison.Difference]]) -> str:
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


def calibration_table(variants: Sequence[Variant]) -> str:
    lines = []
    for variant, twin in ((variant, variant.twin) for variant in variants if variant.twin):
        scores = twin.scores
        pairs = [
            scores[f"test_{scaled}{name}"]
            for name in ("calibration_error", "negative_log_likelihood")
            for scaled in ("", "scaled_")
        ]
        lines.append(
            [
                TITLES[variant.model],
                variant.recipe,
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


def best(study: Study, variants: Sequence[Variant]) -> str:
    """The recipe with the highest mean accuracy of both models."""
    return max(
        study.recipes,
        key=lambda recipe: sum(
            int(variant.correct.sum()) for variant in variants if variant.recipe == recipe
        ),
    )


def reproduction_section(variants: Sequence[Variant]) -> str:
    if not variants:
        return ""
    return f"""\
## Is the published result reproduced?

{reproduction_table(variants)}

A published figure comes from one run, so it counts as reproduced where it lies in the interval of
one more run of ours.

LeNet-5's published loss is explained by one line. The network ends in softmax, and the
cross-entropy applies softmax again; a certain and right answer (1, 0, ..., 0) then costs
-ln(e / (e + 9)) = ln(e + 9) - 1 = {LOSS_FLOOR:.4f}, and no answer costs less. The recipe
published_without_softmax leaves that call out and nothing else. The published code also constructs
a dropout of 0.5 that it never applies; documented is published_without_softmax with it applied.

"""


def ablation_section(variants: Sequence[Variant], differences: Differences) -> str:
    if not variants:
        return ""
    return f"""\
## What each ingredient is worth

{result_table(variants)}

{difference_table(differences)}

One ingredient is taken away at a time. Nothing else is tuned again.

"""


def markdown(
    study: Study,
    variants: Sequence[Variant],
    recipe: str,
    missed: Sequence[Mapping[str, Any]],
    seed: int,
) -> str:
    ambiguous = sum(image["no_majority"] for image in missed)
    differences, ablations = all_differences(study, variants)
    whole = [variant for variant in variants if variant.recipe in study.recipes]
    published = [variant for variant in variants if variant.recipe == "published"]
    lessened = [variant for variant in variants if variant.recipe in study.ablations]
    fewer = ""
    if lessened and len(study.ablation_seeds) < len(study.seeds):
        fewer = f" ({len(study.ablation_seeds)} of them for an ablation)"
    return f"""\
# The study

By `make study`: {len(study.every_recipe)} recipes, two models, {len(study.seeds)}
seeds{fewer}. Each network is scored once on the 10,000 test images.

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

{calibration_table(variants)}

Each line is one more network, with seed {seed}, trained without {study.validation_size:,} of the
training images. A temperature is fitted on these. The logits on the test images are then divided by
it, which changes the confidence, but no answer.

## What both models miss

With the recipe {recipe}, {len(missed)} test images are wrong for both models with
every seed; {ambiguous} of them are among the fifteen without a majority ([missed.csv](missed.csv)).

![The images that both models miss with every seed](missed.png)
"""


# --- the files ---


def headline(variants: Sequence[Variant]) -> str:
    """What the story shows: the finding as long as the accuracies say so."""
    means = {(variant.recipe, variant.model): variant.accuracy.mean for variant in variants}
    behind = [
        recipe
        for recipe, model in means
        if model == "lenet5" and means[recipe, "lenet5"] < means.get((recipe, "mlp"), 0)
    ]
    if behind == ["published"]:  # the only recipe whose LeNet-5 ends in softmax
        return "LeNet-5 is behind the MLP only where softmax is applied twice"
    return "Test accuracy of every recipe, model and seed"


def story(variants: Sequence[Variant], ablations: Collection[str]) -> Figure:
    accuracies: dict[tuple[str, str], list[float]] = {
        (variant.recipe, variant.model): [
            100 * cell.scores["test_accuracy"] for cell in variant.cells
        ]
        for variant in variants
    }
    over = {key: comparison.over_seeds(values) for key, values in accuracies.items()}
    intervals: dict[tuple[str, str], tuple[float, float] | None] = {
        key: None if value.low is None or value.high is None else (value.low, value.high)
        for key, value in over.items()
    }
    published = {model: 100 * accuracy for model, (_, accuracy) in scoring.PUBLISHED.items()}
    return figures.story(accuracies, intervals, published, ablations, headline(variants))


def cell_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """One row per network, with the SHA-256 of its weights and outputs."""
    found = []
    for variant in variants:
        for cell in [*variant.cells, *([variant.twin] if variant.twin else [])]:
            low, high = scoring.accuracy_interval(cell.correct)
            scores = cell.scores
            found.append(
                {
                    "recipe": variant.recipe,
                    "model": variant.model,
                    "seed": cell.seed,
                    "test_accuracy": scores["test_accuracy"],
                    "test_accuracy_low": low,
                    "test_accuracy_high": high,
                }
                | {name: scores[name] for name in ALSO_OF_A_CELL}
                | {f"{name}_sha256": cell.sha256[name] for name in ("weights", "outputs")}
            )
    return found


def metrics(variants: Sequence[Variant]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, by recipe and model."""
    found: dict[str, Any] = {}
    for variant in variants:
        values: dict[str, float] = {}
        for name, over in ("accuracy", variant.accuracy), ("loss", variant.loss):
            values |= {name: over.mean} | ({} if over.sd is None else {f"{name}_sd": over.sd})
        found.setdefault(variant.recipe, {})[variant.model] = values
    return found


@main_function
def main() -> None:
    study, seed = settings.load(), params.load().seed
    with dvc_mlflow.run("report"):
        variants = comparison.load_variants(study)
        recipe = best(study, variants)
        pair = {variant.model: variant for variant in variants if variant.recipe == recipe}
        missed = comparison.missed(pair)
        images = splits.load_split(files.DATA_PREPARED, "test").images
        files.write_rows(REPORT / "cells.csv", cell_rows(variants))
        header = ["index", "label", *MODEL_NAMES, "no_majority"]
        files.write_csv(REPORT / "missed.csv", header, (list(image.values()) for image in missed))
        figures.save(story(variants, study.ablations), REPORT / "story.png")
        figures.save(figures.missed(images, missed), REPORT / "missed.png")
        files.write_json(REPORT / "metrics.json", metrics(variants))
        report = markdown(study, variants, recipe, missed, seed)
        write_text(REPORT / "study.md", report)
        write_text(page.PATH, page.html(study, variants, report, missed, images))
        print(result_table(variants))


if __name__ == "__main__":
    main()
