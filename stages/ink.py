"""From greys to an image like MNIST's: what is ink, what is paper, and where the digit goes.

The page prepares a drawing by `centred` and `resize` (stages/show/assets). :func:`centred` gives
the same bits, and :func:`stages.mnist.idx.resize` those of `resize`. What a photo needs before that
is to tell ink from paper.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stages.base.splits import SIDE

SMALLEST = 200  # of the longer side that is worked with, in pixels; a smaller photo is enlarged
CUT_OUT = 100  # longer side of a digit that is cut out, in pixels
FAINTEST = 0.12  # how much darker than the paper ink is at least, as a share of the paper's light
SPECK = 0.03  # of the ink of the largest part: what has less is dirt
BOX = 20  # side of the square that a digit is fitted into
STROKE = (
    0.1  # width of a stroke, as a share of the digit's longer side; 19 of 20 in MNIST are wider
)

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


def edge_of(grey: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels of (H, W)."""
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def scaled(values: NDArray[Any], factor: float) -> Floats:
    """(H, W), larger or smaller."""
    height, width = (max(1, round(side * factor)) for side in values.shape)
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float64)


def background(grey: Floats) -> Floats:
    """The paper without what is written on it: the median of a wide neighbourhood of a pixel. A
    median keeps the edge of a shadow."""
    small = scaled(grey, 48 / max(grey.shape))
    paper = ndimage.median_filter(small, 21, mode="nearest").astype(np.float32)
    size = grey.shape[::-1]
    return np.asarray(Image.fromarray(paper).resize(size, Image.Resampling.BILINEAR), np.float64)


def written(grey: Floats) -> Bytes:
    """The ink (H, W) in greys (H, W), dark on light or light on dark: 0 is paper, 255 is ink."""
    grey = scaled(grey, max(1, SMALLEST / max(grey.shape)))
    paper = background(grey)
    beyond = grey - paper
    if (beyond * beyond * beyond).sum() > 0:  # ink is the rarer side, and further from the paper
        grey, paper = 255 - grey, 255 - paper
    # A shadow takes the same share of light from ink and paper
    ink = ndimage.gaussian_filter(1 - grey / np.maximum(paper, 16), max(grey.shape) / 400)
    noise = 1.4826 * float(np.median(np.abs(ink)))  # its standard deviation, from its median
    seen = ink[ink > max(FAINTEST, 4 * noise)]
    if not seen.size:
        return np.zeros(grey.shape, np.uint8)
    middle = float(np.median(seen)) / 2
    mask = of_the_digit(ink, middle)
    found: Bytes = np.rint(255 * np.clip(ink / middle - 0.5, 0, 1) * mask).astype(np.uint8)
    return found


def of_the_digit(ink: Floats, middle: float) -> NDArray[np.bool_]:
    """Where the connected parts of ink (H, W) are that belong to a digit: not dirt, and not what
    reaches the edge of the photo, such as the end of the paper, unless all of it does."""
    parts, count = ndimage.label(ink > middle / 2, np.ones((3, 3)))
    sums = np.bincount(parts.ravel(), ink.ravel(), count + 1)
    sums[0] = 0
    dark = np.isin(np.arange(count + 1), parts[ink > middle])
    within = dark & ~np.isin(np.arange(count + 1), edge_of(parts))
    kept = within if sums[within].sum() > 0.2 * sums[dark].sum() else dark
    found: NDArray[np.bool_] = (kept & (sums >= SPECK * sums[kept].max(initial=0)))[parts]
    return found


def strengthened(ink: Bytes) -> Bytes:
    """A digit (H, W), cut out and with strokes that are not thinner than MNIST's."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return ink
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink = np.pad(np.rint(scaled(ink, CUT_OUT / max(ink.shape))).astype(np.uint8), 10)
    inside = ink > 127
    # In a bar, the mean distance to its edge is a quarter of its width
    width = 4 * float(ndimage.distance_transform_edt(inside)[inside].mean())
    radius = (STROKE * CUT_OUT - width) / 2
    if radius < 0.5:
        return ink
    y, x = np.mgrid[-5:6, -5:6]
    found: Bytes = ndimage.grey_dilation(ink, footprint=x * x + y * y <= radius * radius)
    return found


def half_up(value: float) -> int:
    """As Math.round of JavaScript."""
    return math.floor(value) + (value - math.floor(value) >= 0.5)


def centred(ink: Bytes) -> Bytes | None:
    """Ink (H, W) as an image (28, 28), or None without any: the same bits as `centred` in draw.js.

    As MNIST's makers did it: scaled to fit into 20x20 with its proportions kept, and its centre of
    mass put into the middle of the field.
    """
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return None
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(1, BOX / max(ink.shape))
    down, across = (
        np.minimum(BOX - 1, np.floor((np.arange(side) + 0.5) * scale)).astype(int)
        for side in ink.shape
    )
    cells = BOX * down[:, None] + across
    counts = np.bincount(cells.ravel(), minlength=BOX**2)
    sums = np.bincount(cells.ravel(), ink.ravel(), BOX**2)  # of whole numbers: exact
    small = sums / np.maximum(counts, 1)
    at = np.arange(BOX**2)
    # Added one after the other, as the page does
    mass, right, below = (np.cumsum(small * place)[-1] for place in (1, at % BOX, at // BOX))
    dx, dy = half_up(SIDE / 2 - right / mass), half_up(SIDE / 2 - below / mass)
    field = np.zeros((SIDE, SIDE), np.uint8)
    x, y = at % BOX + dx, at // BOX + dy
    inside = (x >= 0) & (x < SIDE) & (y >= 0) & (y < SIDE)
    field[y[inside], x[inside]] = np.floor(small + 0.5)[inside]
    return field
