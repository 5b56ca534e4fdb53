"""How time and memory grow with the data: 60,000, 600,000 and 6,000,000 training images.

    .venv/bin/python -m benchmarks.scale [IMAGES]

The larger sets are the 60,000 repeated, in a scratch folder (6.2 GB). Each process trains on 65,536
images of its set and on the 60,000 in turn, so that a machine that slows down does not look like a
set that does.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import TITLES, child
from stages.show.tables import table

SIZES = (60_000, 600_000, 6_000_000)
STRETCHES = 10


def write(folder: Path, size: int) -> None:
    """A file like the one that prepare writes, with ``size`` images, without holding them."""
    from stages.base import files
    from stages.base.splits import INPUT_SIDE, load_split

    part = load_split(files.DATA_PREPARED, "train")
    end = size * INPUT_SIDE**2
    images = {"dtype": "U8", "shape": [size, INPUT_SIDE, INPUT_SIDE], "data_offsets": [0, end]}
    labels = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
    header = json.dumps({"images": images, "labels": labels}).encode()
    with (folder / "train.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for content in (part.images.tobytes(), part.labels.tobytes()):
            for _ in range(size // len(part)):
                file.write(content)


def train(name: str, folder: str) -> tuple[float, float]:
    """Seconds of an image of this set, and their ratio to those of an image of the 60,000."""
    from stages.arithmetic import numerics
    from stages.base import files, params, splits
    from stages.learn import training
    from stages.networks import models

    settings = params.load()
    recipe = settings.of_model(name)
    generator = numerics.configure(settings.threads, settings.seed)
    network = models.build(name, recipe)
    state = training.begin(network, recipe, 10_000, generator)
    sets = []
    for place in (Path(folder), files.DATA_PREPARED):
        data = models.examples(splits.load_split(place, "train"))
        order = training.random_order(len(data.labels), generator)
        sets.append((data, order.split(training.WHOLE)))

    def per_image(number: int, stretch: int) -> float:
        data, order = sets[number]
        rows = order[stretch % len(order)]
        started = time.perf_counter()
        training.train_epoch(state, data, rows, recipe, 2)
        return (time.perf_counter() - started) / len(rows)

    per_image(1, 0)
    pairs = [[per_image(number, stretch) for number in (0, 1)] for stretch in range(STRETCHES)]
    ratio = statistics.median(here / small for here, small in pairs)
    return statistics.median(here for here, _ in pairs), ratio


def measure(*sizes: int) -> str:
    rows = []
    for size in sizes or SIZES:
        with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
            write(Path(scratch), size)
            for name, title in TITLES.items():
                ran = child("scale", name, scratch)
                seconds, ratio = map(float, ran.output.split())
                row = [f"{title}, {size:,}", f"{1e6 * seconds:.1f}", f"{ratio:.2f}"]
                rows.append([*row, f"{ran.peak_mb:.0f}"])
                print(*rows[-1], file=sys.stderr)
    header = "training images | µs an image | 60,000 = 1 | peak resident MB"
    return table(header, "lrrr", rows) + f"\n\nMedians of {STRETCHES}.\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(*train(*sys.argv[2:]))
    else:
        print(measure(*map(int, sys.argv[1:])))
