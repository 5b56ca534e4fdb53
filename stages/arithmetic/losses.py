"""Softmax and cross-entropy, and their gradients."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_exporting

from stages.arithmetic import choice
from stages.arithmetic.functions import sum_of_columns


def probabilities(x: Tensor) -> Tensor:
    """softmax of (B, N), as float64."""
    p: Tensor = choice.of(x).softmax(x)[1]
    return p


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        p = probabilities(x).float()
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        to_x: Tensor = (gradient - sum_of_columns(gradient * p)) * p
        return to_x


def softmax(x: Tensor) -> Tensor:
    """(B, N) to probabilities (B, N), with a gradient."""
    if is_exporting():
        return x.softmax(1)
    result: Tensor = Softmax.apply(x)  # type: ignore[no-untyped-call]
    return result


def _mean(losses: Tensor) -> Tensor:
    """The mean of (B, 1), float64. fsum rounds its sum once, at the end."""
    mean = math.fsum(losses.flatten().tolist()) / len(losses)
    return torch.tensor(mean, dtype=torch.float64, device=losses.device)


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:
        x, p, log_sums = choice.of(x).softmax(x)
        labels = labels.unsqueeze(1)
        ctx.save_for_backward(p, labels)
        return _mean(log_sums - x.gather(1, labels))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, labels = ctx.saved_tensors
        result = p.scatter(1, labels, p.gather(1, labels) - 1)
        return (result * (gradient * (1 / len(p)))).float(), None


def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, float64, of -log softmax(x)[label]; x (B, N), labels (B,)."""
    result: Tensor = CrossEntropy.apply(x, labels)  # type: ignore[no-untyped-call]
    return result


class SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor) -> Tensor:
        x, p, log_sums = choice.of(x).softmax(x)
        ctx.save_for_backward(p, targets)
        return _mean(sum_of_columns((log_sums - x) * targets))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, targets = ctx.saved_tensors
        return ((p - targets) * (gradient * (1 / len(p)))).float(), None


def soft_cross_entropy(x: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch, float64, of -sum(targets * log softmax(x)); x (B, N).

    Args:
        targets: Probabilities (B, N), float64. Each row sums to 1.
    """
    result: Tensor = SoftCrossEntropy.apply(x, targets)  # type: ignore[no-untyped-call]
    return result
