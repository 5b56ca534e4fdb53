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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from dvc_mlflow import curves, files, models, reasons, values
from dvc_mlflow.hooks import hook, settings
from dvc_mlflow.results import Result
from dvc_mlflow.store import client

Say = Callable[[str], None]
Files = dict[Path, Path]  # a file by its place among the artifacts of a run

LARGEST_BATCH = 1_000  # metrics that MLflow takes in one call
LARGEST_TEXT = 60_000  # characters of settings in one call, which may have 10^6 bytes in all
SOME = "/*"  # after a folder: those files in it that people look at
SHOWN = (".csv", ".html", ".json", ".md", ".png", ".svg", ".txt", ".yaml")  # kept of a folder
SMALL, LARGEST = 2**20, 2**26  # bytes: an out that is copied, and a metric, plot or model
LONGEST_TAG = 5_000  # characters of a value that every store takes
LONGEST_NAME, LONGEST_DIGEST = 500, 36  # characters of a data set that MLflow takes
MOST_SAME = 10  # files with the same metric that the run over all stages tells apart
TABLES = "tables"  # the folder of the artifacts for plots as tables of MLflow
MOST_FILES = 20  # copied of a folder that is neither metric nor plot


def silent(line: str) -> None:
    """Say nothing: for a caller that nobody waits for."""


# --- one run ---


def start(
    experiment_id: str, result: Result, tags: Mapping[str, str], name: str | None = None
) -> str:
    """Begin a run of a result; its id.

    Args:
        name: By default that of the stage.
    """
    described = {
        "stage": result.stage,
        "project": result.project.as_posix(),
        "read": result.read,
        "mlflow.note.content": result.desc,
        "mlflow.user": _user(),
        "mlflow.source.name": "dvc repro" if result.state else f"dvc repro {result.stage}",
        "mlflow.source.type": "PROJECT",
        "process": this_process(),
    }
    for key, colors in settings().get("colors", {}).items():
        if color := colors.get(str(result.params.get(key))):
            described["mlflow.runColor"] = color
    if "commit" in tags:
        described["mlflow.source.git.commit"] = tags["commit"]
    run = client().create_run(
        experiment_id,
        run_name=values.cut(name or result.stage.rpartition(":")[2], values.LONGEST_NAME),
        tags=values.tags({**described, **tags}),
    )
    return str(run.info.run_id)


def write(
    experiment_id: str,
    result: Result,
    tags: Mapping[str, str],
    missing: Sequence[str] = (),
    name: str | None = None,
) -> str:
    """Write the finished run of a result from its files, whole or not at all; its id.

    The run gets no end time. With one, MLflow would show the time of the copying as the duration of
    the stage.

    Args:
        result: Everything that :func:`wanted` names lies in this folder.
        missing: Except for these.
    """
    shown = _shown(result, missing)
    all_tags = {**tags, **_links(result, shown, missing)}
    run_id = start(experiment_id, result, all_tags, name)
    try:
        _log_contents(run_id, result, shown, missing, silent)
        client().update_run(run_id, status="FINISHED")
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is reported
            client().update_run(run_id, status="FAILED")
            client().delete_run(run_id)
        raise
    return run_id


def complete(run_id: str, result: Result, missing: Sequence[str] = (), say: Say = silent) -> None:
    """Give a run that exists everything of a result that it lacks. See :func:`write`."""
    shown = _shown(result, missing)
    _log_contents(run_id, result, shown, missing, say, client().get_run(run_id).data)
    log(run_id, tags=_links(result, shown, missing))
    say("ready")


def log(
    run_id: str,
    /,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Sequence[tuple[str, float, int]] = (),
    **of: Any,
) -> None:
    """Log settings, tags, and metrics with their steps, in as few calls as possible.

    Args:
        of: The logged model and the data set that the metrics are of.
    """
    from mlflow.entities import Metric, Param, RunTag

    names, keys = values.told_apart(key for key, _, _ in metrics), values.told_apart(params or {})
    now = int(time.time() * 1000)
    many = [Metric(names[key], value, now, step, **of) for key, value, step in metrics]
    settings = [Param(keys[key], values.param(key, value)) for key, value in (params or {}).items()]
    links = [RunTag(key, value) for key, value in values.tags(tags or {}).items()]
    while many or settings or links:
        total = accumulate(len(setting.value) for setting in settings[:100])
        first = max(1, sum(length <= LARGEST_TEXT for length in total))
        client().log_batch(
            run_id, metrics=many[:LARGEST_BATCH], params=settings[:first], tags=links[:50]
        )
        many, settings, links = many[LARGEST_BATCH:], settings[first:], links[50:]


