"""How long things take, compared with other ways in the same run: `make bench`.

Each measurement is a process of its own, because libraries read their settings when imported. What
is compared takes turns, because a machine's own speed drifts. A figure is a median, and a ratio is
the median of the ratios of each turn.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "MIRROR": "off",
}
TITLES = {"lenet5": "LeNet-5", "mlp": "MLP"}
Way = tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """A process that has ended: its output, its time, its processor's time, its largest memory."""

    output: str
    seconds: float
    cpu: float
    peak_mb: float


ONE_CORE = ("taskset", "--cpu-list", "0")


def run(*command: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Ran:
    started = time.perf_counter()
    environment = ENVIRONMENT | (env or {})
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Ran(output, time.perf_counter() - started, cpu, usage.ru_maxrss / 1024)


def child(
    module: str, *arguments: str, env: Mapping[str, str] | None = None, alone: bool = False
) -> Ran:
    """``python -m benchmarks.MODULE child ARGUMENTS``, on a single core if it is ``alone``."""
    command = (sys.executable, "-m", f"benchmarks.{module}", "child", *arguments)
    return run(*(ONE_CORE if alone else ()), *command, env=env)


def in_turns(
    ways: Iterable[Way], seconds: Callable[[Way], float], rounds: int
) -> dict[Way, list[float]]:
    """What each way takes in each round. Every second round goes backwards."""
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in [*taken][:: -1 if number % 2 else 1]:
            taken[way].append(seconds(way))
            print(*way, taken[way][-1], file=sys.stderr)
    return taken


def ratios(these: Iterable[float], those: Iterable[float]) -> list[float]:
    return [this / that for this, that in zip(these, those, strict=True)]


def median(values: Iterable[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f}"
