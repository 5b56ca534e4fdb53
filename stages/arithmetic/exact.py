"""Arithmetic whose results have the same bits on every processor and with any number of threads.

A floating-point sum depends on its order, and each library, vector width and number of threads
has its own order. Here no sum is ever rounded, so the order does not matter:

1. A number is *on the grid* of step d, a power of two, if it is a whole multiple of d.
2. The product of a number on the grid of step c and one on that of step d is on the grid of step
   c d, and so is every sum of such products.
3. A float32 holds every multiple of s up to 2^24 s in size exactly, a float64 up to 2^53 s.
4. So if the sizes of all products add up to at most that, then every partial sum is a float, in
   every order, grouping and slicing. Nothing is rounded. A fused multiply-add changes nothing
   either. Each way of adding gives the one exact sum.

Before a product, its operands are therefore rounded to grids, by
:func:`~stages.arithmetic.grids.on_grid`. They are as fine as point 4 allows. The step follows from
the largest size or from an exact sum of sizes, never from a rounded sum.

Everything else is addition, multiplication, division, rounding and comparison, element by element.
IEEE 754 defines these to the last bit. exp, log and tanh are made of them, because those of a
library are rounded differently on different processors. Even its square root is.

Two things are assumed. PyTorch's eager operations follow IEEE 754, one operation at a time, and do
not flush subnormal numbers to zero. A matrix product is a sum of products: there is no Strassen
algorithm, and no operand is shortened to TF32 or bfloat16. Two kinds of operations are not used:
those that may fuse a product and a sum (addcmul, lerp, `add` with `alpha`), and a division by a
Python number (some devices multiply by its reciprocal instead). Convolutions are written as matrix
products, because those of a library may use a Winograd or a Fourier transform.

NaN passes through all of this into the loss. So does infinity, unless tanh or ReLU turns it into a
finite number.

This module chooses the grids. :mod:`stages.arithmetic.reference` then says what is computed, and
:mod:`stages.arithmetic.kernels` computes the same, compiled and on all cores.

An exported model holds PyTorch's own operations instead of these.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from stages.arithmetic import choice, reference, workers
from stages.arithmetic.functions import rational_tanh
from stages.arithmetic.grids import (
    DOUBLE,
    SINGLE,
    STEPS,
    TINY,
    on_grid,
    power_of_two,
    step_for,
    total,
)

GRADIENT = 512  # the most steps in the gradient of a convolution's outputs
FEWEST = 32  # the fewest steps in an operand of a convolution: with fewer, the sum is too long
LONGEST = 2**13  # numbers in a sum of a fully connected layer: 20 + 20 + 13 = 53 bits


def largest_of(x: Tensor) -> float:
    """The largest |x|; NaN if there is one."""
    low, high = x.detach().aminmax()
    return torch.maximum(-low, high).item()


# Fully connected layers: in float64, with 20 bits for each operand


class Linear(torch.autograd.Function):
    """The operation of :func:`linear`, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        largest: float | None,
        shift: int,
    ) -> Tensor:
        if max(weight.shape) > LONGEST:
            raise ValueError(f"layer {tuple(weight.shape)}: a sum over its weights is too long")
        weight64 = on_grid(weight.double(), step_for(largest_of(weight), STEPS))
        ctx.save_for_backward(x, weight64)
        ctx.use, ctx.largest, ctx.shift, ctx.kind = choice.of(x), largest, shift, weight.dtype
        step = None if largest is None else step_for(largest, STEPS)
        y: Tensor = ctx.use.linear(x, step, weight64, bias.double(), shift)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight64 = ctx.saved_tensors
        if (rows := workers.of_all(len(x))) > LONGEST:
            raise ValueError(f"layer {tuple(weight64.shape)}: a sum over {rows} rows is too long")
        largest = workers.largest(largest_of(x)) if ctx.largest is None else ctx.largest
        step_x = step_for(largest, STEPS)
        step = step_for(workers.largest(largest_of(gradient)), STEPS)
        rounded = on_grid(gradient.double(), step)
        to_weight, to_bias = ctx.use.linear_back(x, step_x, rounded, ctx.shift)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = ctx.use.linear(gradient, step, weight64.T, weight64.new_zeros(x.shape[1]))
        return to_x, to_weight.to(ctx.kind), to_bias.to(ctx.kind), None, None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    largest: float | None = None,
    shift: int = 0,
) -> Tensor:
    """x (B, I) times weight (O, I) transposed, plus bias (O,).

    Args:
        largest: The largest possible |x|. If left out, the largest of each row is used.
        shift: Is subtracted from ``x``, if that is uint8.
    """
    if is_exporting():
        return F.linear(reference.numbers(x, shift), weight, bias)
    weight, bias = workers.apart(weight, bias)
    result: Tensor = Linear.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, largest, shift
    )
    return result


