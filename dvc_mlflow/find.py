"""``find``: from a run, a model or a file to its commits, and from a commit to its runs."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvc_kit.errors import InputError, StageError
from dvc_kit.files import md5 as md5_of
from dvc_mlflow import (
    addresses,
    git,
    history,
    models,
    projects,
    registry,
    schema,
    store,
    sync,
)
from dvc_mlflow.report import Report
from dvc_mlflow.results import Project
from dvc_mlflow.runs import LONGEST_DIGEST
from dvc_mlflow.state import Known, md5s_of
from dvc_mlflow.store import client

MOST_READERS = 20  # runs that read a file, and are printed


def find(what: str) -> None:
    """Print everything that belongs to one thing.

    Args:
        what: The id of a run or of a logged model, `models:/NAME/VERSION`, `models:/NAME@ALIAS`, a
            file, or any name of git or DVC for a commit.

    Raises:
        InputError: There is no such thing, or nothing belongs to it.
    """
    store.find_experiment()
    file = Path(os.environ.get("PWD", ""), what)  # where the command was typed
    if not what:
        raise InputError("nothing to find: name a run, a model version, a file or a commit")
    if file.is_file():
        find_content(f"file {what}", md5_of(file))
    elif is_model(what):
        md5 = logged_model(what).tags.get(schema.MD5)
        if md5 is None:
            raise InputError(f"{what} was not logged from a result of DVC: it has no tag md5")
        find_content(what, md5)
    elif run := named_run(what):
        find_run(run)
    else:
        find_commit(what)


def find_run(run: Any) -> None:
    run_id, tags = run.info.run_id, run.data.tags
    results, md5s = results_of(run)
    if not results:
        raise InputError(f"run {run_id} {_without_results(run)}")
    print(f"run {run_id} {tags[schema.STAGE]} ({run.info.status})")
    print(f"  {addresses.address(run=run)}")
    addresses.print_how_to_open()
    here = frozenset[str]().union(*(lock.results for lock in history.locks_here()))
    commits = history.commits_with(results, md5s)
    print_commits(f"run {run_id}", commits, is_here=results <= here)


def results_of(run: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The identities of the results that a run shows, and the md5s of their outs."""
    of_stages = stages_of(run) if run.data.tags.get(schema.STAGE) == schema.PIPELINE else [run]
    tags = [its.data.tags for its in of_stages]
    results = frozenset(its[schema.RESULT] for its in tags if schema.RESULT in its)
    return results, frozenset[str]().union(*map(md5s_of, of_stages))


def commit_with(what: str) -> tuple[str, Any]:
    """The first commit that holds the results of a run or a model, and the run. Or a commit itself,
    and None.

    Raises:
        InputError: There is no such thing, or no commit holds it.
    """
    run = named_run(what)
    if run is None and is_model(what):
        run = named_run(logged_model(what).source_run_id or "")
    if run is None:
        try:
            return git.commit_of(what), None
        except InputError:
            raise InputError(
                f"{what} is no run or model of {store.name()} and no commit of this repository"
                f"{git.shallow()}"
            ) from None
    results, md5s = results_of(run)
    if not results:
        raise InputError(f"run {run.info.run_id} {_without_results(run)}")
    if commits := history.commits_with(results, md5s):
        return commits[-1], run
    raise InputError(
        f"no commit of this repository holds the results of run {run.info.run_id}{git.shallow()}"
    )


def _without_results(run: Any) -> str:
    """Why a run leads to no commit."""
    tags = run.data.tags
    if schema.STAGE not in tags:
        return "was not made from a stage of DVC"
    ran = f"; it ran on commit {tags[schema.COMMIT][:10]}" if schema.COMMIT in tags else ""
    return f"is {run.info.status} and has no results{ran}: `dvc-mlflow sync` adds those of dvc.lock"


def stages_of(run: Any) -> list[Any]:
    """The runs of the stages of one state: those below its run, and others that its text names."""
    below = store.search(f"tags.{schema.PARENT} = '{run.info.run_id}'")
    known = {its.info.run_id for its in below}
    text = run.data.tags.get(schema.NOTE, "")
    named = (named_run(run_id) for run_id in re.findall("/runs/([0-9a-f]{32})", text)
             if run_id not in known)  # fmt: skip
    return [*below, *filter(None, named)]


