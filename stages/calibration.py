"""How sure a classifier is, and how often it is right; probabilities are arrays (N, 10)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from stages import scoring

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]  # (N,)


def logarithms(probabilities: Floats) -> Floats:
    """Finite also where a probability is too small for a float64."""
    result: Floats = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return result


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """Mean over images, in nats, whatever the network was trained with."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-logarithms(of_label).mean())


def calibration_error(probabilities: Floats, labels: Labels) -> float:
    correct = probabilities.argmax(1) == labels
    return scoring.calibration_error(scoring.calibration(probabilities.max(1), correct))


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities after their logits are divided by a temperature."""
    result: Floats = softmax(logarithms(probabilities) / temperature, axis=1)
    return result


def fitted_temperature(probabilities: Floats, labels: Labels) -> float:
    """The temperature with the least negative log likelihood on these images
    (C. Guo et al., "On calibration of modern neural networks", ICML 2017)."""
    logs = logarithms(probabilities)
    chosen = np.arange(len(labels)), labels

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logs / np.exp(log_temperature), axis=1)[chosen].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.02), np.log(50)), method="bounded")
    return float(np.exp(found.x))
