"""The cost of the runs in MLflow: `dvc repro --force` with them and without, in turn.

    .venv/bin/python -m benchmarks.mirror [ROUNDS]

Runs the pipeline for real in this checkout, and writes the same results again. The store is the
default one, a SQLite file.
"""

import statistics
import sys

from benchmarks import run


def main(rounds: int = 3) -> None:
    pairs = []
    for number in range(rounds):
        # Which comes first alternates, because a warm cache favours the second
        order = ("on", "off") if number % 2 else ("off", "on")
        seconds = {
            mirror: run("dvc", "repro", "--force", env={"MIRROR": mirror})[1] for mirror in order
        }
        pairs.append((seconds["on"], seconds["off"]))
        print(f"on {pairs[-1][0]:6.1f} s   off {pairs[-1][1]:6.1f} s", flush=True)
    ratio = statistics.median(on / off for on, off in pairs)
    print(f"`dvc repro --force` with the mirror takes {ratio:.3f} times as long as without")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
