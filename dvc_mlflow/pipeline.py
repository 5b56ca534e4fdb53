"""The run of the whole pipeline, over the runs of its stages; scores and versions of its models."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc_mlflow import files, models, registry, results, runs
from dvc_mlflow.hooks import hook
from dvc_mlflow.results import Result
from dvc_mlflow.runs import Say, silent
from dvc_mlflow.store import client

NAME = "pipeline"  # of the run, and its tag `stage`

Locked = Mapping[str, Result]


def agree(locked: Locked) -> bool:
    """Whether each stage was made from the results that the others have now."""
    made = {path: md5 for result in locked.values() for path, md5 in result.outs.items()}
    return all(
        made.get(path, md5) == md5
        for result in locked.values()
        for path, md5 in result.deps.items()
    )


def last(locked: Locked) -> list[Result]:
    """The stages whose outs no other stage reads."""
    read = [Path(path) for result in locked.values() for path in result.deps]
    return [
        result
        for result in locked.values()
        if not any(Path(out) in (dep, *dep.parents) or dep in Path(out).parents
                   for out in result.outs for dep in read)
    ]  # fmt: skip


def evaluations(locked: Locked) -> list[Result]:
    """The stages with metrics that read a model of another stage."""
    made = {path for result in locked.values() for path in result.models}
    return [result for result in locked.values() if result.metrics and made & set(result.deps)]


def needed(locked: Locked) -> list[Result]:
    """The stages whose outs :func:`connect` reads."""
    return [*evaluations(locked), *last(locked)]


def connect(experiment_id: str, locked: Locked, say: Say = silent) -> None:
    """Attach everything that belongs to several runs.

    Args:
        locked: The results of all stages. They agree, and those of :func:`needed` lie here.
    """
    for evaluation in evaluations(locked):
        run = runs.finished(evaluation.outs)
        if run is None:
            return
        score_models(evaluation, locked)
        say("ready")
        registry.register(evaluation, locked, run.info.run_id)
        say("ready")
    group(experiment_id, locked)


def score_models(evaluation: Result, locked: Locked) -> None:
    """Attach the metrics of a model to the logged model, and to the run that made it.

    They are the part of a metrics file that has the name of the model.
    """
    names = {path: name for result in locked.values() for path, name in result.models.items()}
    read = list(hook("datasets", lambda _: ())(evaluation))
    of_data = {}
    if read:
        of_data = {"dataset_name": read[0].name, "dataset_digest": files.md5(read[0].path)}
    for file in evaluation.metrics:
        metrics = runs.tree(Path(file))
        for path, name in names.items():
            if path not in evaluation.deps or not isinstance(metrics.get(name), Mapping):
                continue
            values = runs.only_numbers(metrics[name])
            for model in models.find(evaluation.deps[path])[:1]:
                known = {(metric.key, metric.value) for metric in model.metrics or []}
                if not known >= set(values.items()):
                    of = {"run_id": model.source_run_id, "model_id": model.model_id, **of_data}
                    runs.log_metrics(model.source_run_id, values, **of)


def is_apart(locked: Locked) -> bool:
    """Whether something of several runs is missing, although it could be there."""
    if not agree(locked):
        return False
    parent = run_of(locked)
    if parent is None or any(registry.is_behind(one, locked) for one in evaluations(locked)):
        return True
    stages = [runs.finished(result.outs) for result in locked.values()]
    return any("mlflow.parentRunId" not in run.data.tags for run in stages if run) or any(
        runs.lost_files(parent.info.run_id, out, md5)
        for result in last(locked)
        for out, md5 in result.outs.items()
    )


def run_of(locked: Locked, deleted: bool = False) -> Any:
    """The run of one state of dvc.lock, or None; or a deleted one."""
    condition = f"tags.pipeline = '{_identity(locked)}' and attributes.status = 'FINISHED'"
    found = runs.search(condition, deleted)
    return found[0] if found else None


def _identity(locked: Locked) -> str:
    outs = sorted(md5 for result in locked.values() for md5 in result.outs.values())
    return hashlib.md5("".join(outs).encode()).hexdigest()


def group(experiment_id: str, locked: Locked) -> None:
    """Write one run for one state of dvc.lock, over the runs of its stages.

    A run that belongs to several states is shown under the newest. The description of each names
    the runs of all its stages.
    """
    of_stage = {stage: runs.finished(result.outs) for stage, result in locked.items()}
    if None in of_stage.values():
        return
    parent = run_of(locked)
    if parent is None and (deleted := run_of(locked, deleted=True)):
        parent = deleted
        client().restore_run(parent.info.run_id)
        print("restored the deleted run of the pipeline")
    if parent is None:
        parent = _new(experiment_id, locked, of_stage)
    parent_id = parent.info.run_id
    for result in last(locked):
        for out, md5 in result.outs.items():
            if runs.lost_files(parent_id, out, md5):
                runs.log_files(parent_id, runs.artifacts_of(out))
    described = description(locked, of_stage)
    if parent.data.tags.get("mlflow.note.content") != described:
        client().set_tag(parent_id, "mlflow.note.content", described)
    for run in of_stage.values():
        if run.data.tags.get("mlflow.parentRunId") != parent_id:
            client().set_tag(run.info.run_id, "mlflow.parentRunId", parent_id)
    if parent.info.status == "RUNNING":
        runs.end_copy(parent_id)


def _new(experiment_id: str, locked: Locked, of_stage: Mapping[str, Any]) -> Any:
    """Begin the run, with the settings and metrics of all stages."""
    from mlflow.entities import Param

    copied = ("commit", "dirty", "dvc_experiment", "mlflow.user")
    known = list(of_stage.values())[-1].data.tags
    tags = {key: value for key, value in known.items() if key in copied}
    chosen = dict.fromkeys(value for result in locked.values() for value in result.chosen)
    run = client().create_run(
        experiment_id,
        run_name=" ".join([NAME, *chosen]),
        tags={
            **tags,
            "stage": NAME,
            "mlflow.source.name": "dvc repro",
            "process": runs.this_process(),
        },
    )
    settings: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for result in locked.values():
        settings |= result.params
        for out in result.metrics:
            if results.is_here(out, result.outs[out]):
                metrics |= runs.numbers(result, out)
    values = [Param(key, str(value)) for key, value in settings.items()]
    client().log_batch(run.info.run_id, params=values)
    runs.log_metrics(run.info.run_id, metrics)
    client().set_tag(run.info.run_id, "pipeline", _identity(locked))
    return run


def description(locked: Locked, of_stage: Mapping[str, Any]) -> str:
    """The Markdown of the last stages, and a table of the runs of all stages."""
    texts = [
        Path(out).read_text(encoding="utf-8")
        for result in last(locked)
        for out in result.outs
        if out.endswith(".md")
    ]
    rows = [
        [
            f"[{stage}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})",
            run.data.tags["mlflow.note.content"],
        ]
        for stage, run in of_stage.items()
    ]
    lines = ["| stage | description |", "|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*texts, *lines])
