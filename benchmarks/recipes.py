"""How long a network takes to train, as whole processes: `fast` with each seed, `record` once.

    .venv/bin/python -m benchmarks.recipes

Runs the stage cell of the study in this checkout, without a run in MLflow, and writes the same
cells again.
"""

import json
import statistics
import sys

from benchmarks import ROOT, run
from stages.show.tables import table
from study import settings


def cell(recipe: str, model: str, seed: int) -> tuple[float, float]:
    """Seconds of the whole process, and the test accuracy that it ends with."""
    command = [sys.executable, "-m", "study.cell", recipe, model, str(seed)]
    _, seconds = run(*command, env={"MIRROR": "off"})
    scores = ROOT / settings.cell_path(recipe, model, seed)
    return seconds, json.loads(scores.read_text(encoding="utf-8"))["test_accuracy"]


def main() -> None:
    seeds = settings.load().seeds
    runs = [
        ("fast", "lenet5", seeds),
        ("record", "lenet5", seeds[:1]),
        ("record", "mlp", seeds[:1]),
    ]
    rows = []
    for recipe, model, wanted in runs:
        found = [cell(recipe, model, seed) for seed in wanted]
        seconds, accuracies = zip(*found, strict=True)
        shown = f"{100 * statistics.mean(accuracies):.2f}"
        rows.append(
            [f"{recipe}, {model}", str(len(found)), f"{statistics.mean(seconds):.1f}", shown]
        )
        print(*rows[-1], file=sys.stderr)
    print(table("recipe and model | seeds | mean seconds | mean test accuracy %", "lrrr", rows))


if __name__ == "__main__":
    main()
