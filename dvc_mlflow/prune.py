"""``prune``: delete the runs whose results nothing in git holds, so that MLflow can restore them.

Logged models and versions of registered models stay, because MLflow cannot restore them.
"""

import contextlib
import functools
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dvc_kit.errors import InputError
from dvc_mlflow import (
    claims,
    find,
    git,
    history,
    projects,
    schema,
    status,
    store,
    sync,
    writers,
)
from dvc_mlflow.git import GitError
from dvc_mlflow.state import Known
from dvc_mlflow.store import client


def prune(dry: bool = False, older: str | None = None) -> None:
    """Delete the runs whose results no commit, stash, DVC experiment or dvc.lock holds.

    Args:
        dry: Only say which runs these are.
        older: A date. Runs that began later are left.

    Raises:
        InputError: The history is not whole, so that nobody knows what it holds.
    """
    try:
        git.commit_of("HEAD")
    except (GitError, InputError):
        raise InputError("here is no history of git, so no run is deleted") from None
    if shallow := git.shallow():
        raise InputError(f"no run is deleted{shallow}")
    before = _moment(older) if older is not None else time.time()
    store.find_experiment()
    known = Known()
    if not known.runs:
        print(store.nothing())
        return
    with contextlib.nullcontext() if dry else claims.held():
        found = _apart(known)
        chosen = [run for run in found if run.info.start_time < before * 1000 and _is_ours(run)]
        chosen = _without_champions(chosen)
        for run in chosen:
            if not dry:
                client().delete_run(run.info.run_id)
            did = "would delete" if dry else "deleted"
            print(f"{did} run {run.info.run_id} ({run.data.tags[schema.STAGE]})")
        if not dry:
            _lift(known, {run.info.run_id for run in chosen})
    if chosen and not dry:
        print("`mlflow.MlflowClient().restore_run(ID)` brings one back, until `mlflow gc` runs")
    if left := len(found) - len(chosen):
        print(f"{left} other runs whose results no commit here holds are left: they are newer, or "
              "of another user, project or repository, or of a champion")  # fmt: skip


def _moment(date: str) -> float:
    """A date as git reads it, in seconds since 1970."""
    seconds = int(git.git("rev-parse", f"--since={date}").strip().removeprefix("--max-age="))
    if seconds > time.time() - 2:  # what git cannot read is now
        raise InputError(f"--older {date}: expected a date of the past, such as 2026-01-31")
    print(f"runs from before {datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}")
    return seconds


def _apart(known: Known) -> list[Any]:
    """The runs whose results nothing holds: first those of pipelines, of which one commit has to
    hold the results of all stages."""
    beside = frozenset[str]().union(*(lock.results for lock in history.locks_beside()))
    with sync.state_of(None) as current:
        stages = status.uncommitted(known, current)
    found = [run for run in stages if run.data.tags[schema.RESULT] not in beside]
    held = [beside, *history.held_by().values()]
    whole = []
    for run in known.runs.values():
        if run.data.tags[schema.STAGE] == schema.PIPELINE and schema.RESULT in run.data.tags:
            results, _ = find.results_of(run)
            if not any(results <= of_commit for of_commit in held):
                whole.append(run)
    return [*whole, *found]


def _is_ours(run: Any) -> bool:
    """Whether this user made a run in this repository: its commit is here, and has its project."""
    tags = run.data.tags
    place = Path(tags.get(schema.PROJECT, "unknown"))
    return (
        tags.get(schema.USER) == writers.user()
        and schema.COMMIT in tags
        and place in _projects(tags[schema.COMMIT])
    )


@functools.cache
def _projects(commit: str) -> frozenset[Path]:
    with contextlib.suppress(GitError):
        return frozenset(projects.find(commit=commit))
    return frozenset()


def _without_champions(runs: Sequence[Any]) -> list[Any]:
    """These runs without those that a version with an alias needs. Names the other versions."""
    ids, kept = {run.info.run_id for run in runs}, set[str]()
    for version in store.every(client().search_model_versions):
        needed = {version.run_id, version.tags.get(schema.EVALUATION)} & ids
        if needed:
            version = client().get_model_version(version.name, version.version)
            name = f"models:/{version.name}/{version.version}"
            if version.aliases:
                kept |= needed
                print(f"{name} is {', '.join(version.aliases)}: its runs are left")
            else:
                print(f"{name} stays, because MLflow cannot restore versions")
    return [run for run in runs if run.info.run_id not in kept]


def _lift(known: Known, deleted: set[str]) -> None:
    """Put the runs that lay below deleted ones below another run of a pipeline that names them."""
    left = [run for run in reversed(known.runs.values()) if run.info.run_id not in deleted]
    whole = [run for run in left if run.data.tags[schema.STAGE] == schema.PIPELINE]
    for run in left:
        if run.data.tags.get(schema.PARENT) in deleted:
            for above in whole:
                if run.info.run_id in above.data.tags.get(schema.NOTE, ""):
                    client().set_tag(run.info.run_id, schema.PARENT, above.info.run_id)
                    break
