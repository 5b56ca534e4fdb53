"""An epoch of this pipeline, of two usual ways to load MNIST, and of the arithmetic alone.

    .venv/bin/python -m benchmarks.epoch [ROUNDS]

An epoch is 60,000 training images and the scores on the 10,000 test images. The ways, in turn:

- pipeline: the prepared images, mapped, under the pins; and the same without the pins.
- DataLoader: torchvision's MNIST and transforms, in a DataLoader without workers.
- files: what the published experiment did: PNG files in a folder a digit, opened with PIL, resized
  and normalised by torchvision's transforms, in a DataLoader with 4 workers. Our own
  reimplementation of that method.
- matrix product: LeNet-5's floating-point operations at the speed of a large float32 product.

All but the first run unpinned, as they would without this project.
"""

import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks import child
from stages.tables import table

WAYS = {
    "pipeline": "this pipeline",
    "unpinned": "this pipeline, unpinned",
    "loader": "DataLoader",
    "files": "PNG files, DataLoader with 4 workers",
}
BATCH = 512


def write_png_files(folder: Path) -> None:
    """MNIST as PNG files, in a folder a split and digit."""
    from PIL import Image

    from stages import files, mnist

    for split, images, labels in (
        ("train", mnist.TRAIN_IMAGES, mnist.TRAIN_LABELS),
        ("test", mnist.TEST_IMAGES, mnist.TEST_LABELS),
    ):
        pixels, digits = (
            mnist.parse(file, (files.DATA_RAW / file.name).read_bytes())
            for file in (images, labels)
        )
        for digit in range(mnist.CLASSES):
            (folder / split / str(digit)).mkdir(parents=True)
        for index, (image, digit) in enumerate(zip(pixels, digits, strict=True)):
            Image.fromarray(image).save(folder / split / str(digit) / f"{index}.png")


def pipeline_epoch(name: str) -> float:
    """Seconds of the second epoch; the first warms up."""
    from stages import files, mnist, models, numerics, params, scoring, training

    settings = params.load()
    recipe = settings.of_model(name)
    splits = {split: mnist.load_split(files.DATA_PREPARED, split) for split in ("train", "test")}
    data = {split: models.examples(part) for split, part in splits.items()}
    generator = numerics.configure(settings.threads, settings.seed)
    network = models.build(name, recipe)
    state = training.begin(network, recipe, 10_000, generator)
    seconds = 0.0
    for epoch in (2, 3):
        started = time.perf_counter()
        order = training.random_order(len(splits["train"]), generator)
        training.train_epoch(state, data["train"], order, recipe, epoch)
        outputs = models.outputs(network, data["test"].images)
        scoring.loss(outputs, data["test"].labels)
        scoring.accuracy(outputs, data["test"].labels)
        seconds = time.perf_counter() - started
    return seconds


def tutorial_network(name: str) -> Any:
    """The same architectures as a tutorial writes them."""
    from torch import nn

    if name == "mlp":
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(1024, 60), nn.ReLU(), nn.Dropout(0.5)]
        return nn.Sequential(*layers, nn.Linear(60, 10))
    layers = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(16, 120, 5), nn.Tanh()]
    layers += [nn.Flatten(), nn.Linear(120, 84), nn.Tanh(), nn.Dropout(0.5), nn.Linear(84, 10)]
    return nn.Sequential(*layers)


def usual_epoch(way: str, name: str, folder: str) -> float:
    """Seconds of the first epoch with DataLoaders; making them is not timed."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from stages import models, sources

    sources.define_missing_operators()
    from torchvision import datasets, transforms

    steps = [transforms.Resize((32, 32)), transforms.ToTensor()]
    steps.append(transforms.Normalize(models.MEAN, models.STD))
    warnings.simplefilter("ignore")  # more workers than processors, as published
    loaders = {}
    for split in ("train", "test"):
        if way == "files":
            transform = transforms.Compose([transforms.Grayscale(), *steps])
            data: Any = datasets.ImageFolder(f"{folder}/png/{split}", transform)
        else:
            data = datasets.MNIST(folder, split == "train", transforms.Compose(steps))
        workers = 4 if way == "files" else 0
        loaders[split] = DataLoader(data, BATCH, shuffle=split == "train", num_workers=workers)
    network = tutorial_network(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    started = time.perf_counter()
    for images, labels in loaders["train"]:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        for images, labels in loaders["test"]:
            outputs = network(images)
            F.cross_entropy(outputs, labels).item()
            (outputs.argmax(1) == labels).sum().item()
    return time.perf_counter() - started


def epoch_flop() -> float:
    """Floating-point operations of LeNet-5's forward and backward passes over 60,000 images."""
    import stages  # noqa: F401  (the pins, before torch)

    # isort: split
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        tutorial_network("lenet5")(torch.rand(1, 1, 32, 32)).sum().backward()
    return 60_000.0 * counter.get_total_flops()


def matrix_product() -> float:
    """Floating-point operations a second of a 2048 x 2048 x 2048 product, the best of ten."""
    import torch

    from stages import params

    torch.set_num_threads(params.load().threads)
    a, b = torch.rand(2, 2048, 2048)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def measure(rounds: int = 3) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        from stages import files

        write_png_files(Path(scratch) / "png")
        (Path(scratch) / "MNIST").mkdir()
        (Path(scratch) / "MNIST" / "raw").symlink_to(files.DATA_RAW.resolve())
        seconds: dict[tuple[str, str], list[float]] = {}
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for unpinned in speeds:
                speeds[unpinned].append(float(child("epoch", "product", unpinned=unpinned)))
            for way in WAYS:
                for name in ("lenet5", "mlp"):
                    said = child("epoch", way, name, scratch, unpinned=way != "pipeline")
                    seconds.setdefault((way, name), []).append(float(said))
                    print(f"{way} {name} {seconds[way, name][-1]:.2f} s", file=sys.stderr)
    unpinned, pinned = (statistics.median(speeds[key]) for key in (True, False))
    rows = []
    ours = [seconds["pipeline", name] for name in ("lenet5", "mlp")]
    for way, title in WAYS.items():
        lenet5, mlp = (seconds[way, name] for name in ("lenet5", "mlp"))
        both = statistics.median(
            (a + b) / (c + d) for a, b, c, d in zip(lenet5, mlp, *ours, strict=True)
        )
        times = [f"{statistics.median(values):.2f}" for values in (lenet5, mlp)]
        rows.append([title, *times, f"{both:.2f}"])
    flop = epoch_flop()
    limit = flop / unpinned
    rows.append(["matrix product alone, unpinned", f"{limit:.2f}", "", ""])
    ratio = statistics.median(a / (flop / b) for a, b in zip(ours[0], speeds[True], strict=True))
    header = "an epoch of training and its test scores | LeNet-5 s | MLP s | both, ours = 1"
    note = (
        f"LeNet-5's epoch takes {ratio:.1f} times its {flop / 1e9:.1f} GFLOP at the speed of "
        f"a float32 matrix product ({unpinned / 1e9:.0f} GFLOP/s unpinned, {pinned / 1e9:.0f} "
        f"under the pins). Medians of {rounds}.\n"
    )
    return f"{table(header, 'lrrr', rows)}\n\n{note}"


def main(arguments: list[str]) -> None:
    if arguments[:1] != ["child"]:
        print(measure(*map(int, arguments)))
    elif arguments[1] == "product":
        import stages  # noqa: F401  (the pins)

        print(matrix_product())
    elif arguments[1] in ("pipeline", "unpinned"):
        print(pipeline_epoch(arguments[2]))
    else:
        print(usual_epoch(*arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
