"""Random distortions of the training images: affine and elastic, in one bilinear warp.

Written with floor, gather and elementwise arithmetic, which give the same bits on every processor;
`grid_sample` is not known to.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.mnist import INPUT_SIDE
from stages.params import Augmentation

SPACING = 4  # pixels between the control points of the field
POINTS = torch.arange(-2, INPUT_SIDE // SPACING + 2)  # a side; the spline needs two on either end


@functools.cache
def _spline_weights() -> Tensor:
    """Cubic B-spline weights (32, 12): of a row's pixels, over the control points."""
    position = (torch.arange(INPUT_SIDE) + 0.5) / SPACING - 0.5
    distance = (position.unsqueeze(1) - POINTS).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def distort(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Images (B, 1, 32, 32), uint8, each distorted in its own way: float32 of the same shape.

    Rotation, scale of each axis, shear and shift are uniform between minus and plus their setting;
    `elastic` is the standard deviation of a normal displacement of each control point of a cubic
    B-spline. The spline passes an affine map of its control points on to all pixels unchanged, so
    one field holds both. What comes from outside the image is black.
    """
    size, device = len(images), images.device
    weights = _spline_weights().to(device)
    side = len(POINTS)

    def uniform(largest: float) -> Tensor:
        return largest * (2 * torch.rand(size, generator=generator) - 1)

    angle = uniform(math.radians(settings.rotation))
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y = 1 + uniform(settings.scale), 1 + uniform(settings.scale)
    shear = uniform(settings.shear)
    # Displacements, so that settings of 0 leave each pixel exactly where it is
    to_x = [cos * scale_x - 1, shear * cos * scale_x - sin * scale_y]
    to_y = [sin * scale_x, shear * sin * scale_x + cos * scale_y - 1]
    matrix = torch.stack([*to_x, *to_y], 1).view(-1, 2, 2)
    shift = torch.stack([uniform(settings.shift), uniform(settings.shift)], 1).unsqueeze(2)
    line = (POINTS + 0.5) * SPACING - INPUT_SIDE / 2
    # Columns first, because the products below exchange the axes
    points = torch.stack([line.repeat_interleave(side), line.repeat(side)])  # (2, 144): x and y
    elastic = settings.elastic * torch.randn(size, 2, side * side, generator=generator)
    moves = (matrix @ points + shift + elastic).view(-1, 2, side, side).to(device)
    field = (moves @ weights.T).mT.contiguous() @ weights.T  # (B, 2, 32, 32), in pixels
    pixel = torch.arange(INPUT_SIDE, device=device)
    x, y = (field[:, 0] + pixel).flatten(1), (field[:, 1] + pixel.unsqueeze(1)).flatten(1)
    return _sample(images, x, y)


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of images (B, 1, 32, 32) at columns and rows (B, 1024), 0 outside."""
    x = x.clamp(-1, INPUT_SIDE) + 1
    y = y.clamp(-1, INPUT_SIDE) + 1
    left, top = x.floor(), y.floor()
    side = INPUT_SIDE + 3  # a border of zeros, wide enough for the right neighbour of the last
    padded = F.pad(images, (1, 2, 1, 2)).flatten(1)
    index = (top * side + left).long()
    corners = [padded.gather(1, index + offset).float() for offset in (0, 1, side, side + 1)]
    across = x - left
    above = torch.lerp(corners[0], corners[1], across)
    below = torch.lerp(corners[2], corners[3], across)
    return torch.lerp(above, below, y - top).view(len(images), 1, INPUT_SIDE, INPUT_SIDE)
