"""study/report/study.html: the report of the study as one page, with every seed to point at."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import scoring
from stages.base.params import TITLES
from stages.show import figures, page
from study.comparison import Variant
from study.filling import filled
from study.settings import REPORT, Study

PATH = REPORT / "study.html"
MISSED = '<div id="missed" class="digits"></div>'


def _errors(variant: Variant) -> dict[str, Any]:
    """In per cent of the test images: the scale is logarithmic in the errors."""
    published = variant.recipe == "published"
    return {
        "seeds": [cell.seed for cell in variant.cells],
        "errors": [100 - 100 * cell.scores["test_accuracy"] for cell in variant.cells],
        "mean": 100 - 100 * variant.accuracy.mean,
        "shown": f"{100 * variant.accuracy.mean:.2f}",
        "published": 100 - 100 * scoring.PUBLISHED[variant.model][1] if published else None,
    }


def html(
    study: Study,
    variants: Sequence[Variant],
    report: str,
    missed: Sequence[Mapping[str, Any]],
    images: NDArray[np.uint8],
) -> str:
    """The page.

    Args:
        report: Markdown, whose two pictures the page draws itself.
        missed: From :func:`study.comparison.missed`.
        images: All test images (N, H, W).
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for variant in variants:
        found.setdefault(variant.recipe, {})[variant.model] = _errors(variant)
    shown = [one for models in found.values() for one in models.values()]
    errors = [error for one in shown for error in [*one["errors"], one["published"]] if error]
    low, high = min(errors) / 1.3, max(errors) * 1.2
    groups = {"Recipes": study.recipes, "Recipe record without one ingredient": study.ablations}
    data = {
        "titles": {name: TITLES[name] for name in study.models},
        "scale": [low, high],
        "ticks": list(figures.error_ticks(low, high)),
        "groups": [
            {
                "title": title,
                "recipes": [
                    {"recipe": recipe.replace("_", " "), "models": found[recipe]}
                    for recipe in recipes
                ],
            }
            for title, recipes in groups.items()
            if recipes
        ],
        "missed": [_answers(row, study.models) for row in missed],
        **page.sprite(images[[row["index"] for row in missed]]),
    }
    body = page.with_contents(page.markdown(report), PATH)
    pictures = {"story": filled("story.html").rstrip(), "missed": MISSED}
    body = re.sub(r'<p><img src="(\w+)\.png"[^>]*></p>', lambda image: pictures[image[1]], body)
    return page.assemble("The study", body, data, ["charts.js", "study.js"])


def _answers(row: Mapping[str, Any], models: Sequence[str]) -> str:
    doubt = "*" if row["no_majority"] else ""
    said = [f"{TITLES[name]} {row[name]}" for name in models]
    return f"no. {row['index']}: {row['label']}{doubt}; {', '.join(said)}"
