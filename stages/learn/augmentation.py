"""Random distortions of the training images: affine and elastic, in one bilinear warp.

They have the same bits on every processor, as :mod:`stages.networks.exact` explains: elementwise
arithmetic, floor, gather, and sums of products that are exact.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.base.params import Augmentation
from stages.base.splits import INPUT_SIDE
from stages.networks import exact

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
        Whole numbers of 0 to 255, as float32 (B, 1, 32, 32).
    """
    size, device = len(images), images.device
    weights = _spline_weights().to(device)
    side = len(POINTS)

    def uniform(largest: float) -> Tensor:
        return largest * (2 * torch.rand(size, 1, generator=generator).double() - 1)

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
    drawn = torch.rand(4, size, 2, side * side, generator=generator).double().sum(0) - 2
    elastic = drawn * (settings.elastic * math.sqrt(3))  # their variance is 4 / 12
    moves = torch.stack([moves_x + shift_x, moves_y + shift_y], 1) + elastic
    # 2^-20 pixels times 2^-9 times 2^-9, and at most 64 pixels times 6 times 6: less than 53 bits
    moves = exact.on_grid(moves.clamp(-64, 64), 2.0**-20).view(-1, 2, side, side).to(device)
    field = (moves @ weights.T).mT.contiguous() @ weights.T  # (B, 2, 32, 32), in 1/36 pixels
    pixels = field.mul_(1 / 36).float()
    pixel = torch.arange(INPUT_SIDE, device=device)
    columns = (pixels[:, 0] + pixel).flatten(1)
    lines = (pixels[:, 1] + pixel.unsqueeze(1)).flatten(1)
    return _sample(images, columns, lines)


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of images (B, 1, 32, 32) at columns and rows (B, 1024), 0 outside.

    ``x`` and ``y`` are overwritten: new memory for each step costs more time than the arithmetic.
    """
    x.clamp_(-1, INPUT_SIDE).add_(1)
    y.clamp_(-1, INPUT_SIDE).add_(1)
    left, top = x.floor(), y.floor()
    across, down = x.sub_(left), y.sub_(top)
    side = INPUT_SIDE + 3  # a border of zeros, wide enough for the right neighbour of the last
    padded = F.pad(images, (1, 2, 1, 2)).flatten(1).float()
    index = top.mul_(side).add_(left).long()
    first, right, below, last = (
        padded[:, offset:].gather(1, index) for offset in (0, 1, side, side + 1)
    )
    above = right.sub_(first).mul_(across).add_(first)
    value = last.sub_(below).mul_(across).add_(below).sub_(above).mul_(down).add_(above).round_()
    return value.view(len(images), 1, INPUT_SIDE, INPUT_SIDE)
