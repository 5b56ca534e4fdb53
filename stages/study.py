"""The study's cells, one network each, and what several seeds of them say together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import bootstrap, t

from stages import files, scoring
from stages.errors import StageError
from stages.params import MODEL_NAMES, ModelName, Params

Floats = NDArray[np.float64]

# No majority of five annotators agrees on the label of these test images: C. Northcutt, A. Athalye,
# J. Mueller, "Pervasive label errors in test sets", NeurIPS 2021, labelerrors.com
NO_MAJORITY = (
    *(947, 1621, 1901, 2130, 2462, 2597, 2654, 3520),
    *(3558, 5937, 6651, 6783, 8527, 9679, 9729),
)
VALIDATION = "validation"
RESAMPLES = 2_000


@dataclass(frozen=True)
class Cell:
    """One trained network's answers on the images that score it."""

    seed: str
    loss: float  # the one it was trained with, on these images
    labels: NDArray[np.uint8]  # (N,)
    probabilities: Floats  # (N, 10)
    weights_sha256: str
    outputs_sha256: str

    @property
    def correct(self) -> scoring.Bools:
        result: scoring.Bools = self.probabilities.argmax(1) == self.labels
        return result

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class Row:
    """One recipe and model: its seeds, and a twin trained without the validation images."""

    recipe: str
    model: ModelName
    cells: Sequence[Cell]
    twin: Cell

    @property
    def correct(self) -> scoring.Bools:
        """Of each seed, each image: (S, N)."""
        return np.stack([cell.correct for cell in self.cells])

    @property
    def accuracy(self) -> "OverSeeds":
        return over_seeds([cell.accuracy for cell in self.cells])

    @property
    def loss(self) -> "OverSeeds":
        return over_seeds([cell.loss for cell in self.cells])


def folder(recipe: str, model: str, seed: int | str) -> Path:
    return files.CELLS / f"{recipe}-{model}-{seed}"


def load_rows(settings: Params) -> list[Row]:
    """Every row of the study.

    Raises:
        StageError: Cells are missing, or a folder is there that is none; names them.
    """
    seeds = [*map(str, settings.study.seeds), VALIDATION]
    wanted = {
        folder(recipe, model, seed)
        for recipe in settings.study.recipes
        for model in MODEL_NAMES
        for seed in seeds
    }
    missing = sorted(path.name for path in wanted if not (path / "scores.json").is_file())
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise StageError(
            f"{len(missing)} of the study's {len(wanted)} cells are missing ({shown}): `make study`"
            " computes them"
        )
    strangers = sorted(str(path) for path in files.CELLS.iterdir() if path.is_dir())
    strangers = [path for path in strangers if Path(path) not in wanted]
    if strangers:
        raise StageError(
            f"params.yaml's study no longer has {', '.join(strangers)}: remove it, or name its "
            "recipe and seed there"
        )
    rows = []
    for recipe in settings.study.recipes:
        for model in MODEL_NAMES:
            squashed = getattr(settings.recipes[recipe], model).softmax_before_loss
            *cells, twin = (load_cell(recipe, model, seed, squashed) for seed in seeds)
            rows.append(Row(recipe, model, cells, twin))
    return rows


