"""Photos become images like MNIST's, of any kind of file, and what is no photo costs one line."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from dvc_kit.errors import StageError
from stages import ink, photo
from stages.mnist import idx

SEVEN = [(60, 50), (150, 50), (110, 200)]


def as_file(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def paper(mode: str = "L", ink_is: object = 30, white: object = 235) -> Image.Image:
    image = Image.new(mode, (220, 260), white)
    ImageDraw.Draw(image).line(SEVEN, ink_is, 14)
    return image


def test_an_image_of_mnist_stays_as_it_is_and_comes_back_magnified(raw):
    images = idx.read(raw)["test"].images
    for image in images[:100]:
        assert np.array_equal(photo.prepare(as_file(Image.fromarray(image))).image, image)
        dark = image // 2
        deep = Image.fromarray(dark.astype(np.uint16) * 257)
        assert np.array_equal(photo.prepare(as_file(deep)).image, dark)
        magnified = image.repeat(10, 0).repeat(10, 1)
        assert np.array_equal(ink.centred(magnified), image)
    edges = [ink.edge_of(image).mean() for image in images]
    assert max(edges) < photo.DARK
    assert ink.centred(np.zeros((9, 9), np.uint8)) is None


def test_dark_on_light_is_light_on_dark_and_lies_in_the_middle():
    there = photo.prepare(as_file(paper())).image.astype(int)
    inverted = photo.prepare(as_file(paper(ink_is=225, white=20))).image
    assert np.abs(there - inverted).max() <= 2
    rows, columns = np.nonzero(there)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    weights = there[rows, columns]
    for place in (rows, columns):
        assert abs(np.average(place, weights=weights) - 14) <= 0.6


def test_shadow_dirt_and_the_end_of_the_paper_do_not_count():
    clean = photo.prepare(as_file(paper())).image.astype(int)
    grey = np.array(paper(), float)
    grey[:, :40] *= 0.6  # the edge of a shadow
    grey *= np.linspace(1, 0.5, 260)[:, None]
    grey[230:233, 190:193] = 10
    grey[:, -6:] = 0
    dirty = photo.prepare(as_file(Image.fromarray(grey.astype(np.uint8)))).image
    assert np.abs(clean - dirty).mean() < 8


def test_a_thin_stroke_becomes_as_wide_as_those_of_mnist():
    thin = np.zeros((400, 400), np.uint8)
    thin[50:350, 198:201] = 255
    assert ink.centred(thin).max() < 255 / 2 or (ink.centred(thin) > 0).any(0).sum() == 1
    wide = ink.centred(ink.strengthened(thin))
    assert (wide > 127).any(0).sum() == 2


# --- files of all kinds ---

turned = Image.Exif()
turned[0x0112] = 6  # to be turned by 90 degrees to the right
clear = Image.new("RGBA", (220, 260), (0, 0, 0, 0))
clear.paste((0, 0, 0, 255), mask=Image.eval(paper(), lambda grey: 255 * (grey < 100)))
SAME = {
    "16 bits": as_file(Image.fromarray(np.array(paper(), np.uint16) * 257)),
    "32 bits": as_file(Image.fromarray(np.array(paper(), np.float32)), "TIFF"),
    "CMYK": as_file(paper("RGB", (30,) * 3, (235,) * 3).convert("CMYK"), "JPEG", quality=95),
    "palette": as_file(paper().convert("P")),
    "transparent": as_file(clear),
    "turned": as_file(paper().rotate(90, expand=True), "JPEG", exif=turned, quality=95),
    "animated": as_file(paper(), "GIF", save_all=True, append_images=[Image.new("L", (220, 260))]),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_file_of_any_kind_is_the_same_digit(kind):
    found = photo.prepare(SAME[kind])
    plain = photo.prepare(as_file(paper())).image.astype(int)
    assert np.abs(found.image - plain).max() < 40
    assert found.note == ("the first of its 2 frames" if kind == "animated" else "")


def head_of_png(width: int, height: int) -> bytes:
    """Of an image with no pixels in it: what is refused is not decoded."""
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(0, io.SEEK_END)
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    PngImagePlugin.putchunk(buffer, b"IHDR", size, b"\x08\x00\x00\x00\x00")
    PngImagePlugin.putchunk(buffer, b"IDAT", b"")
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
REFUSED = {
    "1 pixel": (as_file(Image.new("L", (1, 1))), "has 1x1 pixels, expected at least 8x8"),
    "50 megapixels": (head_of_png(10_000, 5_000), "has more than 40 megapixels"),
    "10,000 megapixels": (head_of_png(100_000, 100_000), "has more than 40 megapixels"),
    "a PDF": (b"%PDF-1.7\n%\xe2\xe3\n", "is a PDF, expected PNG, JPEG"),
    "HEIC": (b"\x00\x00\x00\x18ftypheic\x00\x00", "is HEIC, expected PNG, JPEG"),
    "empty": (b"", "is empty"),
    "truncated": (SAME["turned"][:2000], "cannot be read (image file is truncated"),
    "text": (b"photo", "is no image that can be read, expected"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that can"),
    "blank": (as_file(Image.new("L", (300, 200), 220)), "no digit: nothing on it stands out"),
    "noise": (as_file(Image.fromarray(NOISE)), "no digit: nothing on it stands out"),
    "black": (as_file(Image.new("L", (28, 28))), "no digit: nothing on it stands out"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_photo_of_a_digit_is_refused_in_a_line(kind):
    content, expected = REFUSED[kind]
    with pytest.raises(StageError) as refused:
        photo.prepare(content)
    assert str(refused.value).startswith(expected) and "\n" not in str(refused.value)