def log_epoch(run_id: str, row: Mapping[str, Any]) -> None:
    """Log the metrics of one epoch. The column `epoch` has its number."""
    step = int(row["epoch"])
    for key, value in row.items():
        if changed := values.stored(value):
            values.note(f"{key} is {value} in epoch {step}, and {changed} in MLflow")
    log(run_id, metrics=[(key, value, step) for key, value in row.items() if key != "epoch"])


def log_metrics(to_run: str, values: Mapping[str, float], **of: Any) -> None:
    """Log metrics in one call. ``of`` names the logged model and the data set that they are of."""
    log(to_run, metrics=[(key, value, 0) for key, value in values.items()], **of)


def wanted(result: Result) -> list[str]:
    """The outs, or files in them, that a run shows, and the models. Large data is only linked."""
    read = hook("reads", lambda _: ())(result)
    shown = [*result.metrics, *result.plots, *models_of(result)]
    others = [
        f"{out}{SOME}" if md5.endswith(".dir") else out
        for out, md5 in result.outs.items()
        if out not in shown and out not in result.models
        and (md5.endswith(".dir") or result.sizes.get(out, LARGEST) <= SMALL)
    ]  # fmt: skip
    return list(dict.fromkeys([*shown, *others, *read]))


def models_of(result: Result) -> list[str]:
    """The models of a result that are not too large to be logged."""
    return [path for path in result.models if result.sizes.get(path, 0) <= LARGEST]


def _links(result: Result, shown: Files, missing: Sequence[str]) -> dict[str, str]:
    """The tags by which a run is found, and those that tell later what it has lost."""
    sizes: dict[str, int | None] = {}
    for place, file in shown.items():
        sizes[place.parts[0]] = file.stat().st_size if len(place.parts) == 1 else None
    while len(json.dumps(sizes)) > LONGEST_TAG:
        sizes.popitem()  # nobody will notice if this one is lost
    first = next(
        n for n in range(len(missing), -1, -1) if len(json.dumps(missing[:n])) <= LONGEST_TAG
    )
    return {
        **result.tags,
        "artifacts": json.dumps(sizes),
        "missing": json.dumps(missing[:first]),
    }


def _log_contents(
    run_id: str,
    result: Result,
    shown: Files,
    missing: Sequence[str],
    say: Say,
    present: Any = None,
) -> None:
    """Log everything but the tags.

    Args:
        present: The data of the run. The settings and metrics that it has stay as they are.
    """
    _log_inputs(run_id, result)
    say("ready")
    if shown:
        with tempfile.TemporaryDirectory() as scratch:
            for place, file in shown.items():
                target = Path(scratch) / place
                target.parent.mkdir(parents=True, exist_ok=True)
                if place.parts[0] == TABLES:
                    target.write_text(curves.as_table(curves.read(file)), encoding="utf-8")
                else:  # MLflow refuses links, and DVC may have linked a file to its cache
                    shutil.copyfile(file, target)
            with reasons.artifacts(lambda: str(client().get_run(run_id).info.artifact_uri)):
                client().log_artifacts(run_id, scratch)
    say("ready")
    outs = _outs(result, missing)
    points = list(curves.of_result(result, outs))
    for path in outs:
        points += curves.points(hook("history", lambda _: {})(Path(path)), "epoch")
    points += _numbers(result, outs, {key: value for key, value, _ in points})
    params = result.params
    if present:
        names, keys = values.told_apart(key for key, _, _ in points), values.told_apart(params)
        points = [point for point in points if names[point[0]] not in present.metrics]
        params = {key: params[key] for key in params if keys[key] not in present.params}
    log(run_id, params=params, metrics=points)
    say("ready")
    for path in models_of(result):
        if path not in missing:
            models.complete(run_id, result, path, say)


def _outs(result: Result, missing: Sequence[str]) -> list[str]:
    """The outs, or files in them, that a run shows and that are here."""
    elsewhere = {*hook("reads", lambda _: ())(result)} - {*result.outs}
    return [path for path in wanted(result) if path not in {*missing, *elsewhere}]


