"""The stages that train, as their users run them, beside those of an earlier commit.

    .venv/bin/python -m benchmarks.training [ROUNDS] [COMMIT] [RECIPE]

An epoch is what lies between two lines that a stage prints. The commit is cloned, and uses this
environment and this checkout's data/prepared.
"""

import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
from ruamel.yaml import YAML

from benchmarks import ENVIRONMENT, ROOT, TITLES, Way, in_turns, median, ratios
from stages.show.tables import table

BEFORE = "c2632f0"  # the last commit that only PyTorch computed for


def set_in(folder: Path, **settings: str | int) -> None:
    """Change settings in the params.yaml there."""
    yaml, path = YAML(), folder / "params.yaml"
    yaml.dump(yaml.load(path) | settings, path)


def an_epoch(folder: Path, model: str, epochs: int = 3, cores: int = 0) -> float:
    """Seconds of the median epoch of a training, but for the first, which compiles.

    Args:
        epochs: The training is stopped after them.
        cores: How many it may use, with a thread for each. 0: all.
    """
    shutil.rmtree(folder / ".dvc/tmp", ignore_errors=True)  # a checkpoint of the last turn
    set_in(folder, threads=cores or joblib.cpu_count())
    pin = ["taskset", "--cpu-list", ",".join(map(str, range(cores)))] if cores else []
    process = subprocess.Popen(
        [*pin, sys.executable, "-u", "-m", "stages.train", model],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    ends: list[float] = []
    for line in process.stdout:
        if line.startswith("epoch "):
            ends.append(time.perf_counter())
        if len(ends) == epochs:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate()
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


def clone(folder: Path, commit: str = "HEAD", recipe: str = "documented") -> None:
    """A clone with our prepared images that trains with ``recipe``."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True)
    shutil.copytree(ROOT / "data/prepared", folder / "data/prepared")
    set_in(folder, recipe=recipe)


def measure(rounds: int = 5, before: str = BEFORE, recipe: str = "documented") -> str:
    with tempfile.TemporaryDirectory() as scratch:
        places = {name: Path(scratch) / name for name in ("HEAD", before)}
        for commit, folder in places.items():
            clone(folder, commit, recipe)

        def seconds(way: Way) -> float:
            return an_epoch(places[way[0]], way[1], cores=int(way[2]))

        cores = ["1", *([str(joblib.cpu_count())] if joblib.cpu_count() > 1 else [])]
        ways = [(commit, model, n) for n in cores for model in TITLES for commit in places]
        taken = in_turns(ways, seconds, rounds)
    rows = [
        [
            f"{TITLES[model]}, {number} {'core' if number == '1' else 'cores'}",
            median(taken[before, model, number]),
            median(taken["HEAD", model, number]),
            median(ratios(taken["HEAD", model, number], taken[before, model, number])),
        ]
        for number in cores
        for model in TITLES
    ]
    header = f"an epoch of `{recipe}`, s | commit {before} | this commit | ratio"
    return f"{table(header, 'lrrr', rows)}\n\nMedians of {rounds}.\n"


if __name__ == "__main__":
    print(measure(*map(int, sys.argv[1:2]), *sys.argv[2:]))
