"""The run of the whole pipeline, over the runs of its stages; scores and versions of its models."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_mlflow import addresses, identity, models, registry, run_names, runs, schema, shown, upkeep
from dvc_mlflow.hooks import hook
from dvc_mlflow.naming import cut
from dvc_mlflow.result import Result, made_by
from dvc_mlflow.results import Project
from dvc_mlflow.state import Known
from dvc_mlflow.store import client
from dvc_mlflow.values import LONGEST_TAG, only_numbers

MOST_COLUMNS = 5  # of metrics on the page of runs
MOST_STAGES = 20  # whose metrics, curves and files the run over all stages shows

Locked = Mapping[str, Result]


def agree(locked: Locked) -> bool:
    """Whether each stage was made from the results that the others have now."""
    made = made_by(locked.values())
    return all(
        made.get(path, md5) == md5
        for result in locked.values()
        for path, md5 in result.deps.items()
    )


def last(locked: Locked) -> list[Result]:
    """The stages whose outs no other stage reads."""
    read = {Path(path) for result in locked.values() for path in result.deps}
    touched = read.union(*(path.parents for path in read))  # a folder, some of which is read
    return [
        result
        for result in locked.values()
        if not any(
            path in touched or not read.isdisjoint(path.parents) for path in map(Path, result.outs)
        )
    ]


def few(stages: Sequence[Result]) -> Sequence[Result]:
    """Some stages, or none if they are too many for a run that people look at."""
    return stages if len(stages) <= MOST_STAGES else []


def evaluations(locked: Locked) -> list[Result]:
    """The stages with metrics that read a model of another stage."""
    made = {path for result in locked.values() for path in result.models}
    return [result for result in locked.values() if result.metrics and made & set(result.deps)]


def wanted(project: Project, locked: Locked) -> list[str]:
    """The files that :func:`connect` reads."""
    judged = evaluations(locked)
    whole = _whole(project, locked)
    paths = [path for result in (*judged, *few(last(locked))) for path in shown.wanted(result)]
    evidence = [path for result in judged for path in registry.evidence(result, locked).values()]
    return [*paths, *(path.as_posix() for path in evidence), *whole.metrics, *whole.plots]


def connect(
    experiment_id: str,
    project: Project,
    locked: Locked,
    known: Known,
    missing: Sequence[str] = (),
) -> None:
    """Attach everything that belongs to several runs.

    Args:
        locked: The results of all stages. The files of :func:`wanted` lie here.
        missing: Except for these.
    """
    for evaluation in evaluations(locked):
        run = known.finished(evaluation)
        if run is None or {*evaluation.metrics} & {*missing}:
            continue
        score_models(evaluation, locked)
        if not {*evaluation.outs} & {path.removesuffix(shown.SOME) for path in missing}:
            registry.register(evaluation, locked, run.info.run_id)
    group(experiment_id, project, locked, known, missing)


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
        metrics = shown.tree(Path(file))
        for path, name in names.items():
            if path not in evaluation.deps or not isinstance(metrics.get(name), Mapping):
                continue
            scores = only_numbers(metrics[name])
            values = {f"{schema.SCORE}{key}": value for key, value in scores.items()}
            for model in models.find(evaluation.deps[path])[:1]:
                known = {(metric.key, metric.value) for metric in model.metrics or []}
                if not known >= set(values.items()):
                    points = [(key, value, 0) for key, value in values.items()]
                    runs.log(
                        model.source_run_id,
                        metrics=points,
                        run_id=model.source_run_id,
                        model_id=model.model_id,
                        **of_data,
                    )


def is_apart(project: Project, locked: Locked, known: Known) -> bool:
    """Whether the parent run, a parent link or a model version is missing, and could be written."""
    if not locked:
        return False
    parent = known.finished(_whole(project, locked))
    if parent is None:
        return True
    if any(registry.is_behind(evaluation, locked) for evaluation in evaluations(locked)):
        return True
    stages = [known.finished(result) for result in locked.values()]
    below = (schema.PARENT in run.data.tags for run in stages if run)
    return not all(below) or bool(known.lost_files(parent))


def group(
    experiment_id: str,
    project: Project,
    locked: Locked,
    known: Known,
    missing: Sequence[str] = (),
) -> None:
    """Write one run for one state of dvc.lock, over the runs of its stages. A run of a stage that
    its code began below another run stays there.

    It has the settings in which all stages agree, the metrics of all stages, and the other files of
    the last ones. A run that belongs to several states is shown under the newest. The description
    of each state names the runs of all its stages.
    """
    of_stage = {stage: known.finished(result) for stage, result in locked.items()}
    if None in of_stage.values():
        return
    whole = _whole(project, locked)
    parent = known.finished(whole) or known.deleted(whole)
    if parent and parent.info.lifecycle_stage == "deleted":
        client().restore_run(parent.info.run_id)
        print("restored the deleted run of the pipeline")
    text = {schema.NOTE: description(locked, of_stage)}
    if parent is None:
        parent_id = _write(experiment_id, project, whole, locked, of_stage, missing, text)
    else:
        parent_id = parent.info.run_id
        if known.lost_files(parent):
            runs.complete(parent_id, whole, missing)
        runs.log(parent_id, tags={**whole.tags, **text})
    for run in of_stage.values():
        above = known.above(run)
        if above is not None and above.data.tags.get(schema.STAGE) != schema.PIPELINE:
            continue
        known.put_below(run, parent_id)
    known.add(parent_id)


def _write(
    experiment_id: str,
    project: Project,
    whole: Result,
    locked: Locked,
    of_stage: Mapping[str, Any],
    missing: Sequence[str],
    text: Mapping[str, str],
) -> str:
    """Write the run over the runs of all stages, and let the page of runs show its metrics."""
    if project.files and not project.problems and not missing:
        text = {**text, schema.FILES: project.files}
    newest = max(of_stage.values(), key=lambda run: run.info.start_time).data.tags
    copied = (schema.COMMIT, schema.DIRTY, schema.EXPERIMENT, schema.USER)
    tags = {key: newest[key] for key in copied if key in newest}
    chosen = dict.fromkeys(value for result in locked.values() for value in result.chosen)
    experiment = filter(None, [tags.get(schema.EXPERIMENT)])
    name = run_names.shortened([schema.PIPELINE, *chosen, *experiment])
    run_id = runs.write(experiment_id, whole, {**tags, **text}, missing, name)
    metrics = client().get_run(run_id).data.metrics.keys() - {"epoch", "step"}
    columns = sorted(metrics, key=lambda metric: (len(metric), metric))[:MOST_COLUMNS]
    drawn = filter(None, map(addresses.curves_of, of_stage.values()))
    upkeep.show_views(whole.project, experiment_id, columns, next(drawn, []))
    return run_id


def _whole(project: Project, locked: Locked) -> Result:
    """The last stages, and the metrics of all stages, as one result."""
    metrics, plots = project.loose()
    results, ends = locked.values(), few(last(locked))
    measured = few([result for result in results if result.metrics])
    links = sorted(f"{tag}={value}" for result in results for tag, value in result.links.items())
    return Result(
        project=project.folder,
        stage=schema.PIPELINE,
        desc="",
        params=_agreed([result.full for result in results]),
        outs={
            path: md5
            for end in ends
            for path, md5 in end.outs.items()
            if not any(path in result.models for result in results)
        },
        deps={},
        state=hashlib.md5("".join(links).encode()).hexdigest(),
        identity=identity.of(sorted(result.identity for result in results)),
        sizes={path: size for result in results for path, size in result.sizes.items()},
        metrics=(*(path for result in measured for path in result.metrics), *metrics),
        plots={path: plot for end in ends for path, plot in end.plots.items()} | plots,
    )


_DIFFERENT = object()


def _agreed(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that have one value in all stages which have them."""
    agreed: dict[str, Any] = {}
    for key, value in (item for of_stage in settings for item in of_stage.items()):
        if agreed.setdefault(key, value) != value:
            agreed[key] = _DIFFERENT
    return {key: value for key, value in agreed.items() if value is not _DIFFERENT}


def description(locked: Locked, of_stage: Mapping[str, Any]) -> str:
    """The Markdown of evaluations and of the last stages, and a table of the runs of all stages.
    The model card is in the registry."""
    ends = [*evaluations(locked), *few(last(locked))]
    outs = dict.fromkeys(out for result in ends for out in result.outs)
    texts = [
        Path(out).read_text(encoding="utf-8")
        for out in outs
        if out.endswith(".md") and out != registry.card() and Path(out).is_file()
    ]
    rows = [
        f"| [{stage}]({addresses.page_of(run)}) | {locked[stage].desc} |"
        for stage, run in of_stage.items()
    ]
    lines = ["| stage | description |", "|---|---|", *rows]
    return cut("\n".join([*texts, *lines]), LONGEST_TAG)
