"""``make sync``: the runs that MLflow lacks, written from the results, and what connects them."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from stages import claims, files, params, registry, results, runs
from stages.params import Registry
from stages.results import Result
from stages.runs import Say, client, silent
from stages.tables import table

SHARED = (files.COMPARISON.with_suffix(".md").as_posix(), files.FIGURES.as_posix())


def sync(experiment_id: str, rev: str | None = None) -> None:
    """Make the store hold what the results of dvc.lock say: a finished run for every stage, with
    its files and model, the registered models, and the pipeline's run.

    Args:
        rev: A commit, whose files are taken from git and the DVC cache; None for this folder.

    Raises:
        StageError: An out cannot be had; names it and the command that brings it.
    """
    end_dead_runs()
    gate = params.load().registry
    tags = results.provenance()
    if rev is not None:
        tags = {"commit": results.commit_of(rev), "dirty": "false"}
    with results.checkout(rev) as bring:
        locked = results.of_lock()
        if not (any(map(is_behind, locked.values())) or is_apart(locked)):
            return
        with claims.held():  # and look again: another machine may have written it in between
            behind = [result for result in locked.values() if is_behind(result)]
            for result in behind:
                complete(experiment_id, result, locked, tags, bring)
            if behind or is_apart(locked):
                if not agree(locked):
                    return
                for stage in ("evaluate", "plot"):
                    for path, md5 in _needed(locked[stage], locked).items():
                        bring(path, md5)
                connect(experiment_id, locked, gate)


def is_behind(result: Result) -> bool:
    """Whether a stage's results have no finished run, or one that lost files."""
    run = finished_run(result.outs)
    return run is None or bool(_lost(run, result))


def is_apart(locked: dict[str, Result]) -> bool:
    """Whether something that belongs to several runs is missing, though it could be there."""
    if not agree(locked):
        return False
    parent = pipeline_run(locked)
    if parent is None or registry.is_behind(locked["evaluate"]):
        return True
    stages = [finished_run(result.outs) for result in locked.values()]
    return any("mlflow.parentRunId" not in run.data.tags for run in stages if run) or any(
        runs.lost_files(parent.info.run_id, out, md5) for out, md5 in _shared(locked)
    )


def _shared(locked: dict[str, Result]) -> list[tuple[str, str]]:
    """What the pipeline's run shows of its stages' outs, with their md5s."""
    made = {path: md5 for result in locked.values() for path, md5 in result.outs.items()}
    return [(out, made[out]) for out in SHARED if out in made]


def complete(
    experiment_id: str,
    result: Result,
    locked: dict[str, Result],
    tags: dict[str, str],
    bring: Any,
) -> None:
    """Give one stage's results their finished run, with all its files."""
    run = finished_run(result.outs)
    if run is None and (deleted := finished_run(result.outs, deleted=True)):
        run = deleted
        client().restore_run(run.info.run_id)
        print(f"restored the deleted run of {result.stage}")
    if run is None:
        write(experiment_id, result, locked, tags, bring)
        print(f"logged the run of {result.stage} from its results")
        return
    run_id, lost = run.info.run_id, _lost(run, result)
    models = any(out.endswith(".safetensors") for out in lost)
    needed = _needed(result, locked) if models else {out: result.outs[out] for out in lost}
    for path, md5 in needed.items():
        bring(path, md5)
    for out in lost:
        if Path(out).suffix == ".safetensors":
            known = runs.find_models(result.outs[out])
            if known:
                runs.log_model_files(known[0], Path(out))
            else:
                runs.log_model(run_id, result, Path(out))
        else:
            runs.log_files(run_id, runs.artifacts_of(out))
        print(f"logged {out} again, which the run of {result.stage} had lost")


def _lost(run: Any, result: Result) -> list[str]:
    """The outs of a stage whose files its run, or its logged model, does not have."""
    lost = []
    for out, md5 in result.outs.items():
        if out.endswith(".safetensors"):
            models = runs.find_models(md5)
            if not models or runs.lost_model_files(models[0]):
                lost.append(out)
        elif runs.lost_files(run.info.run_id, out, md5):
            lost.append(out)
    return lost


