"""Statistics against independent computations and against their own promises."""

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.calibration import calibration_curve

from stages import scoring


def test_accuracy_interval_is_wilsons_formula():
    correct = np.arange(10_000) < 9_867
    p, n, z = 0.9867, 10_000, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert scoring.accuracy_interval(correct) == pytest.approx((middle - half, middle + half))
    for right, low, high in [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)]:
        found = scoring.accuracy_interval(np.arange(10) < right)  # few, and within 0 and 1
        assert found == pytest.approx((low, high), abs=1e-4)


def answers(only_first: int, only_second: int, n: int = 1000):
    first, second = np.ones(n, bool), np.ones(n, bool)
    second[:only_first] = False
    first[only_first : only_first + only_second] = False
    return first, second


@pytest.mark.parametrize(("only_first", "only_second"), [(12, 4), (4, 12), (40, 5), (6, 6), (0, 0)])
def test_a_difference_has_walds_interval_with_a_half_added_to_each_cell_and_mcnemars_p(
    only_first, only_second
):
    """It is positive where the first is better."""
    first, second = answers(only_first, only_second)
    found = scoring.paired_difference(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.accuracy == pytest.approx(first.mean() - second.mean())
    tail = binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)
    assert found.mcnemar_p == pytest.approx(min(1, 2 * tail))
    # As of 1,002 images, the values of whose differences are 1, -1 and 0
    both_or_none = 2 * (1_000 - only_first - only_second) + 2
    values = np.repeat([1, -1, 0], [2 * only_first + 1, 2 * only_second + 1, both_or_none])
    half = norm.ppf(0.975) * values.std() / 1_002**0.5
    middle = values.mean()
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_calibration_is_scikit_learns():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1.0, 200_000)
    calibrated = generator.uniform(size=200_000) < confidence
    bins = scoring.calibration(confidence, calibrated)
    assert scoring.calibration_error(bins) < 0.01
    shares, means = calibration_curve(calibrated, confidence, n_bins=scoring.CALIBRATION_BINS)
    assert [part.accuracy for part in bins] == pytest.approx(shares)
    assert [part.confidence for part in bins] == pytest.approx(means)


def test_there_are_15_bins_of_equal_width_and_certainty_is_in_the_last():
    confidence = np.array([0.0, 0.066, 0.067, 0.5, 0.93, 0.934, 1.0])
    correct = np.array([True, False, True, True, False, True, False])
    bins = scoring.calibration(confidence, correct)
    assert [part.count for part in bins] == [2, 1, 1, 1, 2]
    assert [part.accuracy for part in bins] == [0.5, 1.0, 1.0, 0.0, 0.5]
