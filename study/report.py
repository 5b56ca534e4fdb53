"""Stage report: compare all cells, in tables and two figures."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dvc_kit.errors import main_function
from dvc_kit.files import write_text
from stages import scoring
from stages.base import files, params, splits
from stages.base.params import TITLES
from stages.base.stage import running
from stages.show import figures
from stages.show.tables import interval
from study import comparison, page, pictures, settings
from study.comparison import OverSeeds, Variant
from study.filling import TEMPLATES, filled
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


def of_mean(value: OverSeeds, scale: float, digits: int) -> str:
    return interval(value.low, value.high, scale, digits)


def verdict(found: OverSeeds, there: float, scale: float, digits: int) -> str:
    """Whether a published figure is in the interval of one more run of ours."""
    if found.next_low is None or found.next_high is None:
        return "one seed tells nothing"
    if found.next_low <= there <= found.next_high:
        return "yes"
    edge = found.next_low if there < found.next_low else found.next_high
    return f"no, {scale * abs(there - edge):.{digits}f} outside"


TEMPLATES.filters |= {"spread": spread, "of_mean": of_mean, "verdict": verdict}
Differences = list[tuple[str, comparison.Difference]]


def all_differences(study: Study, variants: Sequence[Variant]) -> tuple[Differences, Differences]:
    """The differences between the first two models and between recipes, and those to an ablation.

    The pairs of recipes are those of `differences` in study/params.yaml.
    """
    by_name = {(variant.recipe, variant.model): variant for variant in variants}
    found, ablations = Differences(), Differences()
    one, other = study.models[:2]
    for recipe in study.recipes:
        between = comparison.difference(by_name[recipe, one], by_name[recipe, other])
        found.append((f"{TITLES[one]} minus {TITLES[other]}, {recipe}", between))
    for model in study.models:
        for first, second in study.differences:
            between = comparison.difference(by_name[first, model], by_name[second, model])
            is_ablation = {first, second} & set(study.ablations)
            name = f"{TITLES[model]}, {first} minus {second}"
            (ablations if is_ablation else found).append((name, between))
    return found, ablations


def best(study: Study, variants: Sequence[Variant]) -> str:
    """The recipe with the highest mean accuracy of both models."""
    return max(
        study.recipes,
        key=lambda recipe: sum(
            int(variant.correct.sum()) for variant in variants if variant.recipe == recipe
        ),
    )


def markdown(
    study: Study,
    variants: Sequence[Variant],
    recipe: str,
    missed: Sequence[Mapping[str, Any]],
    seed: int,
) -> str:
    """The report, by the template study.md."""
    differences, ablations = all_differences(study, variants)
    return filled(
        "study.md",
        study=study,
        every=variants,
        whole=[variant for variant in variants if variant.recipe in study.recipes],
        of_published=[variant for variant in variants if variant.recipe == "published"],
        lessened=[variant for variant in variants if variant.recipe in study.ablations],
        figures=scoring.PUBLISHED,
        loss_floor=LOSS_FLOOR,
        differences=differences,
        ablations=ablations,
        recipe=recipe,
        missed=missed,
        seed=seed,
    )


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
    return pictures.story(accuracies, intervals, published, ablations, headline(variants))


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
    with running("report"):
        variants = comparison.load_variants(study)
        recipe = best(study, variants)
        pair = {variant.model: variant for variant in variants if variant.recipe == recipe}
        missed = comparison.missed(pair)
        images = splits.load_split(files.DATA_PREPARED, "test").images
        files.write_rows(REPORT / "cells.csv", cell_rows(variants))
        header = ["index", "label", *study.models, "no_majority"]
        files.write_csv(REPORT / "missed.csv", header, (list(image.values()) for image in missed))
        figures.save(story(variants, study.ablations), REPORT / "story.png")
        figures.save(pictures.missed(images, missed), REPORT / "missed.png")
        files.write_json(REPORT / "metrics.json", metrics(variants))
        report = markdown(study, variants, recipe, missed, seed)
        write_text(REPORT / "study.md", report)
        write_text(page.PATH, page.html(study, variants, report, missed, images))
        print(filled("results.md", variants=variants, published={}), end="")


if __name__ == "__main__":
    main()