def find_content(name: str, md5: str) -> None:
    """Print the logged models, versions, runs and commits that have a file, or have read it."""
    logged = models.find(md5)
    readers = store.search(f"dataset.digest = '{md5[:LONGEST_DIGEST]}'")
    commits = history.commits_naming(md5)
    if not logged and not commits and not readers:
        raise InputError(f"{name} (md5 {md5}) is in no commit's {projects.LOCK} and in no run")
    print(f"{name}: md5 {md5}")
    version = registry.version_of(md5)
    if version is not None:
        print(f"  models:/{registry.name()}/{version.version}: {version.description}")
    for model in logged:
        print(f"  {addresses.address(model=model)}")
        print(f"    made by run {model.source_run_id}")
    if logged:
        addresses.print_how_to_open()
    for run in readers[:MOST_READERS]:
        stage = run.data.tags.get(schema.STAGE, run.info.run_name)
        print(f"  read by run {run.info.run_id} ({stage})")
    if len(readers) > MOST_READERS:
        print(f"  and by {len(readers) - MOST_READERS} more")
    if logged or commits:
        is_here = any(md5 in lock.text for lock in history.locks_here())
        print_commits(name, commits, is_here)


def print_commits(name: str, commits: Sequence[str], is_here: bool) -> None:
    """Print the commits that hold something, the newest first, and how to get it back.

    Args:
        is_here: Whether a dvc.lock of this folder holds it, too.
    """
    if is_here:
        print(f"  {projects.LOCK} in this folder holds it: `dvc checkout` brings it back")
    elif not commits:
        raise InputError(f"no commit's {projects.LOCK} holds the results of {name}{git.shallow()}")
    if commits:
        others = f"  (and {len(commits) - 1} more commits)" if commits[1:] else ""
        print(f"  commit {git.described(commits[-1])}{others}")
        back = f"`git checkout {commits[-1][:10]} && dvc checkout`"
        print(f"  to bring it back: {back} (not cached: `dvc pull`)")


def find_commit(rev: str) -> None:
    """Print the runs that have the results of a commit."""
    try:
        commit = git.commit_of(rev)
    except InputError:
        raise InputError(
            f"{rev} is no run or model of {store.name()}, no file and no commit of this repository"
            f"{git.shallow()}"
        ) from None
    print(f"commit {git.described(commit)}")
    known, report = Known(), Report()
    with sync.state_of(commit) as state:
        count = sum(_print_project(commit, project, known) for project in state.projects)
        report.add(state.projects, known)
    if count:
        addresses.print_how_to_open()
    none = f"no run in {store.name()} has the results of commit {commit[:10]}"
    report.end("" if count else f"; {none}")
    if not count:
        raise StageError(none)


def _print_project(commit: str, project: Project, known: Known) -> int:
    """Print the run of each stage of a project; the number of runs."""
    place = "" if project.folder == projects.MAIN else f"{project.folder} "
    of_stage = {stage: known.of(result) for stage, result in project.locked().items()}
    have = [stage for stage, run in of_stage.items() if run]
    for stage, run in of_stage.items():
        print(f"  {place + stage:14} {addresses.address(run=run) if run else 'no run'}")
    if together := addresses.comparison([of_stage[stage] for stage in have]):
        print(f"  {'compared':14} {together}")
    if len(have) < len(of_stage):
        print(f"  {'':14} `dvc-mlflow sync --rev {commit[:10]}` writes the missing runs")
    return len(have)


def named_run(run_id: str) -> Any:
    """The run with this id, or None."""
    known = re.fullmatch(r"[0-9a-f]{32}", run_id)
    return store.get(client().get_run, run_id) if known else None


def is_model(what: str) -> bool:
    return bool(re.match("models:/|m-[0-9a-f]{32}$", what))


def logged_model(what: str) -> Any:
    """The logged model of `models:/NAME/VERSION`, of `models:/NAME@ALIAS`, or with this id.

    Raises:
        InputError: There is none.
        StageError: There is no champion.
    """
    name, model = what.removeprefix("models:/"), None
    if re.fullmatch(r"m-[0-9a-f]{32}", name):
        model = store.get(client().get_logged_model, name)
    elif match := re.fullmatch("(.*?)([@/])(.*)", name):
        asked = client()
        by = asked.get_model_version_by_alias if match[2] == "@" else asked.get_model_version
        # In a database, only the source of the version names the model
        if version := store.get(by, match[1], match[3]):
            model = store.get(
                client().get_logged_model,
                version.model_id or version.source.removeprefix("models:/"),
            )
    if model is not None:
        return model
    if name == f"{registry.name()}@{schema.CHAMPION}" and registry.champion() is None:
        raise StageError(registry.without_champion())
    raise InputError(
        f"{what} is no model of {store.name()}: expected models:/NAME/VERSION, "
        f"models:/NAME@{schema.CHAMPION} or a model's id"
    )
