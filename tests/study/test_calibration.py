"""How sure a classifier is, in hand-made cases."""

import math

import numpy as np
import pytest

from study import cell

LABELS = np.array([0, 3, 9], np.uint8)
TINY = np.finfo(np.float64).tiny


def rows(*of_label):
    """Probabilities with these ones for LABELS, and the rest shared out among the other digits."""
    result = np.repeat((1 - np.array(of_label)) / 9, 10).reshape(-1, 10)
    result[np.arange(len(of_label)), LABELS] = of_label
    return result


def answered(right_share, confidence, size=1_000):
    """Answers of one confidence, of which a share is right."""
    labels = (np.arange(size) % 10).astype(np.uint8)
    predicted = np.where(np.arange(size) < right_share * size, labels, (labels + 1) % 10)
    probabilities = np.full((size, 10), (1 - confidence) / 9)
    probabilities[np.arange(size), predicted] = confidence
    return probabilities, labels


@pytest.mark.parametrize("of_label", [(0.9, 0.5, 0.05), (1.0, 1.0, 0.0)])
def test_negative_log_likelihood_is_a_mean_and_never_infinite(of_label):
    found = cell.negative_log_likelihood(rows(*of_label), LABELS)
    expected = -sum(math.log(max(probability, TINY)) for probability in of_label) / 3
    assert found == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(cell.scaled(rows(*of_label), 2.0)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])  # a high one makes less sure
def test_scaled_probabilities_are_powers_that_sum_to_1(temperature):
    probabilities = rows(0.9, 0.5, 0.05)
    powers = probabilities ** (1 / temperature)
    expected = powers / powers.sum(1, keepdims=True)
    assert np.allclose(cell.scaled(probabilities, temperature), expected, rtol=1e-12)


@pytest.mark.parametrize(("right", "confidence"), [(0.7, 0.97), (0.9, 0.6), (0.8, 0.8)])
def test_the_temperature_brings_confidence_to_the_share_of_right_answers(right, confidence):
    probabilities, labels = answered(right, confidence)
    temperature = cell.fitted_temperature(probabilities, labels)
    # One confidence: the best temperature makes it the share of right answers
    logit, best = (math.log(p / ((1 - p) / 9)) for p in (confidence, right))
    assert temperature == pytest.approx(logit / best, rel=1e-3)
    scaled = cell.scaled(probabilities, temperature)
    assert scaled.max(1) == pytest.approx(np.full(len(labels), right), abs=1e-3)


@pytest.mark.parametrize(
    ("right", "confidence", "expected"),
    [
        (1.0, 0.11, 0.02),  # always right: never sure enough
        (0.1, 0.97, 50),  # no better than chance: always too sure
    ],
)
def test_a_temperature_without_end_stops_at_50_or_its_inverse(right, confidence, expected):
    found = cell.fitted_temperature(*answered(right, confidence))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        *([[(right, sure, 1_000)], abs(right - sure)]
          for right, sure in [(0.7, 0.97), (0.9, 0.6), (0.8, 0.8), (0.0, 1.0), (1.0, 1.0)]),
        # Bins are weighted by their images. Too sure in one does not make up for too unsure in one
        ([(0.5, 0.9, 900), (1.0, 0.5, 100)], 0.9 * 0.4 + 0.1 * 0.5),
        # Within a bin, it does
        ([(1.0, 0.61, 1_000), (0.2, 0.62, 1_000)], 0.615 - 0.6),
    ],
)  # fmt: skip
def test_calibration_error_is_the_distance_of_confidence_and_right_share(groups, expected):
    both = zip(*(answered(*group) for group in groups), strict=True)
    found = cell.calibration_error(*(np.concatenate(parts) for parts in both))
    assert found == pytest.approx(expected, abs=1e-12)
