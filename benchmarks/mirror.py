"""What the mirror costs: `dvc repro --force` with MLflow's runs and without, in turn.

    .venv/bin/python benchmarks/mirror.py [ROUNDS]

Runs the pipeline for real in this checkout; what it writes is the same. The store is the default
one, a SQLite file.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
}


def measure(mirror: str) -> float:
    started = time.perf_counter()
    environment = ENVIRONMENT | {"MIRROR": mirror}
    subprocess.run(
        ["dvc", "repro", "--force"], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def main(rounds: int) -> None:
    pairs = []
    for number in range(rounds):
        # Which comes first alternates, because what is warm favours the second
        order = ("on", "off") if number % 2 else ("off", "on")
        seconds = {mirror: measure(mirror) for mirror in order}
        pairs.append((seconds["on"], seconds["off"]))
        print(f"on {pairs[-1][0]:6.1f} s   off {pairs[-1][1]:6.1f} s", flush=True)
    ratio = statistics.median(on / off for on, off in pairs)
    print(f"`dvc repro --force` with the mirror takes {ratio:.3f} times as long as without")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
