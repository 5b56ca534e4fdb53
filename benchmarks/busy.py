"""A training beside other work: alone, beside one busy process, and two trainings at once.

    .venv/bin/python -m benchmarks.busy [ROUNDS]

Each figure is the time of whole processes: `python -m stages.train`, on copies of the code in
scratch folders, and in the last rows two epochs of a plain DataLoader loop. LeNet-5 is trained for
EPOCHS epochs, the MLP for all of its recipe. A thread that waits for another one spins before it
sleeps. The environment variable GOMP_SPINCOUNT, which stages/numerics.py sets, says how often. The
second table has other values of it, for the MLP.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import ENVIRONMENT, ROOT
from stages import files, numerics
from stages.tables import TITLES, table

EPOCHS = 4
LIBGOMP = "300000"  # its default
CURVE = ("30000", "3000", "1000", "300", "0")
SITUATIONS = ("quiet", "busy", "two")
HEADER = " | quiet s | beside a busy process | two at once | ratios to quiet, libgomp's default"

Command = tuple[tuple[str, ...], Mapping[str, str]]  # arguments of Python, and the environment


def place(scratch: Path) -> Path:
    """A copy of the code in a folder of its own: one folder takes one training at a time."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for package in ("stages", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package)
    for name in ("params.yaml", "pyproject.toml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "data").symlink_to(ROOT / "data")
    (folder / "MNIST").mkdir()
    (folder / "MNIST" / "raw").symlink_to(ROOT / files.DATA_RAW)
    params = folder / "params.yaml"
    head, lenet5 = params.read_text(encoding="utf-8").split("  documented:\n    lenet5:\n")
    lenet5 = lenet5.replace("epochs: 20", f"epochs: {EPOCHS}", 1)
    params.write_text(f"{head}  documented:\n    lenet5:\n{lenet5}", encoding="utf-8")
    return folder


def training(model: str, spins: str = numerics.SPINS) -> Command:
    env = {"GOMP_SPINCOUNT": spins, "DVC_STAGE": f"train_{model}"}
    return ("-m", "stages.train", model), env


def loader(model: str) -> Command:
    env = {"GOMP_SPINCOUNT": LIBGOMP, "UNPINNED": "1"}
    return ("-m", "benchmarks.busy", "child", model), env


def seconds(command: Command, situation: str, places: list[Path]) -> float:
    """Until the last of the processes that are measured has ended."""
    arguments, env = command
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] * (situation == "busy")
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
    commands: Mapping[str, Command], rounds: int, places: list[Path]
) -> dict[str, list[float]]:
    """Seconds in each situation, by name; the commands take turns."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            for situation in SITUATIONS:
                taken = seconds(command, situation, places)
                found.setdefault((name, situation), []).append(taken)
                print(f"{name}, {situation}: {taken:.1f} s", file=sys.stderr)
    return {
        name: [statistics.median(found[name, situation]) for situation in SITUATIONS]
        for name in commands
    }


def rows(times: Mapping[str, list[float]], reference: float) -> list[list[str]]:
    return [
        [
            name,
            *(f"{taken:.1f}" for taken in taken_in),
            ", ".join(f"{taken / reference:.2f}" for taken in taken_in),
        ]
        for name, taken_in in times.items()
    ]


def measure(rounds: int = 5) -> str:
    first: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="busy-") as scratch:
        places = [place(Path(scratch)) for _ in range(2)]
        for model, title in TITLES.items():
            default = f"{title}, {LIBGOMP} spins, libgomp's default"
            commands = {f"{title}, {numerics.SPINS} spins, as set here": training(model)}
            times = medians({default: training(model, LIBGOMP), **commands}, rounds, places)
            first += rows(times, times[default][0])
        for model, title in TITLES.items():
            name = f"{title}, DataLoader"
            times = medians({name: loader(model)}, min(rounds, 3), places)
            first += rows(times, times[name][0])
        curve = {f"{spins} spins": training("mlp", spins) for spins in (LIBGOMP, *CURVE)}
        times = medians(curve, min(rounds, 2), places)
        second = rows(times, times[f"{LIBGOMP} spins"][0])
    return (
        f"{table('a training' + HEADER, 'lrrrc', first)}\n\nMedians of {rounds}, of 3 for the "
        f"DataLoader, whose ratios are to its own quiet time. LeNet-5 takes {EPOCHS} epochs, the "
        f"DataLoader 2.\n\n{table('the MLP with' + HEADER, 'lrrrc', second)}\n\nMedians of 2.\n"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["child"]:
        from benchmarks.epoch import usual_epoch

        for _ in range(2):
            usual_epoch("loader", arguments[1], ".")
    else:
        print(measure(*map(int, arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
