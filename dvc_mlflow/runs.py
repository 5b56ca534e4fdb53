"""One run in MLflow for the result of one stage: its settings, metrics, curves and files."""

import contextlib
import functools
import getpass
import hashlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dvc_mlflow import files, models
from dvc_mlflow.hooks import hook
from dvc_mlflow.results import Result, flat
from dvc_mlflow.store import client

Say = Callable[[str], None]

LARGEST_BATCH = 1_000  # metrics that MLflow takes in one call
SHOWN = (".csv", ".html", ".json", ".md", ".png", ".svg", ".txt", ".yaml")  # kept of a folder


def silent(line: str) -> None:
    """Say nothing: for a caller that nobody waits for."""


# --- one run ---


def start(experiment_id: str, result: Result, tags: Mapping[str, str]) -> str:
    """Begin a run with the settings of a stage and the links to its files; the id of the run."""
    from mlflow.entities import Param

    described = {
        "stage": result.stage,
        "mlflow.note.content": result.desc,
        "mlflow.user": _user(),
        "mlflow.source.name": f"dvc repro {result.stage}",
        "mlflow.source.type": "PROJECT",
        "process": this_process(),
    }
    if "commit" in tags:
        described["mlflow.source.git.commit"] = tags["commit"]
    run = client().create_run(
        experiment_id, run_name=result.stage, tags={**described, **result.tags, **tags}
    )
    run_id: str = run.info.run_id
    settings = [Param(key, str(value)) for key, value in result.params.items()]
    client().log_batch(run_id, params=settings)
    return run_id


def log_epoch(run_id: str, row: Mapping[str, Any]) -> None:
    """Log the metrics of one epoch. The column `epoch` has its number."""
    values = {key: value for key, value in row.items() if key != "epoch"}
    log_metrics(run_id, values, step=int(row["epoch"]))


def log_curves(run_id: str, result: Result) -> None:
    """Log the curves in the outs of a stage, which lie in this folder."""
    for path in map(Path, result.outs):
        x = result.curves.get(path.as_posix())
        if x:
            _log_columns(run_id, files.read_columns(path), x)
        elif (history := hook("history")) and (columns := history(path)):
            _log_columns(run_id, columns, "epoch")


def _log_columns(run_id: str, columns: Mapping[str, Sequence[float]], x: str) -> None:
    """Log the columns of a table over the column ``x``, in as few calls as possible."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now, int(step))
        for key, values in columns.items()
        if key != x
        for step, value in zip(columns.get(x, ()), values, strict=True)
    ]
    for first in range(0, len(metrics), LARGEST_BATCH):
        client().log_batch(run_id, metrics=metrics[first : first + LARGEST_BATCH])


def log_metrics(to_run: str, values: Mapping[str, float], step: int = 0, **of: Any) -> None:
    """Log metrics in one call. ``of`` names the logged model and the data set that they are of."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, step, **of) for key, value in values.items()]
    client().log_batch(to_run, metrics=metrics)


def log_result(run_id: str, result: Result, say: Say = silent) -> None:
    """Copy the outs of a stage, which lie in this folder, into its run, with their md5s."""
    from mlflow.entities import RunTag

    client().log_batch(run_id, tags=[RunTag(key, value) for key, value in result.tags.items()])
    for dataset in hook("datasets", lambda _: ())(result):
        _log_dataset(run_id, dataset)
    say("ready")
    for out in result.outs:
        if out in result.models:
            models.log(run_id, result, out, say)
        else:
            log_files(run_id, artifacts_of(out), say)
        if values := numbers(result, out):
            log_metrics(run_id, values)
        say("ready")


def numbers(result: Result, out: str) -> dict[str, float]:
    """The metrics in an out."""
    found = only_numbers(tree(Path(out))) if out in result.metrics else {}
    if further := hook("metrics"):
        found |= further(Path(out))
    return found


def tree(path: Path) -> dict[str, Any]:
    """The content of a metrics file."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, Any]
    found = json.loads(text) if path.suffix == ".json" else YAML(typ="safe").load(text)
    return found


def only_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics file, flat. As for `dvc metrics show`, lists are not metrics."""
    return {key: value for key, value in flat(metrics).items() if isinstance(value, int | float)}