def load_cell(recipe: str, model: str, seed: str, squashed: bool) -> Cell:
    """What stage cell or validation wrote.

    Args:
        squashed: Whether the outputs are probabilities already.
    """
    where = folder(recipe, model, seed)
    try:
        content = load((where / "outputs.safetensors").read_bytes())
        scores = json.loads((where / "scores.json").read_text(encoding="utf-8"))
        outputs, labels, loss = content["outputs"], content["labels"], float(scores["loss"])
        weights = files.sha256((where / "model.safetensors").read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise StageError(f"{where} is damaged ({reason}): remove it, and `make study`") from None
    values = outputs.astype(np.float64)
    return Cell(
        seed=seed,
        loss=loss,
        labels=labels,
        probabilities=values if squashed else softmax(values, axis=1),
        weights_sha256=weights,
        outputs_sha256=files.sha256(outputs.tobytes()),
    )


# --- over seeds ---


@dataclass(frozen=True)
class OverSeeds:
    """Mean and standard deviation over seeds, and two 95 % intervals by Student's t: of the mean,
    and of one more run. With one seed there is neither."""

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    next_low: float | None = None
    next_high: float | None = None


def over_seeds(values: Sequence[float]) -> OverSeeds:
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return OverSeeds(mean)
    sd = float(np.std(values, ddof=1))
    quantile = float(t.ppf((1 + scoring.CONFIDENCE) / 2, n - 1))
    half, next_half = quantile * sd * n**-0.5, quantile * sd * (1 + 1 / n) ** 0.5
    return OverSeeds(mean, sd, mean - half, mean + half, mean - next_half, mean + next_half)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one row minus that of another, seed by seed on the same images."""

    seeds: OverSeeds
    images_low: float  # 95 % interval of the mean, over images
    images_high: float
    p_values: Sequence[float]  # McNemar's, exact, of each seed


def difference(first: Row, second: Row) -> Difference:
    pairs = list(zip(first.correct, second.correct, strict=True))
    found = [scoring.paired_difference(a, b) for a, b in pairs]
    by_image = (first.correct.astype(float) - second.correct).mean(0)
    low, high = bootstrap_interval(by_image)
    return Difference(
        seeds=over_seeds([one.accuracy for one in found]),
        images_low=low,
        images_high=high,
        p_values=[one.mcnemar_p for one in found],
    )


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """95 % percentile interval of the mean of values (N,), which are drawn anew with replacement
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


# --- calibration ---


def logarithms(probabilities: Floats) -> Floats:
    """Finite also where a probability is too small for a float64."""
    result: Floats = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return result


def negative_log_likelihood(probabilities: Floats, labels: NDArray[np.uint8]) -> float:
    """Mean over images, in nats, whatever the network was trained with."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-logarithms(of_label).mean())


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities after their logits are divided by a temperature."""
    result: Floats = softmax(logarithms(probabilities) / temperature, axis=1)
    return result


def fitted_temperature(cell: Cell) -> float:
    """The temperature with the least negative log likelihood on the images that score ``cell``
    (C. Guo et al., "On calibration of modern neural networks", ICML 2017)."""
    logs = logarithms(cell.probabilities)
    chosen = np.arange(len(cell.labels)), cell.labels

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logs / np.exp(log_temperature), axis=1)[chosen].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.02), np.log(50)), method="bounded")
    return float(np.exp(found.x))


def calibration_error(probabilities: Floats, labels: NDArray[np.uint8]) -> float:
    correct = probabilities.argmax(1) == labels
    return scoring.calibration_error(scoring.calibration(probabilities.max(1), correct))


def missed(rows: Mapping[ModelName, Row]) -> list[dict[str, Any]]:
    """The test images that each seed of both models gets wrong, by index."""
    wrong = {model: (~row.correct).all(0) for model, row in rows.items()}
    every = np.logical_and.reduce(list(wrong.values()))
    labels = rows["lenet5"].cells[0].labels
    found = []
    for index in np.flatnonzero(every).tolist():
        means = {
            model: np.mean([cell.probabilities[index] for cell in row.cells], 0)
            for model, row in rows.items()
        }
        row: dict[str, int] = {"index": index, "label": int(labels[index])}
        row |= {model: int(mean.argmax()) for model, mean in means.items()}
        found.append(row | {"no_majority": int(index in NO_MAJORITY)})
    return found


def kept(count: int) -> scoring.Bools:
    """Which of the test images have a label that a majority of annotators gave."""
    mask = np.ones(count, bool)
    mask[[index for index in NO_MAJORITY if index < count]] = False
    return mask
