"""What the layers compute, on operands that are on grids. Compiled kernels must do the same.

:mod:`stages.arithmetic.exact` chooses the grids. With them no sum here is rounded, so
:mod:`stages.arithmetic.kernels` may add in another order, and another library may multiply.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.arithmetic.functions import exp, log, rational_tanh, sum_of_columns
from stages.arithmetic.grids import KERNEL, STEPS, TINY, on_grid, power_of_two

Kept = tuple[Tensor, Tensor]  # of a forward step, for the backward step
CACHED = 64  # images at a time: their numbers fit into a processor's cache. Changes no bit


def numbers(x: Tensor, shift: int) -> Tensor:
    """float32 as it is; uint8 less ``shift``, as float32."""
    return x if x.is_floating_point() else x.to(torch.float32).sub_(shift)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, step: float, shift: int
) -> tuple[Kept, Tensor]:
    """A convolution with 5x5 kernels, tanh, 2x2 average pooling.

    Args:
        x: (B, C, S, S), see :func:`numbers`. It is rounded to the grid of ``step``.
        weight: (O, C, 5, 5) and ``bias`` (O,), float32, on grids.

    Returns:
        Rounded images and outputs of tanh (B, O, S - 4, S - 4); and the pooled ones.
    """
    x, out = on_grid(numbers(x, shift), step), x.shape[-1] - KERNEL + 1
    sums = [
        bias.unsqueeze(1) + weight.flatten(1) @ F.unfold(images, KERNEL)
        for images in torch.split(x, CACHED)
    ]
    y = torch.cat(sums).view(-1, len(weight), out, out)
    t = rational_tanh(y)
    rows = t[:, :, ::2] + t[:, :, 1::2]
    return (x, t), (rows[..., ::2] + rows[..., 1::2]) * 0.25


def convolve_back(
    kept: Kept, gradient: Tensor, weight: Tensor, to_x: bool, steps: int, groups: int, coarse: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of weights (O, C, 5, 5) and biases (O,), float64, and of images, float32.

    Args:
        gradient: Of the pooled outputs.
        weight: On a grid for the gradient of the images.
        to_x: Whether the images have a gradient, too.
        steps: How many steps the largest gradient of an image has, on a grid of that image.
        groups: How many groups the places of an image are added in, each exactly in float32.
        coarse: The finest grid for any image.
    """
    x, t = kept
    to_weight = x.new_zeros(len(weight), weight[0].numel(), dtype=torch.float64)
    to_bias = x.new_zeros(len(weight), dtype=torch.float64)
    to_images = torch.empty_like(x) if to_x else None
    for part in (slice(start, start + CACHED) for start in range(0, len(x), CACHED)):
        up = (gradient[part] * 0.25).repeat_interleave(2, 2).repeat_interleave(2, 3)
        g = (t[part] * t[part]).neg_().add_(1).mul_(up).flatten(2)
        own = power_of_two(g.abs().amax((1, 2), keepdim=True).clamp(min=TINY) * (1 / steps))
        g = on_grid(g, own.clamp(min=coarse))
        windows = F.unfold(x[part], KERNEL)
        g_parts, x_parts = (
            y.view(*y.shape[:2], groups, -1).transpose(1, 2).flatten(0, 1) for y in (g, windows)
        )
        to_weight += (g_parts @ x_parts.mT).sum(0, dtype=torch.float64)
        to_bias += g_parts.sum(2).sum(0, dtype=torch.float64)
        if to_images is not None:
            size = x.shape[-2:]
            to_images[part] = F.fold(weight.flatten(1).T @ g, size, KERNEL)
    return to_weight.view_as(weight), to_bias, to_images


def linear(x: Tensor, step: float | None, weight: Tensor, bias: Tensor, shift: int = 0) -> Tensor:
    """Rows (B, I), rounded, times weights (O, I), float64, plus bias (O,), float64; as float32.

    Args:
        x: See :func:`numbers`.
        step: Of the grid of ``x``. If left out, each row has one of its own.
    """
    x = numbers(x, shift)
    if step is None:
        above = power_of_two(x.abs().amax(1, keepdim=True).clamp(min=TINY))
        rows = on_grid(x.double(), above.double() * (1 / STEPS))
    else:
        rows = on_grid(x.double(), step)
    return (rows @ weight.T).add_(bias).float()


