"""What the pins cost: one epoch of each model, pinned and unpinned in turn, in one run.

    .venv/bin/python benchmarks/pins.py [ROUNDS]

Needs data/prepared. Each measurement is a process of its own, because the pins hold from import on.
"""

import os
import statistics
import subprocess
import sys
import time


def child(name: str) -> None:
    """Print the seconds of the second epoch over the 60,000 images; the first warms up."""
    from stages import files, mnist, models, numerics, params, training

    settings = params.load()
    recipe = settings.of_model("lenet5" if name == "lenet5" else "mlp")
    data = training.examples(mnist.load_split(files.DATA_PREPARED, "train"))
    generator = numerics.configure(settings.threads, settings.seed)
    network = models.build("lenet5" if name == "lenet5" else "mlp", recipe)
    optimizer = training.build_optimizer(network, recipe)
    for epoch in (2, 3):
        started = time.perf_counter()
        training.train_epoch(
            network, data, recipe, optimizer, generator, epoch, lambda moment: None
        )
    print(time.perf_counter() - started)


def measure(name: str, unpinned: str) -> float:
    command = [sys.executable, __file__, "--child", name]
    environment = os.environ | {"UNPINNED": unpinned, "PYTHONPATH": "."}
    return float(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    )


def main(rounds: int) -> None:
    print(f"{'model':10}{'pinned s':>10}{'unpinned s':>12}{'ratio':>8}   (medians of {rounds})")
    for name in ("lenet5", "mlp"):
        pairs = [(measure(name, "0"), measure(name, "1")) for _ in range(rounds)]
        pinned, unpinned = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:10}{pinned:10.2f}{unpinned:12.2f}{ratio:8.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
