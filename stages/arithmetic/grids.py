"""Grids: whole multiples of a power of two, of which sums are exact.

See :mod:`stages.arithmetic.exact`.
"""

import math

import torch
from torch import Tensor

SINGLE, DOUBLE = 24, 53  # bits of float32 and float64: they hold all integers up to 2^24, 2^53
KERNEL = 5  # the height and width of each convolution's kernel
STEPS = 2.0**20  # in the largest operand of a fully connected layer
TINY = 2.0**-60  # smaller numbers get the grid of this one


def power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two above each of float32 ``x`` > 0: its exponent, plus one."""
    return (x.view(torch.int32) & 0x7F800000).view(torch.float32) * 2


def on_grid(x: Tensor, step: float | Tensor) -> Tensor:
    """``x`` rounded to whole multiples of ``step``: at most 2^22 of them, 2^51 in float64.

    Around 1.5 * 2^23 steps, neighbouring float32 are one step apart. So this addition rounds.
    """
    bits = SINGLE if x.dtype == torch.float32 else DOUBLE
    shift = 1.5 * 2.0 ** (bits - 1) * step
    return (x + shift).sub_(shift)


def step_for(largest: float, steps: float) -> float:
    """The step of a grid on which ``largest`` has at most so many steps, and at least half."""
    if not math.isfinite(largest):
        return largest
    return math.ldexp(1.0, math.frexp(max(largest, TINY) / steps)[1])


def total(x: Tensor, dim: int = 0) -> Tensor:
    """Sums over ``dim``, as float64. Only the elements are rounded, not the sums."""
    length, largest = max(x.shape[dim], 1), x.detach().abs().max().item()
    return on_grid(x.double(), step_for(largest, 2.0 ** (DOUBLE - 2) / length)).sum(dim)