# Convolutions: in float32


def weight_step(sizes: Tensor, room: float, length: float, shape: torch.Size) -> float:
    """The step with which the largest of ``sizes`` has at most ``room`` steps.

    Raises:
        ValueError: The mean of the ``length`` numbers of the sum has too few steps.
    """
    if room < FEWEST * length:
        raise ValueError(f"convolution {tuple(shape)}: a sum over its weights is too long")
    return step_for(sizes.max().item(), room)


class ConvTanhPool(torch.autograd.Function):
    """The operation of :func:`conv_tanh_pool`, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        largest: float,
        step: float,
        groups: int,
        shift: int,
    ) -> Tensor:
        length = weight[0].numel()
        # The sizes of the products of a sum and its bias add up to at most 2^24 of their steps
        sizes = total(weight.flatten(1).abs(), 1) * largest + bias.abs()
        room = 2.0**SINGLE * step - largest * length - step  # minus what rounding may add
        grid = weight_step(sizes, room, largest * length, weight.shape)
        kernels = on_grid(weight.double(), grid).float()
        added = on_grid(bias.double(), grid * step).float()
        ctx.use = choice.of(x)
        kept, pooled = ctx.use.convolve(x, kernels, added, step, shift)
        ctx.save_for_backward(weight, *kept)
        ctx.steps, ctx.groups = largest / step, groups
        return pooled  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        number = 4 * gradient[0, 0].numel() // ctx.groups
        # Each image's gradient has its own grid, so that a small one counts beside a large one. Its
        # sums over a group are exact in float32, and the sums over the batch in float64
        steps = min(GRADIENT, int(2**SINGLE / (ctx.steps * number)))
        if steps < FEWEST:
            raise ValueError(f"convolution {tuple(weight.shape)}: a sum over {number} is too long")
        spare = DOUBLE - SINGLE - (workers.of_all(len(gradient)) * ctx.groups).bit_length()
        largest = workers.largest(largest_of(gradient))
        finest = torch.tensor(largest * 0.25).clamp(min=TINY) * (1 / steps)
        coarse = power_of_two(finest).item() * 2.0**-spare
        kernels, to_x = weight.float(), ctx.needs_input_grad[0]
        if to_x:
            length = weight[:, 0].numel()
            sizes = total(weight.transpose(0, 1).flatten(1).abs(), 1)
            grid = weight_step(sizes, 2.0**SINGLE / steps - length, length, weight.shape)
            kernels = on_grid(weight.double(), grid).float()
        to_weight, to_bias, to_images = ctx.use.convolve_back(
            kept, gradient, kernels, to_x, steps, ctx.groups, coarse
        )
        kind = weight.dtype
        return to_images, to_weight.to(kind), to_bias.to(kind), None, None, None, None


def conv_tanh_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    largest: float,
    step: float,
    groups: int,
    shift: int = 0,
) -> Tensor:
    """A convolution with 5x5 kernels without padding, plus bias; tanh; 2x2 average pooling.

    Args:
        x: (B, C, S, S).
        weight: (O, C, 5, 5).
        largest: The largest possible |x|.
        step: The step of the grid that x is rounded to.
        groups: How many groups of rows the gradient of the outputs is added in. It changes the grid
            of that gradient. It must be a divisor of the number of rows.
        shift: Is subtracted from ``x``, if that is uint8.
    """
    if is_exporting():  # the same grids, unless rounding moves a sum across a power of two
        room = (2.0**SINGLE - 1) * step - largest * weight[0].numel()
        grid = power_of_two((weight.abs().sum((1, 2, 3)) * largest + bias.abs()).max() / room)
        added = on_grid(bias.double(), grid * step).float()
        y = F.conv2d(on_grid(reference.numbers(x, shift), step), on_grid(weight, grid), added)
        return F.avg_pool2d(rational_tanh(y.detach()), 2)
    weight, bias = workers.apart(weight, bias)
    result: Tensor = ConvTanhPool.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, largest, step, groups, shift
    )
    return result
