"""Files of photos, scans and screenshots as images like MNIST's: 28x28, white on black."""

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dvc_kit.errors import StageError, one_line
from stages import ink
from stages.base.splits import SIDE
from stages.ink import Bytes, Floats

# Those that Pillow starts no other program for. A phone's JPEG may open as an MPO
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
ENDINGS = ", ".join(SUFFIXES)
EXPECTED = "expected PNG, JPEG, GIF, BMP, TIFF, WebP or PPM"
OTHERS = {b"%PDF": "a PDF", b"ftyphei": "HEIC", b"ftypmif": "HEIC", b"<svg": "SVG"}
LARGEST_FILE = 100 * 2**20  # bytes
MOST_PIXELS = 40_000_000  # looked at before anything is decoded
FEWEST_PIXELS = 8  # of a side
LONGEST = 500  # pixels of a side; a larger image is made smaller
DARK = 32  # of 255: more than the mean of the edge of any image of MNIST


@dataclass(frozen=True)
class Prepared:
    """An image (28, 28) as MNIST has them, and what is to be said about it."""

    image: Bytes
    note: str = ""


def prepare(content: bytes) -> Prepared:
    """The digit in the bytes of an image file.

    An image of 28x28 pixels with a dark edge is one of MNIST's, or like one: it stays as it is.

    Raises:
        StageError: It is no image that can be read, or nothing is written on it.
    """
    grey, note = decoded(content)
    found: Bytes | None = np.rint(grey).astype(np.uint8)
    if grey.shape != (SIDE, SIDE) or ink.edge_of(grey).mean() >= DARK:
        found = ink.centred(ink.strengthened(ink.written(grey)))
    if found is None or not found.any():
        raise StageError("no digit: nothing on it stands out from its background")
    return Prepared(found, note)


def decoded(content: bytes) -> tuple[Floats, str]:
    """The greys (H, W) of an image file, 0 to 255, upright and on white, and a note."""
    if len(content) > LARGEST_FILE:
        raise StageError(f"has more than {LARGEST_FILE // 2**20} MiB: make it smaller first")
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), "r", FORMATS) as file,
        ):
            check(file.size)
            frames = getattr(file, "n_frames", 1) if file.format != "MPO" else 1
            image = grey_of(ImageOps.exif_transpose(file))
    except Image.DecompressionBombError:
        raise too_large() from None
    except StageError:
        raise
    except Exception as error:  # of any kind, because any bytes may stand there
        raise StageError(unreadable(content, error)) from None
    image.thumbnail((LONGEST, LONGEST))
    return np.asarray(image, np.float64), f"the first of its {frames} frames" if frames > 1 else ""


def grey_of(image: Image.Image) -> Image.Image:
    """The greys of an image, 0 to 255. What is transparent is white."""
    if image.mode[0] in "IF":  # more than 8 bits, which Pillow's conversion would cut off at 255
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
        most = 65_535 if image.mode.startswith("I;16") else max(255, values.max())
        return Image.fromarray(np.clip(values, 0, most) * np.float32(255 / most))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def check(size: tuple[int, int]) -> None:
    if math.prod(size) > MOST_PIXELS:
        raise too_large()
    if min(size) < FEWEST_PIXELS:
        least = f"{FEWEST_PIXELS}x{FEWEST_PIXELS}"
        raise StageError(f"has {size[0]}x{size[1]} pixels, expected at least {least}")


def too_large() -> StageError:
    return StageError(f"has more than {MOST_PIXELS // 10**6} megapixels: make it smaller first")


def unreadable(content: bytes, error: Exception) -> str:
    """Why the bytes of a file are no image."""
    if not content:
        return "is empty"
    for mark, name in OTHERS.items():
        if mark in content[:200]:
            return f"is {name}, {EXPECTED}"
    if isinstance(error, UnidentifiedImageError):
        return f"is no image that can be read, {EXPECTED}"
    return f"cannot be read ({one_line(error)})"
