"""Photos of digits that are not MNIST's: strokes written for this file, on paper that a phone sees.

    .venv/bin/python tests/photos.py FOLDER [SEED]     write them into a folder

Each digit three times dark on paper and once light on dark, with shadow, noise, blur and tilt.
stages/ink.py was written with other seeds than SEED in view.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SEED = 2024
RIGHT = {"lenet5": 39, "mlp": 39}  # of the 40 of SEED: test_predict.py counts them
EACH = 4
# Two ways to write each digit: strokes of points (x, y) in a unit square, y down. A curve goes
# through the points of a stroke; a point that stands twice is a corner.
RING = "50,0 20,15 5,50 20,85 50,100 80,85 95,50 80,15 48,0"
DIGITS = {
    0: [RING, "60,2 25,10 10,50 25,92 55,98 85,80 90,40 75,8 50,4"],
    1: ["50,0 50,100", "25,25 55,0 55,0 52,100"],
    2: [
        "10,25 25,5 55,0 80,20 75,45 45,70 10,100 10,100 95,98",
        "12,20 40,0 75,10 75,40 40,75 12,92 10,80 35,80 60,98 92,90",
    ],
    3: [
        "12,12 45,0 80,15 75,38 42,48 42,48 82,58 85,85 50,100 10,88",
        "10,2 85,0 85,0 45,40 45,40 85,60 80,90 45,100 12,90",
    ],
    4: ["60,0 5,65 5,65 95,65|68,35 66,100", "15,0 10,50 10,50 85,48|75,5 70,100"],
    5: [
        "20,5 15,45 15,45 50,38 85,60 75,92 40,100 10,90|20,5 85,2",
        "85,2 25,2 25,2 18,45 18,45 60,42 82,68 55,98 12,92",
    ],
    6: [
        "70,0 35,20 12,60 25,95 60,98 82,75 65,55 35,58 15,75",
        "60,0 20,40 10,80 45,100 80,80 60,58 14,76",
    ],
    7: ["8,4 90,2 90,2 60,50 42,100", "10,5 88,3 88,3 40,100|30,52 80,50"],
    8: [
        "78,15 50,0 22,18 35,42 72,62 78,88 48,100 18,85 30,60 70,38 80,16",
        "52,46 25,30 30,6 55,0 78,15 72,36 50,46 20,65 22,92 52,100 82,88 78,62 50,46",
    ],
    9: [
        "82,28 60,2 25,10 18,38 45,50 78,35 82,22 80,60 74,100",
        "80,12 45,0 18,20 25,45 55,48 80,15 82,50 68,88 25,98",
    ],
}


def curve(points: np.ndarray) -> np.ndarray:
    """A Catmull-Rom curve through points (N, 2)."""
    ends = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 16)[:, None]
    parts = []
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        cubic = (3 * b - a - 3 * c + d) * t**3 + (2 * a - 5 * b + 4 * c - d) * t**2 + (c - a) * t
        parts.append(b + cubic / 2)
    return np.concatenate(parts)


def strokes(text: str, rng: np.random.Generator) -> list[np.ndarray]:
    """The curves of a digit, written with an unsteady hand: (N, 2) each, around 0."""
    found = []
    for stroke in text.split("|"):
        points = np.array([[float(part) for part in pair.split(",")] for pair in stroke.split()])
        corner = np.concatenate([[False], (points[1:] == points[:-1]).all(1)])
        moved = points / 100 - 0.5 + rng.normal(0, 0.018, points.shape)
        moved[corner] = moved[np.flatnonzero(corner) - 1]
        pieces = np.split(moved, np.flatnonzero(corner))
        found.append(np.concatenate([curve(piece) for piece in pieces]))
    tilt, slant = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.05)
    shape = np.array([[rng.uniform(0.5, 0.85), 0], [slant, 1]])
    turn = np.array([[1, tilt], [-tilt, 1]]) / (1 + tilt**2) ** 0.5
    return [points @ shape @ turn for points in found]


def photo(text: str, light_on_dark: bool, rng: np.random.Generator) -> bytes:
    width, height = (int(side) for side in rng.integers(240, 900, 2))
    side = min(width, height) * rng.uniform(0.3, 0.75)
    half = np.array([width, height]) / 2
    middle = half + (half - 0.6 * side) * rng.uniform(-0.7, 0.7, 2)
    pen = side * rng.uniform(0.04, 0.16)
    mask = Image.new("L", (2 * width, 2 * height))
    for points in strokes(text, rng):
        places = [tuple(place) for place in 2 * (points * side + middle)]
        ImageDraw.Draw(mask).line(places, 255, round(2 * pen), joint="curve")
        for x, y in places:
            ImageDraw.Draw(mask).ellipse((x - pen, y - pen, x + pen, y + pen), 255)
    mask = mask.resize((width, height), Image.Resampling.BOX)
    blurred = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.25) * pen))
    ink = np.asarray(blurred, np.float64) / 255 * rng.uniform(0.5, 0.95)
    y, x = np.mgrid[:height, :width] / max(width, height)
    light = 0.85 + rng.uniform(-0.4, 0.4) * (x - 0.5) + rng.uniform(-0.4, 0.4) * (y - 0.5)
    edge = (x - rng.uniform(0.2, 0.8)) + rng.uniform(-1, 1) * (y - 0.5)  # of a shadow
    light = light * (1 - rng.uniform(0, 0.4) * np.clip(0.5 + edge / rng.uniform(0.02, 0.3), 0, 1))
    seen = 0.12 + 0.88 * ink if light_on_dark else 1 - ink
    seen = 255 * (seen * np.clip(light, 0.1, 1) + rng.normal(0, rng.uniform(0, 0.05), ink.shape))
    file = io.BytesIO()
    Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


def photos(seed: int = SEED) -> list[tuple[int, bytes]]:
    """Digits, and a JPEG file of each."""
    rng = np.random.default_rng(seed)
    return [
        (digit, photo(ways[number % 2], number == EACH - 1, rng))
        for digit, ways in DIGITS.items()
        for number in range(EACH)
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number, (digit, content) in enumerate(photos(*map(int, sys.argv[2:]))):
        (folder / f"{number:02}-{digit}.jpg").write_bytes(content)
