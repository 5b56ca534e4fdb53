"""An epoch of this pipeline, of plain PyTorch, of two usual ways to load MNIST, and of the
arithmetic alone.

    .venv/bin/python -m benchmarks.epoch [ROUNDS]

An epoch is 60,000 training images and the scores on the 10,000 test images. The ways, in turn:

- pipeline: the prepared images, mapped, and the exact sums of stages/networks/exact.py.
- plain PyTorch: the same images, normalised once, PyTorch's own layers, optimizer and loss; pinned,
  with the kernels that every processor with AVX2 has, so that such processors agree on the bits.
- JAX: the same loop on the same images, compiled by XLA, which may use all processors.
- DataLoader: torchvision's MNIST and transforms, in a DataLoader without workers.
- files: the method of the published experiment: PNG files in a folder a digit, opened with PIL,
  resized and normalised by torchvision's transforms, in a DataLoader with 4 workers. It is
  implemented anew here.
- matrix product: LeNet-5's floating-point operations at the speed of a large float32 product.
"""

import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks import child
from stages.show.tables import table

WAYS = {
    "pipeline": "this pipeline (exact)",
    "pinned": "plain PyTorch, pinned",
    "plain": "plain PyTorch",
    "jax": "JAX",
    "loader": "DataLoader",
    "files": "PNG files, DataLoader with 4 workers",
}
BATCH = 512
PINS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own vector kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products: one code path on Intel and AMD
    "MKL_DYNAMIC": "FALSE",  # never fewer threads than asked for
    "OMP_DYNAMIC": "FALSE",
}


def write_png_files(folder: Path) -> None:
    """MNIST as PNG files, in a folder a split and digit."""
    from PIL import Image

    from stages.base import files
    from stages.base.params import CLASSES
    from stages.mnist import idx

    content = {file: (files.DATA_RAW / file.name).read_bytes() for file in idx.FILES}
    for split, part in idx.read(content).items():
        for digit in range(CLASSES):
            (folder / split / str(digit)).mkdir(parents=True)
        for index, (image, digit) in enumerate(zip(part.images, part.labels, strict=True)):
            Image.fromarray(image).save(folder / split / str(digit) / f"{index}.png")


def pipeline_epoch(name: str) -> float:
    """Seconds of the second epoch; the first warms up."""
    from stages.base import files, numerics, params
    from stages.base.splits import load_split
    from stages.learn import training
    from stages.networks import exact, models

    settings = params.load()
    recipe = settings.of_model(name)
    splits = {split: load_split(files.DATA_PREPARED, split) for split in ("train", "test")}
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
        exact.cross_entropy(outputs, data["test"].labels.long()).item()
        models.accuracy(outputs, data["test"].labels)
        seconds = time.perf_counter() - started
    return seconds


