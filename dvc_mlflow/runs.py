"""One run in MLflow for the result of one stage: its settings, metrics, curves and files."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_mlflow import (
    addresses,
    curves,
    models,
    reasons,
    run_names,
    schema,
    shown,
    store,
    values,
    writers,
)
from dvc_mlflow.hooks import hook
from dvc_mlflow.naming import cut
from dvc_mlflow.result import Result
from dvc_mlflow.shown import Shown
from dvc_mlflow.store import client

LARGEST_BATCH = 1_000  # metrics that MLflow takes in one call
LARGEST_TEXT = 60_000  # characters of settings in one call, which may have 10^6 bytes in all
LONGEST_TAG = 5_000  # characters of a value that every store takes
LONGEST_NAME, LONGEST_DIGEST = 500, 36  # characters of a data set that MLflow takes


def start(
    experiment_id: str, result: Result, tags: Mapping[str, str], name: str | None = None
) -> str:
    """Begin a run of a result; its id.

    Args:
        name: By default :func:`run_names.name_of`.
    """
    described = {
        **of_stage(result),
        schema.USER: writers.user(),
        schema.SOURCE: "dvc repro" if result.state else f"dvc repro {result.stage}",
        schema.SOURCE_TYPE: "PROJECT",
        schema.PROCESS: writers.this_process(),
    }
    if color := run_names.color_of(result, tags):
        described[schema.COLOR] = color
    if schema.COMMIT in tags:
        described[schema.SOURCE_COMMIT] = tags[schema.COMMIT]
    run = client().create_run(
        experiment_id,
        run_name=name or run_names.name_of(result, tags),
        tags=values.tags({**described, **tags}),
    )
    return str(run.info.run_id)


def of_stage(result: Result) -> dict[str, str]:
    """The tags that a run of a stage has from its beginning, whoever began it."""
    return {
        schema.STAGE: result.stage,
        schema.PROJECT: result.project.as_posix(),
        schema.READ: result.read,
        schema.NOTE: result.desc,
    }


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
        result: Everything that :func:`shown.wanted` names lies in this folder.
        missing: Except for these.
    """
    content = shown.of_result(result, missing)
    all_tags = {**tags, **_links(result, content, missing)}
    run_id = start(experiment_id, result, all_tags, name)
    try:
        _log_contents(run_id, result, content, missing)
        client().update_run(run_id, status="FINISHED")
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is reported
            client().update_run(run_id, status="FAILED")
            client().delete_run(run_id)
        raise
    return run_id


def complete(run_id: str, result: Result, missing: Sequence[str] = ()) -> None:
    """Give a run that exists everything of a result that it lacks. See :func:`write`.

    The settings and metrics that it has stay as they are.
    """
    content = shown.of_result(result, missing)
    _log_contents(run_id, result, content, missing, client().get_run(run_id).data)
    log(run_id, tags=_links(result, content, missing))


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


def _links(result: Result, content: Shown, missing: Sequence[str]) -> dict[str, str]:
    """The tags by which a run is found, and those that tell later what it has lost."""
    sizes: dict[str, int | None] = {}
    for place, file in content.files.items():
        sizes[place.parts[0]] = file.stat().st_size if len(place.parts) == 1 else None
    while len(json.dumps(sizes)) > LONGEST_TAG:
        sizes.popitem()  # nobody will notice if this one is lost
    named = [*missing]
    while len(json.dumps(named)) > LONGEST_TAG:
        named.pop()
    return {
        **result.tags,
        schema.ARTIFACTS: json.dumps(sizes),
        schema.MISSING: json.dumps(named),
    }


def _log_contents(
    run_id: str,
    result: Result,
    content: Shown,
    missing: Sequence[str],
    present: Any = None,
) -> None:
    """Log everything but the tags, and neither settings nor metrics that are ``present``."""
    _log_inputs(run_id, result)
    if content.files:
        _log_files(run_id, content.files)
    params, points = result.params, content.points
    if present:
        names, keys = values.told_apart(key for key, _, _ in points), values.told_apart(params)
        points = [point for point in points if names[point[0]] not in present.metrics]
        params = {key: params[key] for key in params if keys[key] not in present.params}
    log(run_id, params=params, metrics=points)
    for path in shown.models_of(result):
        if path not in missing:
            models.complete(run_id, result, path)


def _log_files(run_id: str, placed: Mapping[Path, Path]) -> None:
    """Copy files to their places among the artifacts of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        for place, file in placed.items():
            target = Path(scratch) / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if place.parts[0] == schema.TABLES:
                target.write_text(curves.as_table(curves.read(file)), encoding="utf-8")
            else:  # MLflow refuses links, and DVC may have linked a file to its cache
                shutil.copyfile(file, target)
        with reasons.artifacts(lambda: str(client().get_run(run_id).info.artifact_uri)):
            client().log_artifacts(run_id, scratch)


def _log_inputs(run_id: str, result: Result) -> None:
    """Note the data that a stage reads. The digest of each file is its md5, as in dvc.lock."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def noted(path: str, md5: str, name: str, context: str, **more: str) -> DatasetInput:
        described = Dataset(
            cut(name, LONGEST_NAME),
            cut(md5, LONGEST_DIGEST),
            source_type="code",
            source=json.dumps({"tags": {schema.SOURCE: path}}),
            **more,
        )
        return DatasetInput(described, [InputTag(schema.CONTEXT, context)])

    inputs = [
        noted(
            data.path.as_posix(), files.md5(data.path), data.name, data.context,
            schema=data.schema, profile=json.dumps({"num_rows": data.rows}),
        )
        for data in hook("datasets", lambda _: ())(result)
    ]  # fmt: skip
    inputs += [noted(path, result.deps[path], name, "dep") for path, name in result.data.items()]
    if inputs:
        client().log_inputs(run_id, datasets=inputs)


def end(run: Any, status: str, reason: str) -> None:
    """End a run that has no results. Its name and its description say so."""
    run_id, text = run.info.run_id, run.data.tags.get(schema.NOTE, "")
    said = f"**{status.lower()}**: {reason}"
    log(run_id, tags={schema.REASON: reason, schema.NOTE: f"{said}\n\n{text}".strip()})
    client().update_run(run_id, name=run_names.unfinished(run.info.run_name or "", status))
    client().set_terminated(run_id, status)


def note_successor(run: Any) -> None:
    """Let the runs that ended before a finished one, and read the same, name it."""
    tags, link = run.data.tags, f"resumed by [{run.info.run_name}]({addresses.page_of(run)})"
    same = f"attributes.status != 'FINISHED' and tags.{schema.READ} = '{tags[schema.READ]}'"
    for other in store.search(same):
        text = other.data.tags.get(schema.NOTE, "")
        if schema.REASON in other.data.tags and "resumed by [" not in text:
            client().set_tag(other.info.run_id, schema.NOTE, f"{link}\n\n{text}".strip())


def end_dead() -> None:
    """End the runs that are RUNNING although the process that wrote them has ended.

    Only runs of this machine are ended. Runs that `sync` began are deleted, because it writes them
    again.
    """
    for run in store.search("attributes.status = 'RUNNING'"):
        tags, run_id = run.data.tags, run.info.run_id
        if not writers.is_over(tags.get(schema.PROCESS, "")):
            continue
        end(run, "KILLED", "its process ended before the run did")
        if schema.BACKFILLED in tags or tags.get(schema.STAGE) == schema.PIPELINE:
            client().delete_run(run_id)
        print(f"ended the run of {tags.get(schema.STAGE)} whose process is gone")
