"""The cost of checkpoints, with which an interrupted training resumes.

    .venv/bin/python -m benchmarks.checkpoints [ROUNDS]

The recipe `documented`, all of its epochs for the MLP and five of them for LeNet-5, in this
checkout's data/prepared. With and without checkpoints in turn, where without means that nothing is
hashed, saved or read; and, because two trainings differ by more than that costs, the time that a
training with checkpoints itself spends on them.
"""

import statistics
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

from benchmarks import child
from stages.show.tables import table

EPOCHS = {"lenet5": 5, "mlp": 20}


class Clock:
    """Adds up the seconds that the functions wrapped by it take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function):
        def timed(*arguments):
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def measured(name: str, protected: bool) -> tuple[float, float]:
    """Seconds of a whole training, and those of them that checkpoints take."""
    from dvc_mlflow import alone
    from stages.base import files, numerics, params
    from stages.base.splits import SPLITS, load_split
    from stages.learn import checkpoint, resume

    settings = params.load()
    recipe = getattr(settings.recipes["documented"], name)
    recipe = recipe.model_copy(update={"epochs": EPOCHS[name]})
    splits = {part: load_split(files.DATA_PREPARED, part) for part in SPLITS}
    clock = Clock()
    if protected:
        resume.key = clock(checkpoint.key)
        for method in ("restore", "save", "remove"):
            wrapped = clock(getattr(checkpoint.Checkpoint, method))
            setattr(checkpoint.Checkpoint, method, wrapped)
    else:
        resume.key = lambda *_: b""
        resume.Checkpoint = lambda *_: SimpleNamespace(
            restore=lambda state: None, save=lambda state: None, remove=lambda: None
        )
    generator = numerics.configure(settings.threads, settings.seed)
    with tempfile.TemporaryDirectory(dir=Path()) as folder, chdir(folder):
        alone.FOLDER.mkdir(parents=True)
        started = time.perf_counter()
        training = resume.Training("train", name, splits, recipe, "cpu", generator)
        for _ in training.epochs():
            pass
        training.finish()
        return time.perf_counter() - started, clock.seconds


def measure(rounds: int = 8) -> str:
    rows = []
    for name in EPOCHS:
        ratios, shares = [], []
        for number in range(rounds):
            # Which comes first alternates, because a warm cache favours the second
            ways = ("without", "with") if number % 2 else ("with", "without")
            found = {
                way: [float(word) for word in child("checkpoints", name, way).split()[-2:]]
                for way in ways
            }
            ratios.append(found["with"][0] / found["without"][0])
            shares.append(found["with"][1] / found["with"][0])
            print(name, found, file=sys.stderr)
        rows.append(
            [
                f"{name}, {EPOCHS[name]} epochs",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
                f"{statistics.median(shares):.2%}",
            ]
        )
    return table("a training | with / without | range | time in checkpoints", "lrrr", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(*measured(sys.argv[2], sys.argv[3] == "with"))
    else:
        print(measure(*map(int, sys.argv[1:2])))
