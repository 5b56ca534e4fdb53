"""Random distortions of the training images: affine and elastic, in one bilinear warp.

They have the same bits on every processor, as :mod:`stages.arithmetic.exact` explains: elementwise
arithmetic, floor, gather, and sums of products that are exact.
"""

import functools
import math

import torch
from torch import Tensor

from stages.arithmetic import choice, workers
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
    line = ((POINTS + 0.5) * SPACING - INPUT_SIDE / 2).double()
    full = [
        *(math.radians(settings.rotation), settings.scale, settings.scale, settings.shear),
        *(settings.shift, settings.shift),
    ]
    affine = workers.own(torch.rand(len(full), size, generator=generator), 1).T.double()
    affine = (affine * 2 - 1) * torch.tensor(full, dtype=torch.float64)
    drawn = workers.own(torch.rand(4, size, 2, len(line) ** 2, generator=generator), 1)
    of_all = affine, drawn, line, settings.elastic * math.sqrt(3)  # the variance is 4 / 12
    choice.compare("displacements", lambda: [choice.of(drawn).displacements(*of_all)])
    moves = choice.of(drawn).displacements(*of_all).to(device)
    of_few = images[:4], moves[:4], weights
    choice.compare("distortions", lambda: [choice.of(images).warp(*of_few)])
    distorted: Tensor = choice.of(images).warp(images, moves, weights)
    return distorted
