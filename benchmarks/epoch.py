"""An epoch of this pipeline, of plain PyTorch, of two usual ways to load MNIST, and of the
arithmetic alone.

    .venv/bin/python -m benchmarks.epoch [ROUNDS]

An epoch is 60,000 training images and the scores on the 10,000 test images. The ways, in turn:

- pipeline: the stage that trains, in a clone of this commit.
- plain PyTorch: the same images, normalised once, PyTorch's own layers, optimizer and loss; pinned,
  with the kernels that every processor with AVX2 has, so that such processors agree on the bits.
- JAX: the same loop on the same images, compiled by XLA, which may use all processors.
- DataLoader: torchvision's MNIST and transforms, in a DataLoader without workers.
- files: the method of the published experiment, written anew: PNG files in a folder a digit, opened
  with PIL, resized and normalised by torchvision's transforms, in a DataLoader with 4 workers.
- busy: beside a process that computes all the time, on each processor.

The time is that of a later epoch, because the first warms up or compiles. With DataLoaders it is
that of the first; making them is not timed. Every way may use all cores, but for the rows that
say that they have one.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import joblib

from benchmarks import TITLES, Way, child, in_turns, median, ratios
from benchmarks.training import an_epoch, clone
from stages.arithmetic import numerics, threads
from stages.base import files, params
from stages.base.splits import load_split
from stages.mnist import idx, vision
from stages.show.tables import table

WAYS = {
    "pipeline": "this pipeline (exact)",
    "pipeline alone": "this pipeline, one core",
    "plain alone": "plain PyTorch, one core",
    "jax alone": "JAX, one core",
    "pinned": "plain PyTorch, pinned",
    "plain": "plain PyTorch",
    "jax": "JAX",
    "loader": "DataLoader",
    "files": "PNG files, DataLoader with 4 workers",
    "pipeline busy": "this pipeline, beside busy processes",
    "loader busy": "DataLoader, beside busy processes",
}
BATCH = 512
FLOP = 135.8e9  # of LeNet-5, forward and backward, in an epoch (torch.utils.flop_counter)
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

    content = {file: (files.DATA_RAW / file.name).read_bytes() for file in idx.FILES}
    for split, part in idx.read(content).items():
        for index, (image, digit) in enumerate(zip(part.images, part.labels, strict=True)):
            path = folder / split / str(digit) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def normalized() -> dict[str, tuple[Any, Any]]:
    """The prepared images (N, 1, 32, 32), float32, and labels (N,), by split."""
    from stages.networks import models

    parts = {
        split: models.examples(load_split(files.DATA_PREPARED, split))
        for split in ("train", "test")
    }
    return {
        split: ((part.images.float() - models.SHIFT) * models.SCALE, part.labels.long())
        for split, part in parts.items()
    }


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


def torch_epoch(name: str, batches: Callable[[str], Iterable[Any]], epochs: int) -> float:
    """Seconds of the last epoch of a plain loop. ``batches`` gives images and labels of a split."""
    import torch
    import torch.nn.functional as F

    network = tutorial_network(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    seconds = 0.0
    for _ in range(epochs):
        started = time.perf_counter()
        network.train()
        for images, labels in batches("train"):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.item()  # as ours, which looks at each step's loss
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            for images, labels in batches("test"):
                outputs = network(images)
                F.cross_entropy(outputs, labels).item()
                (outputs.argmax(1) == labels).sum().item()
        seconds = time.perf_counter() - started
    return seconds


def plain_epoch(name: str) -> float:
    import torch

    settings = params.load()
    numerics.configure(settings.threads, settings.seed)
    data = normalized()

    def batches(split: str) -> Iterable[Any]:
        images, labels = data[split]
        order = torch.randperm(len(labels)) if split == "train" else torch.arange(len(labels))
        return ((images[batch], labels[batch]) for batch in torch.split(order, BATCH))

    return torch_epoch(name, batches, 2)


def loader_epoch(way: str, name: str, folder: str) -> float:
    from torch.utils.data import DataLoader

    from stages.networks import models

    vision.define_missing_operators()
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
    return torch_epoch(name, loaders.__getitem__, 1)


def jax_epoch(name: str) -> float:
    """The plain loop in JAX, each step compiled by XLA."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    data = {
        split: (jnp.asarray(images.numpy().transpose(0, 2, 3, 1)), jnp.asarray(labels.numpy()))
        for split, (images, labels) in normalized().items()
    }
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # of kernels, matrices and biases
    numbers = [tensor.detach().numpy() for tensor in tutorial_network(name).parameters()]
    weights = [jnp.asarray(number.transpose(axes[number.ndim])) for number in numbers]

    def layer(weights: Any, x: Any, number: int) -> Any:
        kernel, bias = weights[2 * number : 2 * number + 2]
        if kernel.ndim == 2:
            return x.reshape(len(x), -1) @ kernel + bias
        order = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=order) + bias

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4

    def network(weights: Any, x: Any, key: Any) -> Any:
        if name == "mlp":
            x = jax.nn.relu(layer(weights, x, 0))
        else:
            x = pool(jnp.tanh(layer(weights, pool(jnp.tanh(layer(weights, x, 0))), 1)))
            x = jnp.tanh(layer(weights, jnp.tanh(layer(weights, x, 2)), 3))
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x * 2, 0)
        return layer(weights, x, len(weights) // 2 - 1)

    def scores(weights: Any, x: Any, labels: Any, key: Any = None) -> Any:
        outputs = network(weights, x, key)
        loss = -jax.nn.log_softmax(outputs)[jnp.arange(len(x)), labels].mean()
        return loss, (outputs.argmax(1) == labels).sum()

    @jax.jit
    def step(weights: Any, velocity: Any, x: Any, labels: Any, key: Any) -> Any:
        (loss, _), gradient = jax.value_and_grad(scores, has_aux=True)(weights, x, labels, key)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        return jax.tree.map(lambda w, v: w - 0.01 * v, weights, velocity), velocity, loss

    generator, key = np.random.default_rng(0), jax.random.key(0)
    velocity, score, seconds = jax.tree.map(jnp.zeros_like, weights), jax.jit(scores), 0.0
    for _ in range(2):
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


def matrix_product() -> float:
    """Floating-point operations a second of a 2048 x 2048 x 2048 product, the best of ten."""
    import torch

    threads.use(params.load().threads)
    torch.set_num_threads(threads.number())
    a, b = torch.rand(2, 2048, 2048)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def seconds(way: Way) -> float:
    """Of an epoch; of "product", operations a second."""
    kind, *arguments = way
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(joblib.cpu_count())] if "busy" in kind else []
    try:
        alone = kind.endswith("alone")
        if kind.startswith("pipeline"):
            return an_epoch(Path(arguments[1]) / "clone", arguments[0], cores=int(alone))
        env = PINS if "pinned" in way else {}
        return float(child("epoch", kind.split()[0], *arguments, env=env, alone=alone).output)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(rounds: int = 3) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        clone(Path(scratch) / "clone")
        write_png_files(Path(scratch) / "png")
        (Path(scratch) / "MNIST").mkdir()
        (Path(scratch) / "MNIST" / "raw").symlink_to(files.DATA_RAW.resolve())
        ways = [(way, name, scratch) for way in WAYS for name in TITLES]
        taken = in_turns([*ways, ("product",), ("product", "pinned")], seconds, rounds)
        times = {way: [taken[way, name, scratch] for name in TITLES] for way in WAYS}
    both = {way: [*map(sum, zip(*pairs, strict=True))] for way, pairs in times.items()}
    rows = [
        [title, *map(median, times[way]), median(ratios(both[way], both["pipeline"]))]
        for way, title in WAYS.items()
    ]
    alone = [FLOP / speed for speed in taken["product",]]
    rows.append(["matrix product alone", median(alone), "", ""])
    header = "an epoch of training and its test scores | LeNet-5 s | MLP s | both, ours = 1"
    speeds = [median((speed / 1e9 for speed in taken[way]), 0) for way in [*taken][-2:]]
    return (
        f"{table(header, 'lrrr', rows)}\n\nLeNet-5's epoch takes "
        f"{median(ratios(times['pipeline'][0], alone), 1)} times its {FLOP / 1e9:.1f} GFLOP at the "
        f"speed of a float32 matrix product ({speeds[0]} GFLOP/s, {speeds[1]} pinned). Medians of "
        f"{rounds}.\n"
    )


def one_epoch(way: str, name: str = "", folder: str = "") -> float:
    if way == "product":
        return matrix_product()
    if way == "jax":
        return jax_epoch(name)
    return plain_epoch(name) if way in ("plain", "pinned") else loader_epoch(way, name, folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(one_epoch(*sys.argv[2:]))
    else:
        print(measure(*map(int, sys.argv[1:])))
