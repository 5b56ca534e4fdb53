"""Random distortions of the training images: affine and elastic, in one bilinear warp.

They have the same bits on every processor, as :mod:`stages.arithmetic.exact` explains: elementwise
arithmetic, floor, gather, and sums of products that are exact.
"""

import functools
import math

import torch
from torch import Tensor

from stages.arithmetic import choice, grids, workers
from stages.base.params import Augmentation
from stages.base.splits import INPUT_SIDE

SPACING = 4  # pixels between the control points of the field
POINTS = torch.arange(-2, INPUT_SIDE // SPACING + 2)  # two more than the image needs, per end


@functools.cache
def _spline_weights() -> Tensor:
    """6 times the cubic B-spline weights (32, 12), for each pixel of a row and each control point.

    The positions are multiples of 1/8, so the weights are multiples of 1/512. Nothing is rounded.
    """
    position = (torch.arange(INPUT_SIDE, dtype=torch.float64) + 0.5) * (1 / SPACING) - 0.5
    d = (position.unsqueeze(1) - POINTS).abs()
    near = 4 - d * d * 6 + d * d * d * 3
    far = (2 - d).clamp(min=0)
    return torch.where(d < 1, near, far * far * far)


def _cos_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of float64, at most pi in size, by their Taylor series."""
    q = x * x
    cos, sin = (
        torch.full_like(x, 1 / math.factorial(28)),
        torch.full_like(x, 1 / math.factorial(29)),
    )
    for power in range(26, -1, -2):
        cos.mul_(q).neg_().add_(1 / math.factorial(power))
        sin.mul_(q).neg_().add_(1 / math.factorial(power + 1))
    return cos, sin * x


def distort(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Distort images (B, 1, 32, 32), uint8, each in its own way.

    Rotation, scale of each axis, shear and shift are uniform between minus and plus their setting.
    `elastic` is the standard deviation of the displacement of each control point of a cubic
    B-spline. A displacement is a sum of four uniform numbers. An affine map of the control points
    is the same affine map of all pixels, so one field holds both distortions. Outside of the image
    everything is black.

    Returns:
        (B, 1, 32, 32), uint8.
    """
    size, device = workers.of_all(len(images)), images.device
    weights = _spline_weights().to(device)
    side = len(POINTS)

    def uniform(largest: float) -> Tensor:
        return workers.own(largest * (2 * torch.rand(size, 1, generator=generator).double() - 1))

    cos, sin = _cos_sin(uniform(math.radians(settings.rotation)))
    scale_x, scale_y = 1 + uniform(settings.scale), 1 + uniform(settings.scale)
    shear = uniform(settings.shear)
    line = ((POINTS + 0.5) * SPACING - INPUT_SIDE / 2).double()
    # Columns first, because the products below swap the axes
    x, y = line.repeat_interleave(side), line.repeat(side)
    # Displacements and not positions: with settings of 0, each pixel stays exactly where it is
    moves_x = (cos * scale_x - 1) * x + (shear * cos * scale_x - sin * scale_y) * y
    moves_y = sin * scale_x * x + (shear * sin * scale_x + cos * scale_y - 1) * y
    shift_x, shift_y = uniform(settings.shift), uniform(settings.shift)
    drawn = workers.own(torch.rand(4, size, 2, side * side, generator=generator), 1)
    moves = drawn[0].double()
    for more in drawn[1:]:
        moves.add_(more)
    moves.sub_(2).mul_(settings.elastic * math.sqrt(3))  # their variance is 4 / 12
    moves[:, 0] += moves_x.add_(shift_x)
    moves[:, 1] += moves_y.add_(shift_y)
    # 2^-20 pixels times 2^-9 times 2^-9, and at most 64 pixels times 6 times 6: less than 53 bits
    moves = grids.on_grid(moves.clamp_(-64, 64), 2.0**-20).view(-1, 2, side, side).to(device)
    of_few = images[:4], moves[:4], weights
    choice.compare("distortions", lambda: [choice.of(images).warp(*of_few)])
    distorted: Tensor = choice.of(images).warp(images, moves, weights)
    return distorted
