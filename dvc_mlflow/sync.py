"""``sync``: write the runs that MLflow lacks, from the results that DVC keeps."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_mlflow import claims, git, models, pipeline, projects, results, runs, store
from dvc_mlflow.errors import StageError
from dvc_mlflow.hooks import hook
from dvc_mlflow.results import Bring, Result
from dvc_mlflow.store import client


@dataclass(frozen=True)
class State:
    """One state of dvc.lock, and how its files are had."""

    experiment_id: str
    locked: Mapping[str, Result]  # of the main project
    tags: Mapping[str, str]  # for runs that are written from it
    bring: Bring


def sync(rev: str | None = None) -> None:
    """Give every result in dvc.lock a finished run with its files and models, and connect the runs.

    Args:
        rev: A commit. Its files come from git and the DVC cache. Without it, the results in this
            folder, also those of the other projects.

    Raises:
        StageError: A file cannot be had. Names it, and the command that brings it.
    """
    experiment_id = store.open_store()
    _end_dead_runs()
    commit = None if rev is None else git.commit_of(rev)
    with results.checkout(commit) as (project, bring):
        tags = {"commit": commit or "", "dirty": "false"}
        if commit is None:
            tags = git.provenance(project.outs())
        state = State(experiment_id, project.locked(), tags, bring)
        _sync_main(state, set(project))
    if rev is None:
        for folder in projects.folders()[1:]:
            _sync_project(folder, state)


def status() -> None:
    """Print how many results in dvc.lock have a run with all their files.

    Raises:
        StageError: Some have not.
    """
    store.find_experiment()
    missing = []
    for folder in projects.folders():
        locked = list(results.Project(folder).locked().values())
        behind = _without_run(locked)
        missing += behind
        place = "" if folder == projects.MAIN else f"{folder}: "
        print(f"{place}{len(locked) - len(behind)} of {len(locked)} results have their run")
    if missing:
        names = ", ".join(result.stage for result in missing[:5])
        more = f" and {len(missing) - 5} more" if missing[5:] else ""
        raise StageError(f"no run for {names}{more} in {store.name()}: `make sync` writes them")


def _sync_main(state: State, declared: set[str]) -> None:
    whole = set(state.locked) == declared
    if not _behind(state) and not (whole and pipeline.is_apart(state.locked)):
        return
    with claims.held():  # and look again: another machine may have written them meanwhile
        behind = _behind(state)
        for result in behind:
            _complete(result, state)
        if whole and (behind or pipeline.is_apart(state.locked)) and pipeline.agree(state.locked):
            for result in pipeline.needed(state.locked):
                for path, md5 in _needed(result, state).items():
                    state.bring(path, md5)
            pipeline.connect(state.experiment_id, state.locked)


def _behind(state: State) -> list[Result]:
    """The results that have no finished run, or one that has lost files."""
    return [
        result
        for result in state.locked.values()
        if (run := runs.finished(result.outs)) is None or _lost(run, result)
    ]


def _lost(run: Any, result: Result) -> list[str]:
    """The outs whose files are missing in the run or in the logged model."""
    lost = []
    for out, md5 in result.outs.items():
        if out in result.models:
            found = models.find(md5)
            if not found or models.lost_files(found[0]):
                lost.append(out)
        elif runs.lost_files(run.info.run_id, out, md5):
            lost.append(out)
    return lost


def _complete(result: Result, state: State) -> None:
    """Give a result its finished run, with all files."""
    run = runs.finished(result.outs)
    if run is None and (deleted := runs.finished(result.outs, deleted=True)):
        run = deleted
        client().restore_run(run.info.run_id)
        print(f"restored the deleted run of {result.stage}")
    if run is None:
        _write(result, state)
        print(f"logged the run of {result.stage} from its results")
        return
    lost = _lost(run, result)
    has_model = any(out in result.models for out in lost)
    needed = _needed(result, state) if has_model else {out: result.outs[out] for out in lost}
    for path, md5 in needed.items():
        state.bring(path, md5)
    for out in lost:
        if out not in result.models:
            runs.log_files(run.info.run_id, runs.artifacts_of(out))
        elif known := models.find(result.outs[out]):
            models.log_files(known[0], result, runs.silent)
        else:
            models.log(run.info.run_id, result, out, runs.silent)
        print(f"logged {out} again, which the run of {result.stage} had lost")


def _write(result: Result, state: State) -> None:
    """Write the run of a result completely, or not at all."""
    for path, md5 in _needed(result, state).items():
        state.bring(path, md5)
    for path in result.models:
        models.drop_unfinished(result.outs[path])
    run_id = runs.start(state.experiment_id, result, {**state.tags, "backfilled": "true"})
    try:
        runs.log_curves(run_id, result)
        runs.log_result(run_id, result)
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is reported
            client().set_terminated(run_id, "FAILED")
            client().delete_run(run_id)
        raise
    runs.end_copy(run_id)


def _needed(result: Result, state: State) -> dict[str, str]:
    """The files that a run is written from: the outs of the stage, and those that a hook reads."""
    made = {path: md5 for one in state.locked.values() for path, md5 in one.outs.items()}
    read = hook("reads", lambda _: ())(result)
    return {**result.outs, **{path: made[path] for path in read if path in made}}


def _sync_project(folder: Path, main: State) -> None:
    """Give every result of another project, whose files lie here, its finished run."""
    project = results.Project(folder)
    locked = project.locked()
    merged = {**main.locked, **locked}
    state = State(store.open_store(folder), merged, main.tags, results.require)
    here = [result for result in locked.values() if _is_here(result, project)]
    if _without_run(here):
        with claims.held(store.experiment(folder).name):
            for result in _without_run(here):
                _complete(result, state)


def _is_here(result: Result, project: results.Project) -> bool:
    """Whether the outs of a stage lie here, and the files of the project that they were made of."""
    made = {path: md5 for path, md5 in result.deps.items() if project.folder in Path(path).parents}
    return all(results.is_here(path, md5) for path, md5 in {**result.outs, **made}.items())


def _without_run(found: list[Result]) -> list[Result]:
    """Those that have no finished run, or one that has lost files. Asks the store once for all."""
    logged: dict[tuple[str, str], list[Any]] = {}
    for run in runs.search("attributes.status = 'FINISHED' and tags.stage LIKE '%'"):
        for link in run.data.tags.items():
            logged.setdefault(link, []).append(run)
    behind = []
    for result in found:
        links = {f"out:{out}": md5 for out, md5 in result.outs.items()}.items()
        known = logged.get(next(iter(links)), [])
        run = next((run for run in known if links <= run.data.tags.items()), None)
        if run is None or _lost(run, result):
            behind.append(result)
    return behind


def _end_dead_runs() -> None:
    """End the runs that are RUNNING although the process that wrote them has ended.

    Only runs of this machine are ended. Runs that `sync` began are deleted, because it writes them
    again.
    """
    for run in runs.search("attributes.status = 'RUNNING'"):
        tags, run_id = run.data.tags, run.info.run_id
        if not runs.is_over(tags.get("process", "")):
            continue
        client().set_tag(run_id, "reason", "its process ended before the run did")
        client().set_terminated(run_id, "KILLED")
        if "backfilled" in tags or tags.get("stage") == pipeline.NAME:
            client().delete_run(run_id)
        print(f"ended the run of {tags.get('stage')} whose process is gone")
