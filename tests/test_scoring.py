"""Statistics against independent computations and against what they promise."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import binom
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, log_loss

from stages import scoring


def test_loss_and_accuracy_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    probabilities = np.exp(log_softmax(outputs.double().numpy(), axis=1))
    assert scoring.loss(outputs, labels) == pytest.approx(
        log_loss(labels, probabilities, labels=range(10)), rel=1e-12
    )
    assert scoring.accuracy(outputs, labels) == accuracy_score(labels, outputs.argmax(1))


def test_accuracy_interval_is_wilsons_formula():
    correct = np.arange(10_000) < 9_867
    p, n, z = 0.9867, 10_000, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert scoring.accuracy_interval(correct) == pytest.approx((middle - half, middle + half))


def answers(only_first: int, only_second: int, n: int = 1000):
    first, second = np.ones(n, bool), np.ones(n, bool)
    second[:only_first] = False
    first[only_first : only_first + only_second] = False
    return first, second


def test_mcnemar_is_twice_the_binomial_tail():
    result = scoring.paired_difference(*answers(12, 4))
    assert (result.only_first, result.only_second) == (12, 4)
    assert result.accuracy == pytest.approx(0.008)
    assert result.mcnemar_p == pytest.approx(2 * binom.cdf(4, 16, 0.5))
    assert scoring.paired_difference(*answers(0, 0)).mcnemar_p == 1.0
    reversed_result = scoring.paired_difference(*reversed(answers(12, 4)))
    assert (reversed_result.low, reversed_result.high) == pytest.approx((-result.high, -result.low))


def test_the_paired_interval_covers_the_truth_95_times_in_100():
    generator = np.random.default_rng(0)
    p_first_only, p_second_only, trials = 0.010, 0.004, 2_000
    draws = generator.multinomial(
        1_000, [p_first_only, p_second_only, 1 - p_first_only - p_second_only], size=trials
    )
    truth = p_first_only - p_second_only
    results = [scoring.paired_difference(*answers(a, b)) for a, b, _ in draws]
    covered = sum(result.low <= truth <= result.high for result in results) / trials
    assert 0.94 <= covered <= 0.97


def test_calibration_error_is_the_mean_gap_by_confidence():
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    correct = np.array([True] * 9 + [False] + [True] * 3 + [False] * 7)
    bins = scoring.calibration(confidence, correct)
    assert [part.count for part in bins] == [10, 10]
    assert scoring.calibration_error(bins) == pytest.approx((0.05 * 10 + 0.25 * 10) / 20)

    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1.0, 200_000)
    calibrated = generator.uniform(size=200_000) < confidence
    bins = scoring.calibration(confidence, calibrated)
    assert scoring.calibration_error(bins) < 0.01
    shares, means = calibration_curve(calibrated, confidence, n_bins=scoring.CALIBRATION_BINS)
    assert [part.accuracy for part in bins] == pytest.approx(shares)
    assert [part.confidence for part in bins] == pytest.approx(means)
