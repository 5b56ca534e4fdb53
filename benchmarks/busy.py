"""A training beside other work: alone, beside one busy process, and two trainings at once.

    .venv/bin/python -m benchmarks.busy [ROUNDS]

Each figure is the time of whole processes: `python -m stages.train`, on copies of the code in
scratch folders, and an epoch of a plain DataLoader loop. LeNet-5 is trained for EPOCHS
epochs, the MLP for all of its recipe. A thread that waits for another one spins before it sleeps.
The environment variable GOMP_SPINCOUNT, which stages/base/numerics.py sets, says how often. The
second table has other values of it, for the MLP.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import ENVIRONMENT, ROOT
from stages.base import files, numerics
from stages.base.params import TITLES
from stages.show.tables import table

EPOCHS = 2
LIBGOMP = "300000"  # its default
CURVE = (LIBGOMP, "3000", "1000", "0")
SITUATIONS = ("quiet", "busy", "two")
HEADER = " | quiet s | beside a busy process s | two at once s | by quiet, libgomp's default"

Command = tuple[tuple[str, ...], Mapping[str, str]]  # arguments of Python, and the environment


def place(scratch: Path) -> Path:
    """A copy of the code in a folder of its own: one folder takes one training at a time."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for package in ("dvc_mlflow", "stages", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package)
    for name in ("params.yaml", "recipes.yaml", "pyproject.toml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "data").symlink_to(ROOT / "data")
    (folder / "MNIST").mkdir()
    (folder / "MNIST" / "raw").symlink_to(ROOT / files.DATA_RAW)
    recipes = folder / "recipes.yaml"
    head, lenet5 = recipes.read_text(encoding="utf-8").split("\ndocumented:\n  lenet5:\n")
    lenet5 = lenet5.replace("epochs: 20", f"epochs: {EPOCHS}", 1)
    recipes.write_text(f"{head}\ndocumented:\n  lenet5:\n{lenet5}", encoding="utf-8")
    return folder


def training(model: str, spins: str = numerics.SPINS) -> Command:
    env = {"GOMP_SPINCOUNT": spins, "DVC_STAGE": f"train_{model}"}
    return ("-m", "stages.train", model), env


def loader(model: str) -> Command:
    return ("-m", "benchmarks.busy", "child", model), {"GOMP_SPINCOUNT": LIBGOMP}


def seconds(command: Command, situation: str, places: list[Path]) -> float:
    """Until the last of the processes that are measured has ended."""
    arguments, env = command
    beside = []
    if situation == "busy":
        beside.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
    begun = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=ENVIRONMENT | {"MIRROR": "off", "PYTHONPATH": str(folder), **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for folder in places[: 2 if situation == "two" else 1]
    ]
    codes = [process.wait() for process in processes]
    taken = time.perf_counter() - begun
    for other in beside:
        other.kill()
        other.wait()
    if any(codes):
        sys.exit(f"error: {' '.join(arguments)} failed")
    return taken


def medians(
    commands: Mapping[str, Command], situations: Sequence[str], rounds: int, places: list[Path]
) -> dict[str, list[float]]:
    """Seconds in each situation, by name; the commands take turns."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            for situation in situations:
                taken = seconds(command, situation, places)
                found.setdefault((name, situation), []).append(taken)
                print(name, *command[0], situation, f"{taken:.1f} s", file=sys.stderr)
    return {
        name: [statistics.median(found[name, situation]) for situation in situations]
        for name in commands
    }


def row(name: str, taken_in: Sequence[float], quiet: float) -> list[str]:
    """Seconds in the three situations, and their ratios to a quiet time."""
    times = [f"{taken:.1f}" for taken in taken_in]
    return [name, *times, ", ".join(f"{taken / quiet:.2f}" for taken in taken_in)]


def measure(rounds: int = 5) -> str:
    first, fewer = [], min(rounds, 2)
    with tempfile.TemporaryDirectory(prefix="busy-") as scratch:
        places = [place(Path(scratch)) for _ in range(2)]
        for model, title in TITLES.items():
            # In turns, a round at a time, because the machine's own speed drifts
            ours, default = [], []
            for _ in range(rounds):
                ours += medians({"": training(model)}, SITUATIONS, 1, places).values()
                default += medians({"": training(model, LIBGOMP)}, ["quiet"], 1, places).values()
            times = [statistics.median(taken) for taken in zip(*ours, strict=True)]
            [quiet] = (statistics.median(taken) for taken in zip(*default, strict=True))
            first.append(row(title, times, quiet))
        for model, title in TITLES.items():
            [times] = medians({"": loader(model)}, SITUATIONS, fewer, places).values()
            first.append(row(f"{title}, plain DataLoader loop", times, times[0]))
        curve = {spins: training("mlp", spins) for spins in CURVE}
        found = medians(curve, SITUATIONS, 1, places)
        second = [row(name, times, found[LIBGOMP][0]) for name, times in found.items()]
    return (
        f"{table('a training' + HEADER, 'lrrrc', first)}\n\n`GOMP_SPINCOUNT` is {numerics.SPINS} "
        f"here and {LIBGOMP} in libgomp. LeNet-5 is trained for {EPOCHS} epochs. The DataLoader "
        f"loops have one epoch, and their ratios are to their own quiet time. Medians of {rounds}, "
        f"of the loops {fewer}.\n\n{table('`GOMP_SPINCOUNT`, MLP' + HEADER, 'lrrrc', second)}\n\n"
        "One run each.\n"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["child"]:
        from benchmarks.epoch import usual_epoch

        usual_epoch("loader", arguments[1], ".")
    else:
        print(measure(*map(int, arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