def sync_study(experiment_id: str) -> None:
    """The same for every cell of the study in this folder, and its report."""
    locked, pipeline = results.of_lock_if_any(results.STUDY_LOCK), results.of_lock()
    tags = results.provenance()
    if _behind_in_study(locked):
        with claims.held("mnist-study"):
            for result in _behind_in_study(locked):
                complete(experiment_id, result, pipeline, tags, results.require)


def _behind_in_study(locked: dict[str, Result]) -> list[Result]:
    """The stages of the study that have no finished run, or one that lost files."""
    logged: dict[tuple[str, str], str] = {}
    for is_one in "LIKE '%@%'", "= 'report'":  # of the cells, of the report
        for run in search(f"attributes.status = 'FINISHED' and tags.stage {is_one}"):
            for link in run.data.tags.items():
                logged.setdefault(link, run.info.run_id)
    behind = []
    for stage, result in locked.items():
        needed = dict(result.outs)
        if stage == "report":
            cells = files.CELLS.as_posix()
            needed[cells] = result.deps[cells]
        if not all(results.is_here(path, md5) for path, md5 in needed.items()):
            continue
        link, *_ = result.tags.items()  # to its one out
        ((out, md5),) = result.outs.items()
        if link not in logged or runs.lost_files(logged[link], out, md5):
            behind.append(result)
    return behind


def write(
    experiment_id: str,
    result: Result,
    locked: dict[str, Result],
    tags: dict[str, str],
    bring: Any,
) -> None:
    """Write one stage's run, or none of it."""
    for path, md5 in _needed(result, locked).items():
        bring(path, md5)
    for path, md5 in result.outs.items():
        if path.endswith(".safetensors"):
            runs.drop_unfinished(md5)
    run_id = runs.start(experiment_id, result, tags | {"backfilled": "true"})
    try:
        for out in map(Path, result.outs):
            if out.parent == files.CELLS:
                cell = json.loads(out.read_text(encoding="utf-8"))
                runs.log_history(run_id, cell["history"])
            elif out.name.startswith("history"):
                runs.log_history(run_id, files.read_csv(out))
        runs.log_result(run_id, result)
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is the one to tell
            client().set_terminated(run_id, "FAILED")
            client().delete_run(run_id)
        raise
    runs.end_copy(run_id)


def _needed(result: Result, locked: dict[str, Result]) -> dict[str, str]:
    """What has to lie in the folder to write a stage's run: its outs, and data and models."""
    needed = dict(result.outs)
    for stage in ("prepare", "train_lenet5", "train_mlp") if result.stage != "prepare" else ():
        outs = locked[stage].outs if stage in locked else {}
        needed |= {path: md5 for path, md5 in outs.items() if path in result.deps}
    return needed


def finished_run(outs: dict[str, str], deleted: bool = False) -> Any:
    """The newest finished run with exactly these outs, or None; or the newest deleted one."""
    found = [run for run in runs_with(outs, deleted) if run.info.status == "FINISHED"]
    return found[0] if found else None


def runs_with(outs: dict[str, str], deleted: bool = False) -> list[Any]:
    """The runs that carry all these outs, the newest first."""
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


def end_dead_runs() -> None:
    """End the runs that say RUNNING although the process that wrote them, on this machine, is
    gone. Those that sync began are deleted, because it writes them anew."""
    for run in search("attributes.status = 'RUNNING'"):
        tags, run_id = run.data.tags, run.info.run_id
        if not runs.is_over(tags.get("process", "")):
            continue
        client().set_tag(run_id, "reason", "its process ended before the run did")
        client().set_terminated(run_id, "KILLED")
        if "backfilled" in tags or tags.get("stage") == "pipeline":
            client().delete_run(run_id)
        print(f"ended the run of {tags.get('stage')} whose process is gone")


