"""Metrics and statistics of classifiers on one test set. METRICS lists those of the comparison.

They are the same on every processor. SciPy's intervals and p values might differ in their last
bits, so it is assumed that :func:`stages.base.files.rounded` removes such a difference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.networks import MODELS

if TYPE_CHECKING:
    from stages.networks.models import Answers

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of (1 + CONFIDENCE) / 2
CALIBRATION_BINS = 15
# No majority of five annotators agrees on the label of these test images: C. Northcutt, A. Athalye,
# J. Mueller, "Pervasive label errors in test sets", NeurIPS 2021, labelerrors.com
NO_MAJORITY = (
    *(947, 1621, 1901, 2130, 2462, 2597, 2654, 3520),
    *(3558, 5937, 6651, 6783, 8527, 9679, 9729),
)
# Loss and accuracy on the test images, from the published experiment
PUBLISHED = {name: model.published for name, model in MODELS.items() if model.published}

Bools = NDArray[np.bool_]


def accuracy(correct: Bools) -> float:
    """The share of correct answers."""
    return float(correct.mean())


def accuracy_interval(correct: Bools) -> tuple[float, float]:
    """Wilson's interval of the share of correct answers (E. B. Wilson, JASA 22, 1927)."""
    from scipy.stats import binomtest

    result = binomtest(int(correct.sum()), len(correct))
    interval = result.proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class CalibrationBin:
    count: int
    confidence: float  # mean over the bin
    accuracy: float


def calibration(confidence: NDArray[np.float64], correct: Bools) -> list[CalibrationBin]:
    """Bins of equal width over the confidence of the predicted class, without the empty ones."""
    index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        CalibrationBin(
            count, math.fsum(confidence[inside]) / count, int(correct[inside].sum()) / count
        )
        for inside in (index == number for number in range(CALIBRATION_BINS))
        if (count := int(inside.sum()))
    ]


def calibration_error(bins: list[CalibrationBin]) -> float:
    """Expected calibration error (C. Guo et al., ICML 2017): mean distance of confidence and
    accuracy, with the count of each bin as its weight."""
    total = sum(part.count for part in bins)
    return math.fsum(part.count * abs(part.confidence - part.accuracy) for part in bins) / total


@dataclass(frozen=True)
class Metric:
    """A number about the answers of one model."""

    title: str  # of its column in the comparison; empty: it has none
    form: str  # of its values there
    of: Callable[["Answers"], float]
    shown: bool = False  # by `dvc metrics show`, and by MLflow as a score of the model


def errors(answers: "Answers") -> int:
    """How many images it gets wrong."""
    return int((~answers.correct).sum())


# A new metric is one function and one line here. All are in evaluation.json or, if they are shown,
# in metrics.json, and in MLflow
METRICS = {
    "loss": Metric("test loss", ".4f", lambda answers: answers.loss, shown=True),
    "accuracy": Metric("test accuracy", ".2%", lambda answers: accuracy(answers.correct), True),
    "calibration_error": Metric(
        "calibration error",
        ".4f",
        lambda answers: calibration_error(calibration(answers.confidence, answers.correct)),
    ),
    "errors": Metric("", "", errors),
}


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of the first of two classifiers minus that of the second, on the same images."""

    accuracy: float
    low: float
    high: float
    only_first: int  # images that only the first gets right
    only_second: int
    mcnemar_p: float


def paired_difference(first: Bools, second: Bools) -> PairedDifference:
    """Compare two classifiers by the images on which they disagree.

    The interval is that of A. Agresti and Y. Min (Statistics in Medicine 24, 2005): Wald's, with
    1/2 added to each cell of the 2x2 table. It keeps its coverage also if the classifiers disagree
    on few images. The p value is that of the exact test of Q. McNemar (Psychometrika 12, 1947), a
    two-sided binomial test at 1/2.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = len(first)
    a, b, total = only_first + 0.5, only_second + 0.5, n + 2.0
    center = (a - b) / total
    half_width = NORMAL_QUANTILE * math.sqrt(a + b - (a - b) ** 2 / total) / total
    decisive = only_first + only_second
    return PairedDifference(
        accuracy=(only_first - only_second) / n,
        low=center - half_width,
        high=center + half_width,
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=float(binomtest(only_first, decisive).pvalue) if decisive else 1.0,
    )
