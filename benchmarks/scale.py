"""How time and memory grow with the data: 60,000, 600,000 and 6,000,000 training images.

    .venv/bin/python -m benchmarks.scale [IMAGES]

The larger sets are the 60,000 repeated, each copy shifted by up to two pixels; they are made in a
scratch folder (6.2 GB). Each process trains on 65,536 images of its set and on the
60,000 in turn, so that a machine that slows down does not look like a set that does.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import child
from stages.show.tables import table

SIZES = (60_000, 600_000, 6_000_000)
STRETCHES = 10


def write(folder: Path, size: int) -> None:
    """A file like the one that prepare writes, with ``size`` images, without holding them."""
    import stages  # noqa: F401  (before torch is imported)

    # isort: split
    import numpy as np

    from stages.base import files
    from stages.base.splits import INPUT_SIDE, load_split

    part = load_split(files.DATA_PREPARED, "train")
    shifts = np.random.default_rng(0).integers(-2, 3, (size // len(part), 2))
    shape = [size, INPUT_SIDE, INPUT_SIDE]
    end = size * INPUT_SIDE**2
    header = json.dumps(
        {
            "images": {"dtype": "U8", "shape": shape, "data_offsets": [0, end]},
            "labels": {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]},
        }
    ).encode()
    with (folder / "train.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for x, y in shifts:
            file.write(np.roll(part.images, (y, x), (1, 2)).tobytes())
        for _ in shifts:
            file.write(part.labels.tobytes())


def train(name: str, folder: str) -> None:
    """Print the ratio of the times of an image, here and in the 60,000, and the peak memory."""
    from stages.base import files, numerics, params, splits
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
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(statistics.median(here for here, _ in pairs), ratio, memory)


def measure(*sizes: int) -> str:
    rows = []
    for size in sizes or SIZES:
        with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
            write(Path(scratch), size)
            for name, title in (("lenet5", "LeNet-5"), ("mlp", "MLP")):
                seconds, ratio, memory = map(float, child("scale", name, scratch).split())
                row = [f"{title}, {size:,}", f"{1e6 * seconds:.1f}", f"{ratio:.2f}"]
                rows.append([*row, f"{memory:.0f}"])
                print(*rows[-1], file=sys.stderr)
    header = "training images | µs an image | 60,000 = 1 | peak resident MB"
    return table(header, "lrrr", rows) + f"\n\nMedians of {STRETCHES}.\n"


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["child"]:
        train(*arguments[1:])
    else:
        print(measure(*map(int, arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
