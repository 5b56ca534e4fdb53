"""The cells of the study, and their statistics over several seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, t

from dvc_kit.errors import StageError
from stages import scoring
from stages.base import files
from stages.base.params import ModelName
from study.settings import CELLS, PATH, VALIDATION, Study, cell_path

Floats = NDArray[np.float64]

RESAMPLES = 2_000


@dataclass(frozen=True)
class Cell:
    """One trained network: its scores, and its mistakes on the test images."""

    seed: str
    scores: Mapping[str, Any]
    sha256: Mapping[str, str]  # of its weights and outputs
    labels: Mapping[int, int]  # of the mistaken images, by index
    predicted: Mapping[int, int]

    @property
    def correct(self) -> scoring.Bools:
        """(N,)"""
        mask = np.ones(self.scores["test_images"], bool)
        mask[list(self.predicted)] = False
        return mask


@dataclass(frozen=True)
class Variant:
    """One recipe and model: the networks of its seeds, and a twin of the first one, trained without
    the validation images. An ablation has no twin."""

    recipe: str
    model: ModelName
    cells: Sequence[Cell]
    twin: Cell | None

    @property
    def correct(self) -> scoring.Bools:
        """For each seed and image, (S, N)."""
        return np.stack([cell.correct for cell in self.cells])

    @property
    def undoubted(self) -> float:
        """The mean accuracy on the images whose label is not in doubt."""
        return float(self.correct[:, with_majority(self.correct.shape[1])].mean())

    @property
    def accuracy(self) -> "OverSeeds":
        return over_seeds(self.correct.mean(1).tolist())

    @property
    def loss(self) -> "OverSeeds":
        return over_seeds([cell.scores["test_loss"] for cell in self.cells])


def load_variants(study: Study) -> list[Variant]:
    """All variants of the study.

    Raises:
        StageError: A cell is missing or damaged, or a file is not a cell of the study. Names them.
    """
    seeds: dict[tuple[str, ModelName], list[str]] = {
        (recipe, model): list(map(str, study.seeds_of(recipe)))
        for recipe in study.every_recipe
        for model in study.models
    }
    for (recipe, _), found in seeds.items():
        found += [VALIDATION] if recipe in study.recipes else []
    wanted = {cell_path(*name, seed) for name, found in seeds.items() for seed in found}
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise StageError(
            f"{len(missing)} of the study's {len(wanted)} cells are missing ({_named(missing)}): "
            "`make study` computes them"
        )
    strangers = [path for path in CELLS.glob("*.json") if path not in wanted]
    if strangers:
        raise StageError(
            f"{CELLS} has {len(strangers)} files that belong to no recipe and seed of {PATH} "
            f"({_named(strangers)}): remove them, or name their recipes and seeds there"
        )
    variants = []
    for name, found in seeds.items():
        cells = {seed: load_cell(*name, seed) for seed in found}
        twin = cells.pop(VALIDATION, None)
        variants.append(Variant(*name, list(cells.values()), twin))
    return variants


def _named(cells: Sequence[Path]) -> str:
    names = sorted(path.stem for path in cells)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def load_cell(recipe: str, model: str, seed: str) -> Cell:
    """A file of the stage cell, ablation or validation."""
    path = cell_path(recipe, model, seed)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: value for name, [value] in content["scores"].items()}
        index, label, predicted = (
            content["errors"][name] for name in ("index", "label", "predicted")
        )
        if len(index) != round(scores["test_images"] * (1 - scores["test_accuracy"])):
            raise ValueError("it does not list the errors that its accuracy counts")
        cell = Cell(
            seed,
            scores,
            sha256=files.read_fingerprints(content["sha256"]),
            labels=dict(zip(index, label, strict=True)),
            predicted=dict(zip(index, predicted, strict=True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise StageError(f"{path} is damaged ({reason}): remove it, and `make study`") from None
    return cell


# --- over seeds ---


@dataclass(frozen=True)
class OverSeeds:
    """Mean and standard deviation over seeds, and two 95 % intervals by Student's t: one of the
    mean, one of a further run. With one seed there are no intervals."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    next_low: float | None = None
    next_high: float | None = None


def over_seeds(values: Sequence[float]) -> OverSeeds:
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return OverSeeds(mean)
    sd = math.sqrt(math.fsum((value - mean) * (value - mean) for value in values) / (n - 1))
    # Assumed: after rounding to 6 digits, SciPy's quantile is the same everywhere
    quantile = float(t.ppf((1 + scoring.CONFIDENCE) / 2, n - 1))
    half, next_half = quantile * sd / math.sqrt(n), quantile * sd * math.sqrt(1 + 1 / n)
    return OverSeeds(mean, sd, mean - half, mean + half, mean - next_half, mean + next_half)


@dataclass(frozen=True)
class Difference:
    """The accuracy of one variant minus that of another: the seeds of both, the same images."""

    seeds: OverSeeds
    images_low: float  # 95 % interval of the mean, over images
    images_high: float
    p_values: Sequence[float]  # of the exact McNemar test, one per seed


def difference(first: Variant, second: Variant) -> Difference:
    others = {cell.seed: cell.correct for cell in second.cells}
    pairs = [(cell.correct, others[cell.seed]) for cell in first.cells if cell.seed in others]
    found = [scoring.paired_difference(a, b) for a, b in pairs]
    # Over all seeds together: of whole numbers, NumPy's sums are exact
    by_image = np.sum([a.astype(float) - b for a, b in pairs], 0)
    low, high = bootstrap_interval(by_image)
    return Difference(
        seeds=over_seeds([one.accuracy for one in found]),
        images_low=low / len(pairs),
        images_high=high / len(pairs),
        p_values=[one.mcnemar_p for one in found],
    )


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of values (N,), by resampling with replacement
    (B. Efron, Annals of Statistics 7, 1979)."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = bootstrap(
        (values,),
        np.mean,
        confidence_level=scoring.CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=50,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(result.low), float(result.high)


# --- images ---


def missed(variants: Mapping[ModelName, Variant]) -> list[dict[str, Any]]:
    """The test images that all models get wrong with every seed, by index. For each model, the
    answer is the one of most seeds."""
    wrong = [~variant.correct for variant in variants.values()]
    any_cell, found = next(iter(variants.values())).cells[0], []
    for index in np.flatnonzero(np.concatenate(wrong).all(0)).tolist():
        entry: dict[str, int] = {"index": index, "label": any_cell.labels[index]}
        for model, variant in variants.items():
            entry[model] = mode(cell.predicted[index] for cell in variant.cells)
        found.append(entry | {"no_majority": int(index in scoring.NO_MAJORITY)})
    return found


def with_majority(count: int) -> scoring.Bools:
    """Whether a majority of annotators agrees on the label, for the first ``count`` test images."""
    mask = np.ones(count, bool)
    mask[[index for index in scoring.NO_MAJORITY if index < count]] = False
    return mask
