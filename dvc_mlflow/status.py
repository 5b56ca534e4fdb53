"""``status``: the results that have no run, and the runs whose results no commit holds."""

import contextlib
from typing import Any

from dvc_kit.errors import StageError
from dvc_mlflow import history, projects, schema, store
from dvc_mlflow.git import GitError
from dvc_mlflow.report import Report, name_of, some
from dvc_mlflow.result import Result
from dvc_mlflow.state import Known, md5s_of
from dvc_mlflow.sync import State, Work, state_of


def status() -> None:
    """Print how many results in dvc.lock have a run, and the runs whose results no commit holds.

    Raises:
        StageError: At least one result has no run, or something could not be read.
    """
    store.find_experiment()
    behind, known, report = list[Result](), Known(), Report()
    with state_of(None) as current:
        report.add(current.projects, known)
        for project in current.projects:
            work = Work(project, current, known, report)
            behind += work.behind
            place = "" if project.folder == projects.MAIN else f"{project.folder}: "
            count = len(work.locked)
            print(f"{place}{count - len(work.behind)} of {count} results have their run")
        _print_uncommitted(known, current)
    unwritten = ""
    if behind:
        names = some([name_of(result) for result in behind], f" and {len(behind) - 3} more")
        unwritten = (
            f"no complete run for {names} in {store.name()}: `dvc-mlflow sync` writes them, "
            "or says why it cannot"
        )
    report.end(f"; {unwritten}" if unwritten else "")
    if unwritten:
        raise StageError(unwritten)


def _print_uncommitted(known: Known, current: State) -> None:
    """Print the runs with results that neither a commit nor this checkout holds."""
    for run in uncommitted(known, current):
        stage = run.data.tags[schema.STAGE]
        print(f"no commit holds the results of run {run.info.run_id} ({stage})")


def uncommitted(known: Known, current: State) -> list[Any]:
    """The runs of stages with results that neither a commit nor this checkout holds."""
    held = {its.identity for read in current.projects for its in read.locked().values()}
    apart = {
        run: md5s
        for run in known.runs.values()
        if run.data.tags.get(schema.RESULT, "") not in {*held, ""} and (md5s := md5s_of(run))
    }
    with contextlib.suppress(GitError):  # there is no history
        for lock in history.locks(frozenset().union(*apart.values())) if apart else ():
            held |= lock.results
    return [run for run in apart if run.data.tags[schema.RESULT] not in held]
