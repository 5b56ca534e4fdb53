"""Stage prepare: get MNIST's four files, check them, split them into train, validation and test."""

import numpy as np
import torch
from PIL import Image

from dvc_kit.errors import main_function
from stages.base import files, params, splits
from stages.base.params import CLASSES
from stages.base.splits import SIDE, SPLITS, Split
from stages.base.stage import running
from stages.mnist import idx, sources, vision

CONTACT_SHEET_COLUMNS = 20


def counts(parts: dict[str, Split]) -> list[list[int | str]]:
    """One row per split: its name, its images of each class, and their sum."""
    rows: list[list[int | str]] = []
    for name in SPLITS:
        by_class = np.bincount(parts[name].labels, minlength=CLASSES).tolist()
        rows.append([name, *by_class, sum(by_class)])
    return rows


def contact_sheet(part: Split) -> Image.Image:
    """The first 20 images of each class, one row per class. Dark on white, as on paper."""
    tiles = torch.zeros(CLASSES, CONTACT_SHEET_COLUMNS, 1, SIDE, SIDE, dtype=torch.uint8)
    for digit in range(CLASSES):
        shown = torch.from_numpy(part.images[part.labels == digit][:CONTACT_SHEET_COLUMNS])
        tiles[digit, : len(shown), 0] = shown
    grid = vision.torchvision().utils.make_grid(
        tiles.flatten(0, 1), nrow=CONTACT_SHEET_COLUMNS, padding=0
    )
    return Image.fromarray(255 - grid[0].numpy())  # the grid has three channels, all the same


@main_function
def main() -> None:
    settings = params.load()
    with running("prepare"):
        content = sources.fetch(settings.data.sources, files.DATA_RAW)
        parts = idx.split(
            content, settings.data.validation_size, settings.data.train_limit, settings.seed
        )
        for name, part in parts.items():
            resized = Split(idx.resize(part.images), part.labels)
            splits.save_split(files.DATA_PREPARED, name, resized)
        header = ["split", *(str(digit) for digit in range(CLASSES)), "images"]
        files.write_csv(files.DATA_PREPARED / "counts.csv", header, counts(parts))
        files.write_png(files.DATA_PREPARED / "contact_sheet.png", contact_sheet(parts["train"]))
        print(", ".join(f"{name} {len(part):,}" for name, part in parts.items()))


if __name__ == "__main__":
    main()