# --- what hangs on several runs ---


def connect(
    experiment_id: str, locked: dict[str, Result], gate: Registry, say: Say = silent
) -> None:
    """Attach what belongs to several runs: the models' scores and versions, the pipeline's run.

    Args:
        locked: The results of all stages, which agree and lie in this folder.
        gate: What a model needs to become champion.
    """
    evaluation = finished_run(locked["evaluate"].outs)
    if evaluation is None:
        return
    runs.score_models(locked["evaluate"])
    say("ready")
    registry.register(locked["evaluate"], evaluation.info.run_id, gate)
    say("ready")
    group(experiment_id, locked)


def agree(locked: dict[str, Result]) -> bool:
    """Whether all stages are there, each made from what the others have made."""
    if set(locked) != set(results.declared()):
        return False
    made = {path: md5 for result in locked.values() for path, md5 in result.outs.items()}
    return all(
        made.get(path, md5) == md5
        for result in locked.values()
        for path, md5 in result.deps.items()
    )


def pipeline_run(locked: dict[str, Result], deleted: bool = False) -> Any:
    """The parent run of one state of dvc.lock, or None; or a deleted one."""
    found = search(
        f"tags.pipeline = '{_identity(locked)}' and attributes.status = 'FINISHED'", deleted
    )
    return found[0] if found else None


def _identity(locked: dict[str, Result]) -> str:
    outs = sorted(md5 for result in locked.values() for md5 in result.outs.values())
    return hashlib.md5("".join(outs).encode()).hexdigest()


def group(experiment_id: str, locked: dict[str, Result]) -> None:
    """One parent run for one state of dvc.lock, over the runs of its stages.

    A run that belongs to several states is shown under the newest; the table in each parent's
    description names all five.
    """
    of_stage = {stage: finished_run(locked[stage].outs) for stage in results.declared()}
    if None in of_stage.values():
        return
    parent = pipeline_run(locked)
    if parent is None and (deleted := pipeline_run(locked, deleted=True)):
        parent = deleted
        client().restore_run(parent.info.run_id)
        print("restored the deleted run of the pipeline")
    if parent is None:
        copied = ("recipe", "commit", "dirty", "dvc_experiment", "mlflow.user")
        tags = {
            key: value for key, value in of_stage["evaluate"].data.tags.items() if key in copied
        }
        tags |= {"stage": "pipeline", "mlflow.source.name": "dvc repro"}
        parent = client().create_run(
            experiment_id,
            run_name=f"pipeline {tags.get('recipe', '')}".strip(),
            tags=tags | {"process": runs.this_process()},
        )
        metrics = json.loads(files.METRICS.read_text(encoding="utf-8"))
        runs.log_metrics(parent.info.run_id, runs.numbers(metrics))
        client().set_tag(parent.info.run_id, "pipeline", _identity(locked))
    parent_id = parent.info.run_id
    for out, md5 in _shared(locked):
        if runs.lost_files(parent_id, out, md5):
            runs.log_files(parent_id, runs.artifacts_of(out))
    described = description(of_stage)
    if parent.data.tags.get("mlflow.note.content") != described:
        client().set_tag(parent_id, "mlflow.note.content", described)
    for run in of_stage.values():
        if run.data.tags.get("mlflow.parentRunId") != parent_id:
            client().set_tag(run.info.run_id, "mlflow.parentRunId", parent_id)
    if parent.info.status == "RUNNING":
        runs.end_copy(parent_id)


def description(of_stage: dict[str, Any]) -> str:
    """What the parent run says: the comparison, and where the five runs are."""
    comparison = files.COMPARISON.with_suffix(".md").read_text(encoding="utf-8")
    rows = [
        [
            f"[{stage}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})",
            run.data.tags["mlflow.note.content"],
        ]
        for stage, run in of_stage.items()
    ]
    return f"{comparison}\n{table('stage | what it does', 'll', rows)}"
