"""Optimizers with the same bits everywhere: see :mod:`stages.networks.exact`."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and weight decay, like ``torch.optim.SGD``."""

    def __init__(
        self, weights: Iterable[Tensor], lr: float, momentum: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state, gradient = self.state[weight], weight.grad
                if group["weight_decay"]:
                    gradient = gradient + weight * group["weight_decay"]
                if not state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"].mul_(group["momentum"]).add_(gradient)
                weight.sub_(velocity * group["lr"])


class AdamW(Optimizer):
    """Adam with decoupled weight decay, like ``torch.optim.AdamW``."""

    def __init__(
        self,
        weights: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__(weights, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                state, gradient = self.state[weight], weight.grad
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                    state["square"] = torch.zeros_like(weight)
                    state["powers"] = (
                        1.0,
                        1.0,
                    )  # of the betas: products, as pow may round
                power1, power2 = state["powers"]
                state["powers"] = power1, power2 = power1 * beta1, power2 * beta2
                mean = state["mean"].mul_(beta1).add_(gradient * (1 - beta1))
                square = state["square"].mul_(beta2).add_(gradient * gradient * (1 - beta2))
                # PyTorch's square root may be off by one bit. In float64, rounding removes that
                root = square.double().sqrt().float().mul_(1 / math.sqrt(1 - power2)).add_(1e-8)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_((mean * (group["lr"] / (1 - power1))).div_(root))
