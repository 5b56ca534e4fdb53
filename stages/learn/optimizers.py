"""Optimizers and schedules with the same bits everywhere: see :mod:`stages.arithmetic.exact`.

Not those of ``torch.optim``: a C library's cosine and a fused square root are rounded differently
on different processors, and its base class imports a compiler, which takes a second.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Optimizer:
    """Moves weights against their gradients.

    All weights are updated as a single vector, since each operation has a cost of its own.

    Attributes:
        steps: How many steps were made.
    """

    def __init__(self, weights: Iterable[Tensor], decay: float) -> None:
        self.weights, self.decay, self.steps = list(weights), decay, 0
        self.moments: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step, with this learning rate."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        moves, start = self._moves(self._vector(gradients), rate), 0
        for weight in self.weights:
            end = start + weight.numel()
            weight.sub_(moves[start:end].view_as(weight))
            start = end
        self.steps += 1

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "moments": self.moments}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.steps = saved["steps"]
        device = self.weights[0].device
        self.moments = {name: moment.to(device) for name, moment in saved["moments"].items()}

    def _moves(self, gradient: Tensor, rate: float) -> Tensor:
        """What is subtracted from the weights."""
        raise NotImplementedError

    @staticmethod
    def _vector(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])

    def _moment(self, name: str, like: Tensor) -> Tensor:
        if name not in self.moments:
            self.moments[name] = torch.zeros_like(like)
        return self.moments[name]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and weight decay, like ``torch.optim.SGD``."""

    def __init__(self, weights: Iterable[Tensor], momentum: float, decay: float = 0.0) -> None:
        super().__init__(weights, decay)
        self.momentum = momentum

    def _moves(self, gradient: Tensor, rate: float) -> Tensor:
        if self.decay:
            gradient = gradient + self._vector(self.weights) * self.decay
        velocity = self._moment("velocity", gradient).mul_(self.momentum).add_(gradient)
        return velocity * rate


class AdamW(Optimizer):
    """Adam with decoupled weight decay, like ``torch.optim.AdamW``."""

    def __init__(self, weights: Iterable[Tensor], betas: tuple[float, float], decay: float) -> None:
        super().__init__(weights, decay)
        self.betas = betas
        self.powers = [1.0, 1.0]  # of the betas: products, as pow may round

    def _moves(self, gradient: Tensor, rate: float) -> Tensor:
        beta1, beta2 = self.betas
        power1, power2 = self.powers = [
            power * beta for power, beta in zip(self.powers, self.betas, strict=True)
        ]
        mean = self._moment("mean", gradient).mul_(beta1).add_(gradient * (1 - beta1))
        square = self._moment("square", gradient)
        square.mul_(beta2).add_((gradient * gradient).mul_(1 - beta2))
        # PyTorch's square root may be off by one bit. In float64, rounding removes that
        root = square.double().sqrt_().float().mul_(1 / math.sqrt(1 - power2)).add_(1e-8)
        for weight in self.weights:
            weight.mul_(1 - rate * self.decay)
        return (mean * (rate / (1 - power1))).div_(root)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"powers": self.powers}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict(saved)
        self.powers = saved["powers"]


def constant(rate: float, step: int) -> float:
    """The learning rate of every step."""
    return rate


def one_cycle(largest: float, steps: int, step: int) -> float:
    """The learning rate of a step, counted from 0: a linear rise to ``largest``, and a fall.

    As ``torch.optim.lr_scheduler.OneCycleLR``, with its defaults and a first tenth that rises,
    after L. N. Smith, N. Topin, "Super-convergence", arXiv:1708.07120 (2018). Linear, since the
    cosine of the C library is not the same everywhere.
    """
    first, peak, end = largest / 25, 0.1 * steps - 1, steps - 1
    if step <= peak:
        return (largest - first) * (step / peak) + first
    last = first / 1e4
    return (last - largest) * ((step - peak) / (end - peak)) + largest
