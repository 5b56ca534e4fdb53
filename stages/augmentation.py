"""Random distortions of the training images: affine and elastic, in one bilinear warp.

Written with floor, gather and elementwise arithmetic, which give the same bits on every processor;
`grid_sample` is not known to.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.mnist import INPUT_SIDE
from stages.params import Augmentation

CONTROL_POINTS = 8  # a side, of the elastic field


def _spline_weights() -> Tensor:
    """Cubic B-spline weights (32, 10): of a row's pixels, over control points from -1 to 8."""
    position = (torch.arange(INPUT_SIDE) + 0.5) / INPUT_SIDE * CONTROL_POINTS - 0.5
    distance = (position.unsqueeze(1) - torch.arange(-1, CONTROL_POINTS + 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def distort(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Images (B, 1, 32, 32), uint8, each distorted in its own way: float32 of the same shape.

    Rotation, scale of each axis, shear and shift are uniform between minus and plus their setting;
    the elastic field is a smooth one whose control points are normal. What comes from outside the
    image is black.
    """
    size, device = len(images), images.device

    def uniform(largest: float) -> Tensor:
        return (largest * (2 * torch.rand(size, 1, generator=generator) - 1)).to(device)

    angle = uniform(math.radians(settings.rotation))
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y = 1 + uniform(settings.scale), 1 + uniform(settings.scale)
    shear = uniform(settings.shear)
    center = (INPUT_SIDE - 1) / 2
    line = torch.arange(INPUT_SIDE, device=device) - center
    x, y = line.repeat(INPUT_SIDE), line.repeat_interleave(INPUT_SIDE)  # (1024,)
    # Where each pixel of the result comes from: (B, 1024)
    from_x = cos * scale_x * x + (shear * cos * scale_x - sin * scale_y) * y
    from_y = sin * scale_x * x + (shear * sin * scale_x + cos * scale_y) * y
    from_x, from_y = from_x + uniform(settings.shift), from_y + uniform(settings.shift)
    if settings.elastic:
        weights = _spline_weights().to(device)
        points = torch.randn(2, size, weights.shape[1], weights.shape[1], generator=generator)
        field = weights @ (settings.elastic * points.to(device)) @ weights.T
        from_x, from_y = from_x + field[0].flatten(1), from_y + field[1].flatten(1)
    return _sample(images, from_x + center, from_y + center)


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