def plain_epoch(name: str) -> float:
    """Seconds of the second epoch of a plain loop on the same images, normalised beforehand."""
    from stages.base import files, numerics, params
    from stages.base.splits import load_split
    from stages.networks import models

    # isort: split
    import torch
    import torch.nn.functional as F

    settings = params.load()
    numerics.configure(settings.threads, settings.seed)
    data = {}
    for split in ("train", "test"):
        part = models.examples(load_split(files.DATA_PREPARED, split))
        data[split] = models.normalize(part.images) * models.SCALE, part.labels.long()
    network = tutorial_network(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        network.train()
        images, labels = data["train"]
        for batch in torch.split(torch.randperm(len(labels)), BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            loss.item()  # as ours, which looks at each step's loss
            loss.backward()
            optimizer.step()
        network.eval()
        images, labels = data["test"]
        with torch.no_grad():
            outputs = torch.cat([network(part) for part in torch.split(images, BATCH)])
            F.cross_entropy(outputs, labels).item()
            (outputs.argmax(1) == labels).sum().item()
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


def jax_epoch(name: str) -> float:
    """Seconds of the second epoch of the same plain loop in JAX, each step compiled by XLA."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    from stages.base import files
    from stages.base.splits import load_split
    from stages.networks import models

    data = {}
    for split in ("train", "test"):
        part = load_split(files.DATA_PREPARED, split)
        images = (part.images[..., None].astype(np.float32) - models.SHIFT) * models.SCALE
        data[split] = jnp.asarray(images), jnp.asarray(part.labels, jnp.int32)
    generator = np.random.default_rng(0)
    weights = {}
    for key, tensor in tutorial_network(name).state_dict().items():
        value = tensor.numpy()
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
        weights[key] = jnp.asarray(value.transpose(axes))

    def layer(weights: Any, x: Any, number: int) -> Any:
        kernel, bias = weights[f"{number}.weight"], weights[f"{number}.bias"]
        if kernel.ndim == 2:
            return x.reshape(len(x), -1) @ kernel + bias
        order = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=order) + bias

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4

    def network(weights: Any, x: Any, key: Any = None) -> Any:
        if name == "mlp":
            x, last = jax.nn.relu(layer(weights, x, 1)), 4
        else:
            x = pool(jnp.tanh(layer(weights, x, 0)))
            x = pool(jnp.tanh(layer(weights, x, 3)))
            x, last = jnp.tanh(layer(weights, jnp.tanh(layer(weights, x, 6)), 9)), 12
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x * 2, 0)
        return layer(weights, x, last)

    def cross_entropy(weights: Any, x: Any, labels: Any, key: Any = None) -> Any:
        return -jax.nn.log_softmax(network(weights, x, key))[jnp.arange(len(x)), labels].mean()

    @jax.jit
    def step(weights: Any, velocity: Any, x: Any, labels: Any, key: Any) -> Any:
        loss, gradient = jax.value_and_grad(cross_entropy)(weights, x, labels, key)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        return jax.tree.map(lambda w, v: w - 0.01 * v, weights, velocity), velocity, loss

    @jax.jit
    def score(weights: Any, x: Any, labels: Any) -> Any:
        right = network(weights, x).argmax(1) == labels
        return cross_entropy(weights, x, labels), right.sum()

    velocity, key = jax.tree.map(jnp.zeros_like, weights), jax.random.key(0)
    seconds = 0.0
    for _ in range(2):  # the first one compiles
        started = time.perf_counter()
        images, labels = data["train"]
        order = generator.permutation(len(labels))
        for start in range(0, len(labels), BATCH):
            batch = order[start : start + BATCH]
            key, own = jax.random.split(key)
            weights, velocity, loss = step(weights, velocity, images[batch], labels[batch], own)
            loss.item()
        images, labels = data["test"]
        for start in range(0, len(labels), BATCH):
            batch = slice(start, start + BATCH)
            jax.block_until_ready(score(weights, images[batch], labels[batch]))
        seconds = time.perf_counter() - started
    return seconds


def usual_epoch(way: str, name: str, folder: str) -> float:
    """Seconds of the first epoch with DataLoaders; making them is not timed."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from stages.mnist import sources
    from stages.networks import models

    sources.define_missing_operators()
    from torchvision import datasets, transforms

    steps = [transforms.Resize((32, 32)), transforms.ToTensor()]
    steps.append(transforms.Normalize(0.1307, models.STD))
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
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        tutorial_network("lenet5")(torch.rand(1, 1, 32, 32)).sum().backward()
    return 60_000.0 * counter.get_total_flops()


def matrix_product() -> float:
    """Floating-point operations a second of a 2048 x 2048 x 2048 product, the best of ten."""
    import torch

    from stages.base import params

    torch.set_num_threads(params.load().threads)
    a, b = torch.rand(2, 2048, 2048)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def environment(way: str) -> dict[str, str]:
    return PINS if way == "pinned" else {}


def measure(rounds: int = 3) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        from stages.base import files

        write_png_files(Path(scratch) / "png")
        (Path(scratch) / "MNIST").mkdir()
        (Path(scratch) / "MNIST" / "raw").symlink_to(files.DATA_RAW.resolve())
        seconds: dict[tuple[str, str], list[float]] = {}
        speeds: dict[str, list[float]] = {"plain": [], "pinned": []}
        for _ in range(rounds):
            for way, values in speeds.items():
                values.append(float(child("epoch", "product", env=environment(way))))
            for way in WAYS:
                for name in ("lenet5", "mlp"):
                    said = child("epoch", way, name, scratch, env=environment(way))
                    seconds.setdefault((way, name), []).append(float(said))
                    print(f"{way} {name} {seconds[way, name][-1]:.2f} s", file=sys.stderr)
    plain, pinned = (statistics.median(speeds[way]) for way in ("plain", "pinned"))
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
    rows.append(["matrix product alone", f"{flop / plain:.2f}", "", ""])
    pairs = zip(ours[0], speeds["plain"], strict=True)
    ratio = statistics.median(a / (flop / b) for a, b in pairs)
    header = "an epoch of training and its test scores | LeNet-5 s | MLP s | both, ours = 1"
    note = (
        f"LeNet-5's epoch takes {ratio:.1f} times its {flop / 1e9:.1f} GFLOP at the speed of "
        f"a float32 matrix product ({plain / 1e9:.0f} GFLOP/s, {pinned / 1e9:.0f} pinned). "
        f"Medians of {rounds}.\n"
    )
    return f"{table(header, 'lrrr', rows)}\n\n{note}"


def main(arguments: list[str]) -> None:
    if arguments[:1] != ["child"]:
        print(measure(*map(int, arguments)))
    elif arguments[1] == "product":
        print(matrix_product())
    elif arguments[1] == "pipeline":
        print(pipeline_epoch(arguments[2]))
    elif arguments[1] == "jax":
        print(jax_epoch(arguments[2]))
    elif arguments[1] in ("pinned", "plain"):
        print(plain_epoch(arguments[2]))
    else:
        print(usual_epoch(*arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
