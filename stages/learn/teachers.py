"""Teachers: LeNet-5 networks whose answers another network learns beside the labels.

G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531
(2015), section 2. The teachers see the same distorted images as their student, at each step.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from stages.arithmetic import losses
from stages.base.params import Distillation
from stages.networks.models import Network


def seed(of_student: int, number: int) -> int:
    """The seed of teacher ``number``, other than those of other students and teachers."""
    return int(hashlib.sha256(f"{of_student} teacher {number}".encode()).hexdigest()[:8], 16)


@torch.no_grad()
def answers(teachers: Sequence[Network], images: Tensor, temperature: float) -> Tensor:
    """The mean probabilities (B, 10), float64, of logits that are divided by ``temperature``.

    Args:
        images: Normalised, (B, 1, 32, 32).
    """
    scale = 1 / temperature
    found = [losses.probabilities(teacher(images) * scale) for teacher in teachers]
    total = found[0]
    for one in found[1:]:
        total = total + one
    return total * (1 / len(found))


def loss(
    outputs: Tensor, labels: Tensor, taught: Tensor | None, settings: Distillation | None
) -> Tensor:
    """The mean loss of logits (B, 10), float64: of the labels (B,), and of the teachers' answers.

    The gradient of the second shrinks with the square of the temperature, so it is multiplied by
    that.
    """
    of_labels = losses.cross_entropy(outputs, labels)
    if taught is None or settings is None:
        return of_labels
    temperature, weight = settings.temperature, settings.weight
    of_answers = losses.soft_cross_entropy(outputs * (1 / temperature), taught)
    return of_labels * (1 - weight) + of_answers * (weight * temperature * temperature)
