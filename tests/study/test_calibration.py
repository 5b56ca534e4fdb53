"""How sure a classifier is, in hand-made cases."""

import math

import numpy as np
import pytest

from study import cell

LABELS = np.array([0, 3, 9], np.uint8)


def rows(*of_label):
    """Probabilities with these ones for LABELS, and the rest shared out among the other digits."""
    result = np.empty((len(of_label), 10))
    for row, label, probability in zip(result, LABELS, of_label, strict=True):
        row[:] = (1 - probability) / 9
        row[label] = probability
    return result


def answered(right_share, confidence, size=1_000):
    """Answers of one confidence, of which a share is right."""
    labels = (np.arange(size) % 10).astype(np.uint8)
    predicted = np.where(np.arange(size) < right_share * size, labels, (labels + 1) % 10)
    probabilities = np.full((size, 10), (1 - confidence) / 9)
    probabilities[np.arange(size), predicted] = confidence
    return probabilities, labels


def test_negative_log_likelihood_is_the_mean_over_images_of_minus_the_log_of_the_labels():
    found = cell.negative_log_likelihood(rows(0.9, 0.5, 0.05), LABELS)
    expected = -(math.log(0.9) + math.log(0.5) + math.log(0.05)) / 3
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_label_of_probability_0_costs_much_and_not_infinitely_much():
    found = cell.negative_log_likelihood(rows(1.0, 1.0, 0.0), LABELS)
    assert found == pytest.approx(-math.log(np.finfo(np.float64).tiny) / 3)
    assert np.isfinite(cell.scaled(rows(1.0, 1.0, 0.0), 2.0)).all()


def test_scaled_probabilities_are_powers_that_sum_to_1():
    probabilities = rows(0.9, 0.5, 0.05)
    for temperature in (0.5, 1.0, 2.0):
        powers = probabilities ** (1 / temperature)
        expected = powers / powers.sum(1, keepdims=True)
        assert np.allclose(cell.scaled(probabilities, temperature), expected, rtol=1e-12)
    assert cell.scaled(probabilities, 2.0)[0, 0] < 0.9  # a high one makes less sure
    assert cell.scaled(probabilities, 0.5)[0, 0] > 0.9


@pytest.mark.parametrize(("right", "confidence"), [(0.7, 0.97), (0.9, 0.6), (0.8, 0.8)])
def test_the_temperature_brings_confidence_to_the_share_of_right_answers(right, confidence):
    probabilities, labels = answered(right, confidence)
    temperature = cell.fitted_temperature(probabilities, labels)
    # One confidence: the best temperature makes it the share of right answers
    logit, best = (math.log(p / ((1 - p) / 9)) for p in (confidence, right))
    assert temperature == pytest.approx(logit / best, rel=1e-3)
    if right < confidence:
        assert temperature > 1.5  # too sure
    elif right > confidence:
        assert temperature < 0.7  # not sure enough
    scaled = cell.scaled(probabilities, temperature)
    assert scaled.max(1) == pytest.approx(np.full(len(labels), right), abs=1e-3)
    before, after = (cell.negative_log_likelihood(p, labels) for p in (probabilities, scaled))
    assert after <= before + 1e-9


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


def test_calibration_error_is_the_distance_of_confidence_and_share_of_right_answers():
    for right, confidence in [(0.7, 0.97), (0.9, 0.6), (0.8, 0.8), (0.0, 1.0), (1.0, 1.0)]:
        found = cell.calibration_error(*answered(right, confidence))
        assert found == pytest.approx(abs(right - confidence), abs=1e-12)


def test_bins_are_weighted_by_their_images_and_each_distance_counts_by_its_size():
    much, little = answered(0.5, 0.9, 900), answered(1.0, 0.5, 100)  # 0.4 too sure, 0.5 too unsure
    both = [np.concatenate(parts) for parts in zip(much, little, strict=True)]
    assert cell.calibration_error(*both) == pytest.approx(0.9 * 0.4 + 0.1 * 0.5)
    # Within a bin they cancel out
    same = [np.concatenate(parts) for parts in zip(answered(1.0, 0.61), answered(0.2, 0.62),
                                                   strict=True)]  # fmt: skip
    assert cell.calibration_error(*same) == pytest.approx(0.615 - 0.6)
