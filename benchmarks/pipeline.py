"""Time and memory of each stage, of the whole pipeline, and of a `dvc repro` with nothing to do.

    .venv/bin/python benchmarks/pipeline.py

Runs everything for real in this checkout, with `dvc repro --force`; what it writes is the same.
"""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

STAGES = {
    "prepare": ["stages.prepare"],
    "train_lenet5": ["stages.train", "lenet5"],
    "train_mlp": ["stages.train", "mlp"],
    "evaluate": ["stages.evaluate"],
    "plot": ["stages.plot"],
}
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONUNBUFFERED": "1",
}


def measure(command: list[str]) -> tuple[float, float, list[float]]:
    """Wall seconds, peak resident MB of the process, and the time at which each epoch ended."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout
    epochs = [time.perf_counter() for line in process.stdout if re.match(r"epoch +\d+/", line)]
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, epochs


def main() -> None:
    print(f"{'':24}{'seconds':>9}{'peak MB':>9}{'s/epoch':>9}")
    for stage, arguments in STAGES.items():
        seconds, memory, epochs = measure([sys.executable, "-m", *arguments])
        per_epoch = ""
        if epochs:
            steps = sorted(b - a for a, b in itertools.pairwise(epochs))
            per_epoch = f"{steps[len(steps) // 2]:.2f}"
        print(f"{stage:24}{seconds:9.1f}{memory:9.0f}{per_epoch:>9}", flush=True)
    seconds, _, _ = measure(["dvc", "repro", "--force"])
    print(f"{'dvc repro --force':24}{seconds:9.1f}")
    idle = sorted(measure(["dvc", "repro"])[0] for _ in range(5))
    print(f"{'dvc repro, nothing to do':24}{idle[2]:9.2f}   (median of 5)")


if __name__ == "__main__":
    main()