def _shown(result: Result, missing: Sequence[str]) -> Files:
    """The files in this folder that become artifacts of a run, by their place there.

    These are all files of metrics and plots, and outs that are not large. Of a folder that is
    neither metric nor plot, they are the small files that people look at.
    """
    found: Files = {}
    for path in _outs(result, missing):
        if path in result.models:
            continue
        out = Path(path.removesuffix(SOME))
        whole = path in result.plots or path in result.metrics
        inside = [out] if out.is_file() else sorted(out.rglob("*") if whole else out.iterdir())
        chosen = [
            file for file in inside
            if file.is_file() and (whole or file == out or file.suffix in SHOWN)
            and file.stat().st_size <= (LARGEST if whole else SMALL)
        ]  # fmt: skip
        for file in chosen if whole else chosen[:MOST_FILES]:
            place = file.relative_to(out.parent) if whole else Path(file.name)
            found[file if place in found else place] = file
            if whole and file.suffix in (".json", ".yaml", ".yml") and curves.read(file):
                found[(Path(TABLES) / place).with_suffix(".json")] = file
    return found


def _numbers(
    result: Result, outs: Sequence[str], drawn: Mapping[str, float]
) -> list[tuple[str, float, int]]:
    """The metrics in the outs as points, without those that a curve ends with.

    Args:
        drawn: The last value of each curve. A metric with another value and the same name gets the
            name of its file before it.
    """
    found: dict[Path, dict[str, float]] = {}
    further = hook("metrics", lambda _: {})
    for path in outs:
        of_file = values.of_file(Path(path)) if path in result.metrics else {}
        of_file |= further(Path(path.removesuffix(SOME)))
        found |= {Path(path): of_file} if of_file else {}
    if result.state:  # each stage has its own; those of many stages would hide all others
        counted = Counter(key for of_file in found.values() for key in of_file)
        found = {
            path: {key: value for key, value in of_file.items() if counted[key] <= MOST_SAME}
            for path, of_file in found.items()
        }
    single: list[tuple[str, float, int]] = []
    for key, value in values.joined(found).items():
        if key not in drawn:
            single.append((key, value, 0))
        elif repr(value) != repr(float(drawn[key])):  # NaN is not equal to itself
            file = next(path for path, of_file in found.items() if key in of_file)
            single.append((f"{file.stem}.{key}", value, 0))
    return single


def tree(path: Path) -> dict[str, Any]:
    """The content of a metrics file, or nothing if it is no mapping."""
    found = files.read_tree(path)
    return found if isinstance(found, dict) else {}


only_numbers = values.only_numbers


def is_complete(run: Any) -> bool:
    """Whether a run has everything that its result had when it was written."""
    return "artifacts" in run.data.tags


def lost_files(run: Any) -> list[str]:
    """The artifacts of a run that are no longer in the store, or have another size."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    noted = json.loads(run.data.tags.get("artifacts", "{}"))
    if not noted:
        return []
    with reasons.artifacts(lambda: str(run.info.artifact_uri)):
        listed = get_artifact_repository(run.info.artifact_uri).list_artifacts()
    kept = {file.path: file.file_size for file in listed}
    return [
        name for name, size in noted.items() if name not in kept or kept[name] not in (None, size)
    ]


def _log_inputs(run_id: str, result: Result) -> None:
    """Note the data that a stage reads. The digest of each file is its md5, as in dvc.lock."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    def noted(path: str, md5: str, name: str, context: str, **more: str) -> DatasetInput:
        source = json.dumps({"tags": {"mlflow.source.name": path}})
        described = Dataset(
            values.cut(name, LONGEST_NAME),
            values.cut(md5, LONGEST_DIGEST),
            source_type="code",
            source=source,
            **more,
        )
        return DatasetInput(described, [InputTag("mlflow.data.context", context)])

    inputs = [
        noted(
            one.path.as_posix(), files.md5(one.path), one.name, one.context,
            schema=one.schema, profile=json.dumps({"num_rows": one.rows}),
        )
        for one in hook("datasets", lambda _: ())(result)
    ]  # fmt: skip
    inputs += [noted(path, result.deps[path], name, "dep") for path, name in result.data.items()]
    if not inputs:
        return
    try:
        client().log_inputs(run_id, datasets=inputs)
    except MlflowException:
        # MLflow looks for data and then adds it. If another run adds the same in between, that
        # fails. Asked again, MLflow finds it.
        client().log_inputs(run_id, datasets=inputs)


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
