"""A training by this pipeline in a process of its own, and what its checkpoints cost.

    .venv/bin/python -m benchmarks.training [ROUNDS]

The selected recipe, five epochs of LeNet-5 and twenty of the MLP, on this checkout's data/prepared.
"""

import cProfile
import pstats
import sys
import tempfile
import time
from contextlib import chdir

from benchmarks import child, median
from stages.show.tables import table

EPOCHS = {"lenet5": 5, "mlp": 20}
OF_CHECKPOINTS = ("key", "restore", "save", "remove")  # in stages/learn/checkpoint.py


def train(model: str, epochs: int) -> tuple[float, float, float]:
    """Seconds of the last epoch with its scores, of the training, and of it with checkpoints."""
    from dvc_guard import alone
    from stages.arithmetic import numerics
    from stages.base import files, params, splits
    from stages.learn import checkpoint, resume

    settings = params.load()
    recipe = settings.of_model(model).model_copy(update={"epochs": epochs})
    parts = {part: splits.load_split(files.DATA_PREPARED, part) for part in splits.SPLITS}
    generator = numerics.configure(settings.threads, settings.seed)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), cProfile.Profile() as profile:
        alone.FOLDER.mkdir(parents=True)  # where checkpoints lie
        ends = [time.perf_counter()]
        training = resume.Training("train", model, parts, recipe, "cpu", generator)
        ends += [time.perf_counter() for _ in training.epochs()]
        training.finish()
        total = time.perf_counter() - ends[0]
    functions = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    times = {
        name: figures[3] for (file, _, name), figures in functions if file == checkpoint.__file__
    }
    return ends[-1] - ends[-2], total, sum(times.get(name, 0) for name in OF_CHECKPOINTS)


def measure(rounds: int = 8) -> str:
    rows = []
    for model, epochs in EPOCHS.items():
        trainings = [child("training", model, str(epochs)).output for _ in range(rounds)]
        figures = [[float(word) for word in said.split()[-3:]] for said in trainings]
        share = median(100 * spent / total for _, total, spent in figures)
        rows.append([f"{model}, {epochs} epochs", f"{share} %"])
    return table("a training | time in checkpoints", "lr", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(*train(sys.argv[2], int(sys.argv[3])))
    else:
        print(measure(*map(int, sys.argv[1:])))