def linear_back(x: Tensor, step: float, gradient: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The gradients of weights (O, I) and biases (O,), float64.

    Args:
        gradient: Of the outputs, float64, on a grid.
    """
    return gradient.T @ on_grid(numbers(x, shift).double(), step), gradient.sum(0)


def softmax(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows (B, N), as float64: less their largest, their softmax, the log of its sums (B, 1)."""
    x = x.double() - x.amax(1, keepdim=True).double()
    powers = exp(x)
    sums = sum_of_columns(powers)
    return x, powers / sums, log(sums)


def displacements(affine: Tensor, drawn: Tensor, line: Tensor, elastic: float) -> Tensor:
    """Moves of control points, for :func:`warp`: an affine map, and a random move of each one.

    Args:
        affine: Of each image, float64 (B, 6): the angle in radians, at most pi in size, the scales
            of x and y less 1, the shear, and the shifts of x and y in pixels.
        drawn: Four numbers from 0 to 1 for each point and axis, float32 (4, B, 2, P * P).
        line: The points of a row, float64 (P,), in pixels from the centre.
        elastic: Multiplies the sum of the four, less 2.

    Returns:
        Float64 (B, 2, P, P), in pixels, at most 64 in size. Whole multiples of 2^-20.
    """
    angle, wider, higher, shear, shift_x, shift_y = affine.unsqueeze(2).unbind(1)  # (B, 1)
    cos, sin = cos_sin(angle)
    scale_x, scale_y, side = 1 + wider, 1 + higher, len(line)
    # Columns first, because the products of `warp` swap the axes
    x, y = line.repeat_interleave(side), line.repeat(side)
    # Displacements and not positions: with settings of 0, each pixel stays exactly where it is
    moves_x = (cos * scale_x - 1) * x + (shear * cos * scale_x - sin * scale_y) * y
    moves_y = sin * scale_x * x + (shear * sin * scale_x + cos * scale_y - 1) * y
    moves = drawn[0].double()
    for more in drawn[1:]:
        moves.add_(more)
    moves.sub_(2).mul_(elastic)
    moves[:, 0] += moves_x.add_(shift_x)
    moves[:, 1] += moves_y.add_(shift_y)
    # 2^-20 pixels times 2^-9 times 2^-9, and at most 64 pixels times 6 times 6: less than 53 bits
    return on_grid(moves.clamp_(-64, 64), 2.0**-20).view(-1, 2, side, side)


def cos_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of float64, at most pi in size, by their Taylor series."""
    q = x * x
    cos, sin = (torch.full_like(x, 1 / math.factorial(power)) for power in (28, 29))
    for power in range(26, -1, -2):
        cos.mul_(q).neg_().add_(1 / math.factorial(power))
        sin.mul_(q).neg_().add_(1 / math.factorial(power + 1))
    return cos, sin * x


def warp(images: Tensor, moves: Tensor, weights: Tensor) -> Tensor:
    """Images (B, 1, S, S), uint8, each pixel taken from another place, bilinearly; uint8.

    Args:
        moves: Of the control points (B, 2, P, P), x and y, the first axis from left to right. They
            are on a grid.
        weights: 6 times the spline's (S, P), of each pixel of a row and each control point.
    """
    field = (moves @ weights.T).mT.contiguous() @ weights.T  # (B, 2, S, S), in 1/36 pixels
    pixels, pixel = field.mul_(1 / 36).float(), torch.arange(len(weights), device=images.device)
    x, y = pixels[:, 0] + pixel, pixels[:, 1] + pixel.unsqueeze(1)
    return sample(images, x.flatten(1), y.flatten(1))


def sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Images at columns and rows (B, S * S), bilinearly, rounded; 0 outside."""
    size = images.shape[-1]
    x, y = x.clamp(-1, size).add_(1), y.clamp(-1, size).add_(1)
    left, top = x.floor(), y.floor()
    across, down = x.sub_(left), y.sub_(top)
    side = size + 3  # a border of zeros, wide enough for the right neighbour of the last
    padded = F.pad(images, (1, 2, 1, 2)).flatten(1).float()
    index = top.mul_(side).add_(left).long()
    first, right, below, last = (
        padded[:, offset:].gather(1, index) for offset in (0, 1, side, side + 1)
    )
    above = right.sub_(first).mul_(across).add_(first)
    value = last.sub_(below).mul_(across).add_(below).sub_(above).mul_(down).add_(above).round_()
    return value.to(torch.uint8).view_as(images)
