"""tanh, ReLU, exp and log, made of operations that IEEE 754 defines.

Those of a library are rounded differently on different processors. Here, each is elementwise, and
adds a fixed number of terms in a fixed order: see :mod:`stages.arithmetic.exact`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_exporting


def rational_tanh(x: Tensor, out: Tensor) -> Tensor:
    """tanh of float32, within 2.4e-5: a polynomial of degree 7 over one of degree 4."""
    x = x.clamp(-6, 6)
    q = x * x
    torch.mul(q, -0.0001624208979480252, out=out).add_(0.06565358587676728)
    out.mul_(q).add_(7.174578374686297).mul_(q).add_(65.83511550186887).mul_(x)
    below = torch.add(q, 29.110855944998136, out=x).mul_(q).add_(65.83824475275695)
    return out.div_(below)


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        t = rational_tanh(x, torch.empty_like(x))
        ctx.save_for_backward(t)
        return t

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        to_x: Tensor = (t * t).neg_().add_(1).mul_(gradient)
        return to_x


def tanh(x: Tensor) -> Tensor:
    if is_exporting():
        return rational_tanh(x.detach(), torch.empty_like(x))
    result: Tensor = Tanh.apply(x)  # type: ignore[no-untyped-call]
    return result


class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        to_x: Tensor = gradient * (x >= 0)
        return to_x


def relu(x: Tensor) -> Tensor:
    """The larger of x and 0. Where x is 0, the gradient passes. clamp's own gradient is slower."""
    if is_exporting():
        return x.clamp(min=0)
    result: Tensor = Relu.apply(x)  # type: ignore[no-untyped-call]
    return result


def exp(x: Tensor) -> Tensor:
    """exp of float64 up to 0: 2^n times the Taylor series of exp(r), with |r| <= ln(2) / 2."""
    x = x.clamp(min=-700.0)
    n = (x * 1.4426950408889634).round_()
    r = (x - n * 0.6931471803691238).sub_(n * 1.9082149292705877e-10)  # ln 2 in two parts
    series = torch.full_like(r, 1 / math.factorial(13))
    for power in range(12, -1, -1):
        series.mul_(r).add_(1 / math.factorial(power))
    return series.mul_(((n.nan_to_num().long() + 1023) << 52).view(torch.float64))


def log(x: Tensor) -> Tensor:
    """log of float64 above 0: x = m 2^n, and log m = 2 artanh((m - 1) / (m + 1))."""
    m, n = torch.frexp(x)
    m, n = m * 2, n.double() - 1
    half = (m > math.sqrt(2)).double()
    m, n = m * (1 - 0.5 * half), n + half
    t = (m - 1) / (m + 1)
    q = t * t
    series = torch.full_like(q, 1 / 25)
    for power in range(23, 0, -2):
        series.mul_(q).add_(1 / power)
    return (series * t).mul_(2).add_(n * 0.6931471805599453)


def sum_of_columns(x: Tensor) -> Tensor:
    """(B, N) to (B, 1), added from left to right."""
    result = x[:, :1]
    for column in range(1, x.shape[1]):
        result = result + x[:, column : column + 1]
    return result
