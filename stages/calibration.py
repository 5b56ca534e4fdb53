"""How sure a classifier is, and how often it is right; probabilities are arrays (N, 10).

By :mod:`stages.exact`, because NumPy's and SciPy's exp and log differ from processor to processor:
by little, but a search for a minimum may then go another way.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from stages import exact, scoring

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]  # (N,)


def logarithms(probabilities: Floats) -> Floats:
    """Finite also where a probability is too small for a float64."""
    above_0 = np.maximum(probabilities, np.finfo(np.float64).tiny)
    result: Floats = exact.log(torch.from_numpy(above_0)).numpy()
    return result


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """Mean over images, in nats, whatever the network was trained with."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return -math.fsum(logarithms(of_label)) / len(labels)


def calibration_error(probabilities: Floats, labels: Labels) -> float:
    correct = probabilities.argmax(1) == labels
    return scoring.calibration_error(scoring.calibration(probabilities.max(1), correct))


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities after their logits are divided by a temperature."""
    logits = torch.from_numpy(logarithms(probabilities) / temperature)
    result: Floats = exact.probabilities(logits).numpy()
    return result


def fitted_temperature(probabilities: Floats, labels: Labels) -> float:
    """The temperature with the least negative log likelihood on these images
    (C. Guo et al., "On calibration of modern neural networks", ICML 2017)."""
    logits = torch.from_numpy(logarithms(probabilities))
    chosen = torch.from_numpy(labels).long()

    def loss(factor: float) -> float:
        return exact.cross_entropy(logits * factor, chosen).item()

    # SciPy's bounded search is made of sums, products, quotients and square roots of floats
    found = minimize_scalar(loss, bounds=(0.02, 50.0), method="bounded", options={"xatol": 1e-7})
    return 1 / float(found.x)
