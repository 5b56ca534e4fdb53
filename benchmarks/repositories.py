"""What `dvc-mlflow sync` writes of repositories of others: one row of docs/mirror.md for each.

    python -m benchmarks.repositories CLONE ...

Each clone is used as it is; its MLflow store lies in a scratch folder. The row says how many stages
are declared and locked, and what the runs have, read back from MLflow.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

HEADER = (
    "| repository | stages | locked | runs | params | metrics | points of curves | files | models "
    "| seconds | what is not shown |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)
LINKED = " files are not here, and are only linked"


def counted(clone: Path) -> tuple[int, int]:
    """The stages that are declared, and those of them that are locked."""
    from dvc_mlflow import results

    with chdir(clone):
        read = results.all_projects().values()
        return sum(len([*one]) for one in read), sum(len(one.locked()) for one in read)


def written(uri: str) -> list[int]:
    """Runs, params, metrics, points of curves, files and models in a store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ids = [one.experiment_id for one in client.search_experiments()]
    runs = list(client.search_runs(ids, max_results=10_000))

    def files(run_id: str, path: str | None = None) -> int:
        found = client.list_artifacts(run_id, path)
        return sum(files(run_id, one.path) if one.is_dir else 1 for one in found)

    points = [
        len(client.get_metric_history(run.info.run_id, key))
        for run in runs
        for key in run.data.metrics
    ]
    return [
        len(runs),
        sum(len(run.data.params) for run in runs),
        len(points),
        sum(count for count in points if count > 1),
        sum(files(run.info.run_id) for run in runs),
        len(client.search_logged_models(ids)),
    ]


def row(clone: Path, options: list[str]) -> str:
    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(clone), *command], check=True, capture_output=True, text=True
        ).stdout

    before = git("status", "--porcelain")
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"sqlite:///{scratch}/mlflow.db"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        started = time.perf_counter()
        said = subprocess.run(
            [sys.executable, "-m", "dvc_mlflow", "sync", *options],
            cwd=clone, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        counts = [*counted(clone), *written(uri)]
    assert git("status", "--porcelain") == before, f"{clone} is changed"
    assert "Traceback" not in said.stderr, said.stderr
    told = []
    for line in said.stderr.splitlines():
        what = line.removeprefix("error: ")
        told.append(
            f"{what.split(LINKED)[0]} files are not in the clone"
            if LINKED in line
            else what.partition(" (")[0]
        )
    cells = [clone.name.replace("+", "/"), *map(str, counts), f"{seconds:.1f}", "; ".join(told)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = [given for given in sys.argv[1:] if given.startswith("--")]
    print(HEADER, flush=True)
    for given in sys.argv[1:]:
        if given not in options:
            print(row(Path(given).resolve(), options), flush=True)


if __name__ == "__main__":
    main()
