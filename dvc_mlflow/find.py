"""``find``: from a run, a model or a file to its commits, and from a commit to its runs."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_mlflow import git, history, models, pipeline, projects, registry, runs, store, sync
from dvc_mlflow.errors import InputError, StageError
from dvc_mlflow.files import md5 as md5_of
from dvc_mlflow.known import Known, search
from dvc_mlflow.results import Project
from dvc_mlflow.store import client

MOST_STAGES = 20  # of which the runs are printed one by one


def find(what: str) -> None:
    """Print everything that belongs to one thing.

    Args:
        what: The id of a run or of a logged model, `models:/NAME/VERSION`, `models:/NAME@ALIAS`, a
            file, or any name of git or DVC for a commit.

    Raises:
        InputError: There is no such thing, or nothing belongs to it.
    """
    store.find_experiment()
    store.note_move()
    file = Path(os.environ.get("PWD", ""), what)  # where the command was typed
    if not what:
        raise InputError("nothing to find: name a run, a model version, a file or a commit")
    if file.is_file():
        with contextlib.suppress(StageError):
            commit = git.commit_of(what)[:10]
            print(f"{what} names a file and a commit; this is the file, `find {commit}` the other")
        find_content(f"file {what}", md5_of(file))
    elif what.startswith("models:/") or re.fullmatch(r"m-[0-9a-f]{32}", what):
        model = logged_model(what)
        md5 = model.tags.get("md5")
        if md5 is None:
            raise InputError(f"{what} was not logged from a result of DVC: it has no tag md5")
        find_content(what, md5)
    elif run := _run(what):
        find_run(run)
    else:
        find_commit(what)


def find_run(run: Any) -> None:
    run_id, runs_of_stages = run.info.run_id, [run]
    if run.data.tags.get("stage") == pipeline.NAME:
        children = client().search_runs(
            [run.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'"
        )
        runs_of_stages += reversed(children)
    outs: dict[str, str] = {}
    for one in runs_of_stages:
        outs |= _outs(one)
    commit = run.data.tags.get("commit")
    ran = f"; it ran on commit {commit[:10]}" if commit else ""
    if not outs and "stage" not in run.data.tags:
        raise InputError(f"run {run_id} was not made from a stage of DVC")
    if not outs and (run.info.status != "FINISHED" or "read" not in run.data.tags):
        raise InputError(f"run {run_id} is {run.info.status} and has no results{ran}")
    print(f"run {run_id} {run.data.tags['stage']} ({run.info.status})")
    print(f"  {store.address(run=run)}")
    store.print_how_to_open()
    if outs:
        print_commits(outs, f"run {run_id}")
    elif not _print_commits_of(runs_of_stages[1:] or runs_of_stages):
        raise InputError(f"no commit's {projects.LOCK} holds run {run_id}, which has no outs{ran}")


def _print_commits_of(runs_of_stages: Sequence[Any]) -> bool:
    """Print the commits that hold runs without outs, by what they read; whether there are any."""
    tags = [run.data.tags for run in runs_of_stages]
    folder = Path(tags[0].get("project", ""))
    file, _, stage = tags[0]["stage"].rpartition(":")

    def holds(project: Project) -> bool:
        locked = project.locked()
        return all(
            one["stage"] in locked and locked[one["stage"]].tags.items() <= one.items()
            for one in tags
        )

    def is_in(commit: str) -> bool:
        files = projects.find(commit=commit).get(folder, [])
        with history.repo_of(folder, commit) as repo:
            return holds(Project(folder, files, repo))

    here = projects.find()
    is_here = folder in here and holds(Project(folder, here[folder]))
    if is_here:
        print(f"  {projects.LOCK} in this folder holds it")
    lock = (folder / (file or projects.DECLARATION)).with_name(projects.LOCK)
    holding = history.holders_of(lock, stage, is_in)
    for holder in holding:
        _print_holder(holder)
    return is_here or bool(holding)


def _print_holder(holder: history.Holder) -> None:
    others = f"  (and {holder.others} more commits)" if holder.others else ""
    print(f"  commit {git.described(holder.first)}{others}")


def _outs(run: Any) -> dict[str, str]:
    """The md5s of the outs in the tags of a run, by path."""
    tags = run.data.tags
    return {tag.removeprefix("out:"): md5 for tag, md5 in tags.items() if tag.startswith("out:")}


def find_content(name: str, md5: str) -> None:
    """Print the logged models, versions, runs and commits that have a file, or have read it."""
    logged = models.find(md5)
    readers = search(f"dataset.digest = '{md5[: runs.LONGEST_DIGEST]}'")
    paths = {
        path for holder in history.holders(frozenset({md5})) for stage in holder.stages.values()
        for path, held in stage.items() if held == md5
    }  # fmt: skip
    if not logged and not paths and not readers:
        raise InputError(f"{name} (md5 {md5}) is in no commit's {projects.LOCK} and in no run")
    print(f"{name}: md5 {md5}")
    version = registry.version_of(md5)
    if version is not None:
        print(f"  models:/{registry.name()}/{version.version}: {version.description}")
    for model in logged:
        print(f"  {store.address(model=model)}")
        print(f"    made by run {model.source_run_id}")
    if logged:
        store.print_how_to_open()
    for run in readers[:MOST_STAGES]:
        print(f"  read by run {run.info.run_id} ({run.data.tags.get('stage', run.info.run_name)})")
    if len(readers) > MOST_STAGES:
        print(f"  and by {len(readers) - MOST_STAGES} more")
    if logged or paths:
        path = logged[0].tags["file"] if logged else sorted(paths)[0]
        print_commits({path: md5}, name)


def print_commits(outs: Mapping[str, str], name: str) -> None:
    """Print the commits whose dvc.lock has these outs, and how to get the files back."""
    some = frozenset(outs.values())
    holding = [holder for holder in history.holders(some) if holder.holds(outs)]
    if outs.items() <= _locked_here().items():
        print(f"  {projects.LOCK} in this folder holds it: `dvc checkout` brings it back")
    elif not holding:
        raise InputError(f"no commit's {projects.LOCK} holds the results of {name}")
    for holder in holding:
        _print_holder(holder)
    if holding:
        commit = holding[0].first[:10]
        print(
            f"  to bring it back: `git checkout {commit} && dvc checkout` (not cached: `dvc pull`)"
        )


def _locked_here() -> dict[str, str]:
    """The md5s of all outs in the dvc.lock files of this folder, by path."""
    found: dict[str, str] = {}
    for files in projects.find().values():
        for file in files:
            with contextlib.suppress(OSError, StageError):
                for stage in projects.outs_here(file).values():
                    found |= stage
    return found


def find_commit(rev: str) -> None:
    """Print the runs that have the results of a commit."""
    try:
        commit = git.commit_of(rev)
    except InputError:
        raise InputError(
            f"{rev} is no run or model of {store.name()}, no file and no commit of this repository"
        ) from None
    print(f"commit {git.described(commit)}")
    known, report = Known(), sync.Report()
    with sync.state_of(commit) as state:
        found = sum(_print_project(commit, project, known) for project in state.projects)
        report.add(state.projects)
    if found:
        store.print_how_to_open()
    none = f"no run in {store.name()} has the results of commit {commit[:10]}"
    report.end("" if found else f"; {none}")
    if not found:
        raise StageError(none)


def _print_project(commit: str, project: Project, known: Known) -> int:
    """Print the run of each stage of a project, or of the last one of many; their number."""
    place = "" if project.folder == projects.MAIN else f"{project.folder} "
    of_stage = {stage: known.of(result) for stage, result in project.locked().items()}
    have = [stage for stage, run in of_stage.items() if run]
    many = len(of_stage) > MOST_STAGES
    for stage, run in of_stage.items():
        if not many or stage == (have or [""])[-1]:
            print(f"  {place + stage:14} {store.address(run=run) if run else 'no run'}")
    if together := store.comparison([of_stage[stage] for stage in have]):
        print(f"  {'compared':14} {together}")
    if many:
        print(f"  {'':14} {len(have)} of its {len(of_stage)} stages have runs")
    if len(have) < len(of_stage):
        print(f"  {'':14} `dvc-mlflow sync --rev {commit[:10]}` writes the missing runs")
    return len(have)


def _run(run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        return None
    try:
        return client().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def logged_model(what: str) -> Any:
    """The logged model of `models:/NAME/VERSION`, of `models:/NAME@ALIAS`, or with this id.

    Raises:
        InputError: There is none.
        StageError: There is no champion.
    """
    from mlflow.exceptions import MlflowException

    name = what.removeprefix("models:/")
    try:
        if re.fullmatch(r"m-[0-9a-f]{32}", name):
            return client().get_logged_model(name)
        if "@" in name:
            version = client().get_model_version_by_alias(*name.split("@", 1))
        else:
            version = client().get_model_version(*name.split("/", 1))
        # In a database, only the source of the version names the model
        return client().get_logged_model(
            version.model_id or version.source.removeprefix("models:/")
        )
    except (MlflowException, TypeError) as error:
        if getattr(error, "error_code", None) in (None, *store.NOT_THERE):
            if name == f"{registry.name()}@{registry.CHAMPION}" and registry.champion() is None:
                raise StageError(registry.without_champion()) from None
            raise InputError(
                f"{what} is no model of {store.name()}: expected models:/NAME/VERSION, "
                f"models:/NAME@{registry.CHAMPION} or a model's id"
            ) from None
        raise
