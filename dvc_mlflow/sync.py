"""``sync``: write the runs that MLflow lacks, from the results that DVC keeps."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from dvc_mlflow import claims, git, history, models, pipeline, projects, reasons, runs, store
from dvc_mlflow.content import Content
from dvc_mlflow.errors import StageError
from dvc_mlflow.git import GitError
from dvc_mlflow.known import Known, search
from dvc_mlflow.results import Project, Result, changing, made_by, tags_of
from dvc_mlflow.store import client


@dataclass
class State:
    """One state of the dvc.lock files: of this checkout, or of a commit."""

    commit: str | None
    projects: list[Project]
    tags: Mapping[str, str]  # for runs that are written from it
    made: dict[str, str] = field(init=False)  # the md5 of each out

    def __post_init__(self) -> None:
        self.made = made_by(one for project in self.projects for one in project.locked().values())


@dataclass
class Report:
    """Everything that could not be done."""

    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def end(self) -> None:
        """Print it.

        Raises:
            StageError: Something could not be read, or a run lacks metrics or plots.
        """
        if self.missing:
            names = ", ".join(self.missing[:3]) + (" and others" if self.missing[3:] else "")
            print(
                f"{len(self.missing)} files are not here, and are only linked ({names}): "
                f"`dvc pull` brings those that DVC keeps, or `dvc-mlflow sync --pull`",
                file=sys.stderr,
            )
        for problem in self.problems:
            print(f"error: {problem}", file=sys.stderr)
        if self.problems:
            raise StageError(f"{len(self.problems)} problems; all other runs are written")


@contextlib.contextmanager
def state_of(commit: str | None) -> Iterator[State]:
    """The projects of this checkout, or of a commit."""
    found = projects.find(commit=commit)
    with contextlib.ExitStack() as stack:
        if commit is None:
            read = [Project(folder, files) for folder, files in found.items()]
            tags = git.provenance(changing(read))
        else:
            read = [
                Project(folder, files, stack.enter_context(history.repo_of(folder, commit)))
                for folder, files in found.items()
            ]
            tags = {"commit": commit, "dirty": "false", **history.experiment_of(commit)}
        yield State(commit, read, tags)


def sync(
    rev: str | None = None,
    all: bool = False,
    since: str | None = None,
    dry: bool = False,
    pull: bool = False,
) -> None:
    """Give every result in dvc.lock a finished run with its files and models, and connect the runs.

    Args:
        rev: A commit or a DVC experiment, instead of this checkout.
        all: Every commit and every DVC experiment.
        since: A date. With ``all``, older commits are left out.
        dry: Only say which runs are missing.
        pull: Fetch files that are not in the cache from the remote.

    Raises:
        StageError: Something could not be read.
    """
    commits: list[str | None] = [git.commit_of(rev) if rev else None]
    if all or since:
        commits = [*history.commits(since)]
    report, claimed = Report(), False
    store.find_experiment()
    if not dry:
        _end_dead_runs()
    with contextlib.ExitStack() as stack:
        known = Known()
        for commit in commits:
            with state_of(commit) as state:
                for project in state.projects:
                    report.problems += project.problems
                    content = Content(project, state.made, commit, pull)
                    locked = project.locked()
                    behind = _behind(locked, known, content)
                    if dry:
                        for result in behind:
                            print(f"would log the run of {name_of(result)}")
                    elif behind or pipeline.is_apart(locked, known):
                        if not claimed:
                            store.open_store(project.folder)
                            # Another machine may have written them meanwhile
                            stack.enter_context(claims.held())
                            known, claimed = Known(), True
                        _write(project, state, known, content, report)
    report.end()


def status() -> None:
    """Print how many results in dvc.lock have a run, and the runs whose results no commit holds.

    Raises:
        StageError: Some have not.
    """
    store.find_experiment()
    missing, known = [], Known()
    with state_of(None) as state:
        for project in state.projects:
            locked = project.locked()
            behind = _behind(locked, known, Content(project, state.made))
            missing += behind
            place = "" if project.folder == projects.MAIN else f"{project.folder}: "
            print(f"{place}{len(locked) - len(behind)} of {len(locked)} results have their run")
        _print_uncommitted(known, state)
    if missing:
        names = ", ".join(name_of(result) for result in missing[:5])
        more = f" and {len(missing) - 5} more" if missing[5:] else ""
        raise StageError(
            f"no run for {names}{more} in {store.name()}: `dvc-mlflow sync` writes them"
        )


def _print_uncommitted(known: Known, state: State) -> None:
    """Print the runs with results that neither a commit nor this checkout holds."""
    held = {*tags_of(state.made).items()}
    links_of = {
        run: {link for link in run.data.tags.items() if link[0].startswith("out:")}
        for run in known.all()
    }
    others = frozenset(md5 for links in links_of.values() for _, md5 in links - held)
    with contextlib.suppress(GitError):  # there is no history
        for holder in history.holders(others) if others else ():
            for outs in holder.stages.values():
                held |= tags_of(outs).items()
    for run, links in links_of.items():
        if not links <= held:
            stage = run.data.tags["stage"]
            print(f"no commit holds the results of run {run.info.run_id} ({stage})")


def name_of(result: Result) -> str:
    return result.stage if result.project == projects.MAIN else f"{result.project}: {result.stage}"


def _behind(locked: Mapping[str, Result], known: Known, content: Content) -> list[Result]:
    """The results that have no finished run, or one that lacks files which could be there."""
    return [one for one in locked.values() if not _is_complete(one, known, content)]


def _is_complete(result: Result, known: Known, content: Content) -> bool:
    run = known.of(result)
    if run is None or not runs.is_complete(run) or known.lost_files(run):
        return False
    missing = json.loads(run.data.tags.get("missing", "[]"))
    if any(content.may_have(path) for path in missing):
        return False
    return not any(
        models.is_lost(result.outs[path]) for path in runs.models_of(result) if path not in missing
    )


def _write(project: Project, state: State, known: Known, content: Content, report: Report) -> None:
    """Write everything that a project lacks."""
    locked = project.locked()
    experiment_id = store.open_store(project.folder)
    behind, logged = _behind(locked, known, content), list[str]()
    refused: dict[str, list[str]] = {}  # the stages of each reason

    @contextlib.contextmanager
    def alone(name: str) -> Iterator[None]:
        """Whatever is wrong with one run, the others are written."""
        try:
            yield
        except Exception as error:
            if not reasons.is_refusal(error):
                raise
            refused.setdefault(reasons.explain(error), []).append(name)

    try:
        for result in tqdm(behind, "logging", unit="run", leave=False, delay=2, disable=None):
            with alone(name_of(result)):
                if _complete(experiment_id, result, state, known, content, report):
                    logged.append(name_of(result))
    finally:
        _print_logged(logged)
    with alone(pipeline.NAME if project.folder == projects.MAIN else f"{project.folder}: pipeline"):
        if pipeline.is_apart(locked, known):
            with content.laid(pipeline.wanted(project, locked)) as missing:
                pipeline.connect(experiment_id, project, locked, known, missing)
    for reason, names in refused.items():
        others = f" and {len(names) - 3} more" if names[3:] else ""
        report.problems.append(f"{', '.join(names[:3])}{others}: {reason}")


def _print_logged(names: Sequence[str]) -> None:
    """Print which runs were written: one line for all items of a matrix or a foreach."""
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(re.sub("@[^:]*$", "", name), []).append(name)
    for stage, items in stages.items():
        if items[1:]:
            print(f"logged {len(items)} runs of {stage} from their results")
        else:
            print(f"logged the run of {items[0]} from its results")


def _complete(
    experiment_id: str,
    result: Result,
    state: State,
    known: Known,
    content: Content,
    report: Report,
) -> bool:
    """Give a result its finished run, with all files that can be had; whether it had none."""
    run = known.of(result)
    with content.laid(runs.wanted(result)) as missing:
        report.missing += [
            path
            for path in (path.removesuffix(runs.SOME) for path in missing)
            if path not in report.missing
        ]
        if run is None:
            run = known.deleted(result.tags)
        if run and run.info.lifecycle_stage == "deleted":
            client().restore_run(run.info.run_id)
            tqdm.write(f"restored the deleted run of {name_of(result)}")
        if run is not None:
            lost = known.lost_files(run)
            noted = json.loads(run.data.tags.get("missing", "[]"))
            if runs.is_complete(run) and not lost and missing and {*missing} == {*noted}:
                return False  # the remote did not have them either
            runs.complete(run.info.run_id, result, missing)
            known.add(run.info.run_id)
            tqdm.write(
                f"completed the run of {name_of(result)}"
                + (f", which had lost {', '.join(lost)}" if lost else "")
            )
            return False
        for path in result.models:
            models.drop_unfinished(result.outs[path])
        tags = {**state.tags, "backfilled": "true"}
        known.add(runs.write(experiment_id, result, tags, missing))
        return True


def _end_dead_runs() -> None:
    """End the runs that are RUNNING although the process that wrote them has ended.

    Only runs of this machine are ended. Runs that `sync` began are deleted, because it writes them
    again.
    """
    for run in search("attributes.status = 'RUNNING'"):
        tags, run_id = run.data.tags, run.info.run_id
        if not runs.is_over(tags.get("process", "")):
            continue
        client().set_tag(run_id, "reason", "its process ended before the run did")
        client().set_terminated(run_id, "KILLED")
        if "backfilled" in tags or tags.get("stage") == pipeline.NAME:
            client().delete_run(run_id)
        print(f"ended the run of {tags.get('stage')} whose process is gone")