def artifacts_of(out: str) -> list[Path]:
    """The files of an out, which lies in this folder, that its run gets."""
    path = Path(out)
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if file.suffix in SHOWN]
    return [path]


def log_files(run_id: str, paths: Sequence[Path], say: Say = silent) -> None:
    """Copy files into a run."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            # DVC may have linked a file to its cache. MLflow refuses links that leave a folder
            copied = Path(scratch) / path.name
            shutil.copyfile(path, copied)
            client().log_artifact(run_id, str(copied))
            copied.unlink()
            say("ready")


def lost_files(run_id: str, out: str, md5: str) -> bool:
    """Whether a run lacks files of an out, as far as that can be seen without the out."""
    path = Path(out)
    kept = {file.path: file.file_size for file in client().list_artifacts(run_id)}
    if path.exists():
        differ = any(kept.get(file.name) != file.stat().st_size for file in artifacts_of(out))
        return differ and files.md5(path) == md5
    return path.name not in kept if path.suffix else not kept


def _log_dataset(run_id: str, dataset: Any) -> None:
    """Note a file as input of a run. Its digest is its md5, as in dvc.lock."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    described = Dataset(
        name=dataset.name,
        digest=files.md5(dataset.path),
        source_type="code",
        source=json.dumps({"tags": {"mlflow.source.name": dataset.path.as_posix()}}),
        schema=dataset.schema,
        profile=json.dumps({"num_rows": dataset.rows}),
    )
    tags = [InputTag("mlflow.data.context", dataset.context)]
    client().log_inputs(run_id, datasets=[DatasetInput(described, tags)])


# --- the process that writes a run ---


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@functools.cache
def machine() -> str:
    """The name of this host, and a hash that tells it from others with the same name."""
    told = []
    for path in (Path("/etc/machine-id"), Path("/proc/self/ns/pid")):  # containers count apart
        with contextlib.suppress(OSError):
            told.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return f"{socket.gethostname()}-{hashlib.sha256(''.join(told).encode()).hexdigest()[:8]}"


def this_process() -> str:
    """The machine, the process and its start time: enough to see later that it has ended."""
    import psutil

    process = psutil.Process()
    return f"{machine()} {process.pid} {process.create_time():.0f}"


def is_over(process: str) -> bool:
    """Whether a process of this machine has ended. ``process`` is from :func:`this_process`."""
    import psutil

    host, _, rest = process.partition(" ")
    if host != machine():
        return False
    pid, _, started = rest.partition(" ")
    try:
        return not abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except (psutil.Error, ValueError):
        return True


def end_copy(run_id: str) -> None:
    """End a run that was written from results as FINISHED, without an end time. With one, MLflow
    would show the time of the copying as the duration of the stage."""
    client().update_run(run_id, status="FINISHED")


# --- search ---


def finished(outs: Mapping[str, str], deleted: bool = False) -> Any:
    """The newest finished run with exactly these outs, or None; or the newest deleted one."""
    found = [run for run in with_outs(outs, deleted) if run.info.status == "FINISHED"]
    return found[0] if found else None


def with_outs(outs: Mapping[str, str], deleted: bool = False) -> list[Any]:
    """The runs that have tags for all these outs, the newest first."""
    if not outs:
        return []
    path, md5 = next(iter(outs.items()))
    found = search(f"tags.`out:{path}` = '{md5}'", deleted)
    wanted = {f"out:{path}": md5 for path, md5 in outs.items()}
    return [run for run in found if wanted.items() <= run.data.tags.items()]


def search(condition: str, deleted: bool = False) -> list[Any]:
    """The runs of all experiments that meet a condition, the newest first; or the deleted ones."""
    import mlflow
    from mlflow.entities import ViewType

    runs: list[Any] = mlflow.search_runs(
        filter_string=condition,
        run_view_type=ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
        search_all_experiments=True,
        output_format="list",
    )
    return runs
