"""Where each stage's time goes, and the time of the whole pipeline.

    .venv/bin/python -m benchmarks.pipeline

Runs everything for real in this checkout, with `dvc repro --force`, and writes the same
results again.
"""

import functools
import importlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import run
from stages.show.tables import table

STAGES = {
    "prepare": ["prepare"],
    "train_lenet5": ["train", "lenet5"],
    "train_mlp": ["train", "mlp"],
    "evaluate": ["evaluate"],
    "plot": ["plot"],
}
PARTS = ("import", "data", "compute", "write", "tracking")


def stage(report: Path, script: str, *arguments: str) -> None:
    """Run a stage in this process, with the time of each part written to ``report``."""
    seconds = dict.fromkeys(PARTS, 0.0)
    running: list[str] = []
    last = time.perf_counter()

    def switch() -> None:
        """Count the time since the last switch for the part that ran."""
        nonlocal last
        now = time.perf_counter()
        seconds[running[-1] if running else "import"] += now - last
        last = now

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*positional: Any, **named: Any) -> Any:
            switch()
            running.append(part)
            try:
                return function(*positional, **named)
            finally:
                switch()
                running.pop()

        return wrapped

    main = importlib.import_module(f"stages.{script}").main
    import dvc_mlflow
    from dvc_mlflow.files import write_bytes
    from stages.base import files, splits
    from stages.mnist import idx, sources

    for part, owner, names in [
        ("data", sources, ["fetch"]),
        ("data", idx, ["split", "resize"]),
        ("data", splits, ["load_split"]),
        ("data", files, ["read_csv"]),
        ("tracking", dvc_mlflow.Run, ["__init__", "log_epoch", "close"]),
    ]:
        for name in names:
            setattr(owner, name, timed(part, getattr(owner, name)))
    timed_write = timed("write", write_bytes)
    for module in [*sys.modules.values()]:
        if getattr(module, "write_bytes", None) is write_bytes:  # each has its own name for it
            module.write_bytes = timed_write  # type: ignore[attr-defined]
    sys.argv[1:] = arguments
    timed("compute", main)()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report.write_text(json.dumps({"seconds": seconds, "memory": memory}), encoding="utf-8")


def measure() -> str:
    rows, totals, loops = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        for name, arguments in STAGES.items():
            command = [sys.executable, "-m", "benchmarks.pipeline", "child", str(report)]
            _, wall = run(*command, *arguments)
            found = json.loads(report.read_text(encoding="utf-8"))
            seconds = found["seconds"]
            # The interpreter's own start and end are counted with the imports
            seconds["import"] += wall - sum(seconds.values())
            row = [name, f"{wall:.1f}", *(f"{seconds[part]:.1f}" for part in PARTS)]
            rows.append([*row, f"{found['memory']:.0f}"])
            print(*rows[-1], file=sys.stderr)
            totals += wall
            loops += seconds["compute"] if name.startswith("train_") else 0
    _, forced = run("dvc", "repro", "--force")
    idle = statistics.median(run("dvc", "repro")[1] for _ in range(5))
    header = " | ".join(["stage", "seconds", *PARTS, "peak MB"])
    shown = table(header, "lr" + "r" * len(PARTS) + "r", rows)
    return (
        f"{shown}\n\n"
        f"`dvc repro --force` takes {forced:.1f} s: {forced / loops:.2f} times the two training "
        f"loops ({loops:.1f} s). `dvc repro` with nothing to do takes {idle:.2f} s (median of 5).\n"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["child"]:
        stage(Path(arguments[1]), *arguments[2:])
    else:
        print(measure())


if __name__ == "__main__":
    main(sys.argv[1:])
