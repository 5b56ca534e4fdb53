"""Stage prepare: MNIST's four files, checked, as train, validation and test."""

import numpy as np
from PIL import Image

from stages import alone, files, mnist, params, sources, tracking
from stages.errors import main_function
from stages.mnist import CLASSES, SIDE, SPLITS, Split

CONTACT_SHEET_COLUMNS = 20


def counts(splits: dict[str, Split]) -> list[list[int | str]]:
    """A row a split: its name, its images of each class, and all of them."""
    rows: list[list[int | str]] = []
    for name in SPLITS:
        by_class = np.bincount(splits[name].labels, minlength=CLASSES).tolist()
        rows.append([name, *by_class, sum(by_class)])
    return rows


def contact_sheet(part: Split) -> Image.Image:
    """The first 20 images of each class, a row a class."""
    sheet = np.zeros((CLASSES * SIDE, CONTACT_SHEET_COLUMNS * SIDE), np.uint8)
    for digit in range(CLASSES):
        for column, image in enumerate(part.images[part.labels == digit][:CONTACT_SHEET_COLUMNS]):
            top, left = digit * SIDE, column * SIDE
            sheet[top : top + SIDE, left : left + SIDE] = image
    return Image.fromarray(255 - sheet)


@main_function
def main() -> None:
    settings = params.load()
    with alone.holding("prepare"), tracking.run("prepare"):
        content = sources.fetch(settings.data.sources, files.DATA_RAW)
        splits = mnist.split(
            content, settings.data.validation_size, settings.data.train_limit, settings.seed
        )
        for name, part in splits.items():
            resized = Split(mnist.resize(part.images), part.labels)
            mnist.save_split(files.DATA_PREPARED, name, resized)
        header = ["split", *(str(digit) for digit in range(CLASSES)), "images"]
        files.write_csv(files.DATA_PREPARED / "counts.csv", header, counts(splits))
        files.write_png(files.DATA_PREPARED / "contact_sheet.png", contact_sheet(splits["train"]))
        print(", ".join(f"{name} {len(part):,}" for name, part in splits.items()))


if __name__ == "__main__":
    main()
