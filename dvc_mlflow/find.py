"""``find``: from a run, a model or a file to its commits, and from a commit to its runs."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc_mlflow import (
    git,
    history,
    identity,
    models,
    pipeline,
    projects,
    registry,
    runs,
    store,
    sync,
)
from dvc_mlflow.errors import InputError, StageError
from dvc_mlflow.files import md5 as md5_of
from dvc_mlflow.known import PARENT, Known, is_former, search
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
    run_id = run.info.run_id
    shown = _stages_of(run) if run.data.tags.get("stage") == pipeline.NAME else [run]
    results = frozenset(one.data.tags["result"] for one in shown if "result" in one.data.tags)
    outs = {path: md5 for one in shown for path, md5 in _outs(one).items()}
    if not outs and not results:
        tags, commit = run.data.tags, run.data.tags.get("commit")
        ran = f"; it ran on commit {commit[:10]}" if commit else ""
        if "stage" not in tags:
            raise InputError(f"run {run_id} was not made from a stage of DVC")
        if run.info.status == "FINISHED" and "read" in tags:
            raise InputError(f"run {run_id} has no results yet{ran}: `dvc-mlflow sync` adds them")
        raise InputError(f"run {run_id} is {run.info.status} and has no results{ran}")
    print(f"run {run_id} {run.data.tags['stage']} ({run.info.status})")
    print(f"  {store.address(run=run)}")
    store.print_how_to_open()
    former = {path: md5 for one in shown if is_former(one) for path, md5 in _outs(one).items()}
    print_commits(former, f"run {run_id}", results, frozenset(outs.values()))


def _stages_of(run: Any) -> list[Any]:
    """The runs of the stages of one state: those below its run, and others that its text names."""
    below = {one.info.run_id: one for one in search(f"tags.{PARENT} = '{run.info.run_id}'")}
    text = run.data.tags.get("mlflow.note.content", "")
    named = (_run(one) for one in re.findall("/runs/([0-9a-f]{32})", text) if one not in below)
    return [*below.values(), *filter(None, named)]


def _print_holder(holder: history.Holder) -> None:
    others = f"  (and {len(holder.commits) - 1} more commits)" if holder.commits[1:] else ""
    print(f"  commit {git.described(holder.first)}{others}")


def _outs(run: Any) -> dict[str, str]:
    """The md5s of the outs in the tags of a run, by path."""
    tags = run.data.tags
    return {tag.removeprefix("out:"): md5 for tag, md5 in tags.items() if tag.startswith("out:")}


def find_content(name: str, md5: str) -> None:
    """Print the logged models, versions, runs and commits that have a file, or have read it."""
    logged = models.find(md5)
    readers = search(f"dataset.digest = '{md5[: runs.LONGEST_DIGEST]}'")
    holders = history.holders(frozenset({frozenset({md5})}))
    paths = {
        path for holder in holders for stage in holder.stages.values()
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


def print_commits(
    outs: Mapping[str, str],
    name: str,
    results: frozenset[str] = frozenset(),
    md5s: frozenset[str] = frozenset(),
) -> None:
    """Print the commits whose dvc.lock has these outs, and how to get the files back.

    Args:
        results: The identities that it has as well, see identity.py.
        md5s: Further md5s that it names.
    """
    named = md5s.union(outs.values())
    holders = history.holders(frozenset({named}))
    holding = [holder for holder in holders if holder.holds(outs, results)]
    if not holding:  # the stages of a pipeline may be in several dvc.yaml files
        parts = history.holders(frozenset(frozenset({md5}) for md5 in named) if outs else None)
        holding = [holder for holder in history.together(parts) if holder.holds(outs, results)]
    here, results_here = _locked_here()
    if outs.items() <= here.items() and results <= results_here:
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


def _locked_here() -> tuple[dict[str, str], set[str]]:
    """The md5s of all outs in the dvc.lock files of this folder, by path, and all identities."""
    found: dict[str, str] = {}
    results: set[str] = set()
    for files in projects.find().values():
        for file in files:
            with contextlib.suppress(OSError, StageError):
                for stage in projects.outs_here(file).values():
                    found |= stage
                text = file.with_name(projects.LOCK).read_text("utf-8")
                results |= identity.of_lock(text, file.parent)
    return found, results


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
