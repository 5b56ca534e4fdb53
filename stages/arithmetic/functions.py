"""tanh, ReLU, exp and log, made of operations that IEEE 754 defines.

Those of a library are rounded differently on different processors. Here, each is elementwise, and
adds a fixed number of terms in a fixed order: see :mod:`stages.arithmetic.exact`.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_exporting


class Numbers(Protocol):
    """A tensor, or the numbers that a compiled kernel will have: both compute alike."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def clamp(self, min: Any = None, max: Any = None) -> Any: ...


N = TypeVar("N", bound=Numbers)


def rational_tanh(x: N) -> N:
    """tanh of float32, within 2.4e-5: a polynomial of degree 7 over one of degree 4."""
    x = x.clamp(-6.0, 6.0)
    q = x * x
    above = (q * -0.0001624208979480252 + 0.06565358587676728) * q + 7.174578374686297
    above = (above * q + 65.83511550186887) * x
    below = (q + 29.110855944998136) * q + 65.83824475275695
    result: N = above / below
    return result


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        t = rational_tanh(x)
        ctx.save_for_backward(t)
        return t

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        to_x: Tensor = (t * t).neg_().add_(1).mul_(gradient)
        return to_x


def tanh(x: Tensor) -> Tensor:
    if is_exporting():
        return rational_tanh(x.detach())
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


def power(n: Tensor) -> Tensor:
    """2 to whole numbers of -1022 to 1023, float64."""
    return ((n.nan_to_num().long() + 1023) << 52).view(torch.float64)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """m and n of float64 x = m * 2**n, with 1 <= m < 2."""
    m, n = torch.frexp(x)
    return m * 2, n.double() - 1


def exp(x: N, power: Callable[[N], N] = power) -> N:  # type: ignore[assignment]
    """exp of float64 up to 0: 2^n times the Taylor series of exp(r), with |r| <= ln(2) / 2."""
    x = x.clamp(min=-700.0)
    n = (x * 1.4426950408889634).round()
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10  # ln 2 in two parts
    series: Any = 1 / math.factorial(13)
    for exponent in range(12, -1, -1):
        series = r * series + 1 / math.factorial(exponent)
    result: N = series * power(n)
    return result


def log(x: N, split: Callable[[N], tuple[N, N]] = split) -> N:  # type: ignore[assignment]
    """log of float64 above 0: x = m 2^n, and log m = 2 artanh((m - 1) / (m + 1))."""
    m: Any
    n: Any
    m, n = split(x)
    half = (m > math.sqrt(2)).double()
    m, n = m * (half * -0.5 + 1.0), n + half
    t = (m - 1.0) / (m + 1.0)
    q = t * t
    series: Any = 1 / 25
    for exponent in range(23, 0, -2):
        series = q * series + 1 / exponent
    result: N = (series * t) * 2.0 + n * 0.6931471805599453
    return result


def sum_of_columns(x: Tensor) -> Tensor:
    """(B, N) to (B, 1), added from left to right."""
    result = x[:, :1]
    for column in range(1, x.shape[1]):
        result = result + x[:, column : column + 1]
    return result
