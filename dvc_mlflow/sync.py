"""``sync``: write the runs that MLflow lacks, from the results that DVC keeps."""

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvc_mlflow import claims, git, history, models, pipeline, projects, reasons, runs, store
from dvc_mlflow.content import Content
from dvc_mlflow.errors import StageError
from dvc_mlflow.git import GitError
from dvc_mlflow.known import Known, is_former, search
from dvc_mlflow.results import Project, Result, changing, made_by, named, tags_of
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
    """Everything that could not be done or is not shown, of all states that were looked at."""

    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    declared: set[str] = field(default_factory=set)
    results: set[str] = field(default_factory=set)
    undeclared: set[str] = field(default_factory=set)
    states: int = 0
    written: bool = False  # any run at all

    def add(self, projects: Sequence[Project]) -> None:
        """Note what is not shown of the projects of a state."""
        self.states += 1
        for project in projects:
            self.problems += [one for one in project.problems if one not in self.problems]
            for own, names in (
                (self.declared, project),
                (self.results, project.locked()),
                (self.undeclared, project.undeclared),
            ):
                own.update(name_in(project.folder, name) for name in names)

    def end(self, last: str) -> None:
        """Print it.

        Args:
            last: The last line, if there are problems.

        Raises:
            StageError: Something could not be read, or a run lacks metrics or plots.
        """
        if undeclared := sorted(self.undeclared - self.results):
            print(
                f"entries of dvc.lock that have no run, because dvc.yaml does not declare these "
                f"stages with these outs any more: {len(undeclared)} ({_some(undeclared)})",
                file=sys.stderr,
            )
        if self.missing:
            print(
                f"{len(self.missing)} files are not here, and are only linked "
                f"({_some(self.missing)}): `dvc pull` brings those that DVC keeps, or "
                "`dvc-mlflow sync --pull`",
                file=sys.stderr,
            )
        if not self.results and not self.problems:
            print(f"note: {self.nothing()}", file=sys.stderr)
        for problem in self.problems:
            print(f"error: {problem}", file=sys.stderr)
        if self.problems:
            raise StageError(f"{len(self.problems)} problems{last}")

    def nothing(self) -> str:
        """Why there are no results, and what makes some."""
        if not self.states:
            return "nothing to show: no commit has a dvc.lock; `dvc repro` writes it, git keeps it"
        if self.declared:
            return "nothing to show: no stage has results in dvc.lock yet; `dvc repro` makes them"
        return (
            "nothing to show: no dvc.yaml declares a stage, and a run is made of the results of "
            "one; `dvc stage add` declares the command that you run"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if names[3:] else "")


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
    project: Path | None = None,
) -> bool:
    """Give every result in dvc.lock a finished run with its files and models, and connect the runs.

    Args:
        rev: A commit or a DVC experiment, instead of this checkout.
        all: Every commit and every DVC experiment.
        since: A date. With ``all``, older commits are left out.
        dry: Only say which runs are missing.
        pull: Fetch files that are not in the cache from the remote.
        project: The folder of the only project whose runs are written.

    Returns:
        Whether files that may come later would change nothing: all that runs show is there.

    Raises:
        StageError: Something could not be read.
    """
    commits: list[str | None] = [git.commit_of(rev) if rev else None]
    if all or since:
        commits = [*history.commits(since)]
    report, claimed, lasting, told = Report(), False, True, set[str]()
    if not dry:
        store.settle()
    store.find_experiment()
    store.note_move()
    if not dry:
        _end_dead_runs()
    with contextlib.ExitStack() as stack:
        known = Known()
        for commit in commits:
            with state_of(commit) as state:
                chosen = [one for one in state.projects if project in (None, one.folder)]
                report.add(chosen)
                for one in chosen:
                    content = Content(one, state.made, commit, pull)
                    locked = one.locked()
                    behind, old = _behind(locked, known, content), _former(locked, known)
                    report.written |= len(behind) < len(locked)
                    lasting = lasting and not content.was_missing
                    if dry:
                        for result in behind:
                            if result.identity not in told:
                                print(f"would log the run of {name_of(result)}")
                        if marked := {run.info.run_id for _, run in old} - told:
                            print(f"would mark {len(marked)} runs of an earlier version")
                        told |= {*marked, *(result.identity for result in behind)}
                    elif behind or old or pipeline.is_apart(one, locked, known):
                        if not claimed:
                            store.open_store(one.folder)
                            # Another machine may have written them meanwhile
                            stack.enter_context(claims.held())
                            known, claimed = Known(), True
                        _write(one, state, known, content, report)
    report.end(
        "" if dry else f"; {'all other runs are' if report.written else 'no run is'} written"
    )
    return lasting


def status() -> None:
    """Print how many results in dvc.lock have a run, and the runs whose results no commit holds.

    Raises:
        StageError: Some have not.
    """
    store.find_experiment()
    store.note_move()
    missing, known, report = [], Known(), Report()
    with state_of(None) as state:
        report.add(state.projects)
        for project in state.projects:
            locked = project.locked()
            behind = _behind(locked, known, Content(project, state.made))
            missing += behind
            place = "" if project.folder == projects.MAIN else f"{project.folder}: "
            print(f"{place}{len(locked) - len(behind)} of {len(locked)} results have their run")
        _print_uncommitted(known, state)
    unwritten = ""
    if missing:
        names = ", ".join(name_of(result) for result in missing[:5])
        more = f" and {len(missing) - 5} more" if missing[5:] else ""
        unwritten = (
            f"no complete run for {names}{more} in {store.name()}: `dvc-mlflow sync` writes them, "
            "or says why it cannot"
        )
    report.end(f"; {unwritten}" if unwritten else "")
    if unwritten:
        raise StageError(unwritten)


def _print_uncommitted(known: Known, state: State) -> None:
    """Print the runs with results that neither a commit nor this checkout holds."""
    held = {*tags_of(state.made).items()}
    held |= {("result", one.identity) for read in state.projects for one in read.locked().values()}
    apart = {run: links for run in known.all() if not (links := _links(run)) <= held}
    wanted = frozenset(frozenset(md5 for _, md5 in _outs(run)) for run in apart)
    with contextlib.suppress(GitError):  # there is no history
        for holder in history.holders(wanted) if wanted else ():
            held |= {("result", one) for one in holder.results}
            for outs in holder.stages.values():
                held |= tags_of(outs).items()
    for run, links in apart.items():
        if not links <= held:
            stage = run.data.tags["stage"]
            print(f"no commit holds the results of run {run.info.run_id} ({stage})")


def _links(run: Any) -> set[tuple[str, str]]:
    """The tags of a run with outs that a commit must hold: its result, or else its outs."""
    outs, result = _outs(run), run.data.tags.get("result")
    return {("result", result)} if outs and result else outs


def _outs(run: Any) -> set[tuple[str, str]]:
    return {link for link in run.data.tags.items() if link[0].startswith("out:")}


def name_of(result: Result) -> str:
    return name_in(result.project, result.stage)


def name_in(project: Path, stage: str) -> str:
    return stage if project == projects.MAIN else f"{project}: {stage}"


def _behind(locked: Mapping[str, Result], known: Known, content: Content) -> list[Result]:
    """The results that have no finished run, or one that lacks files which could be there."""
    return [one for one in locked.values() if not _is_complete(one, known, content)]


def _former(locked: Mapping[str, Result], known: Known) -> list[tuple[Result, Any]]:
    """The results whose runs are of an earlier version and do not tell which result they show."""
    found = ((result, known.finished(result)) for result in locked.values())
    return [(result, run) for result, run in found if run and is_former(run)]


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
                report.written = True
    finally:
        _print_logged(logged)
    if old := _former(locked, known):
        for result, run in old:
            params = {k: v for k, v in result.params.items() if named(k) not in run.data.params}
            runs.log(run.info.run_id, params=params, tags=result.tags)
            known.add(run.info.run_id)
        print(f"marked {len(old)} runs of an earlier version with the results that they show")
    _print_elsewhere(project, [known.finished(result) for result in behind], experiment_id)
    with alone(pipeline.NAME if project.folder == projects.MAIN else f"{project.folder}: pipeline"):
        if pipeline.is_apart(project, locked, known):
            with content.laid(pipeline.wanted(project, locked)) as missing:
                pipeline.connect(experiment_id, project, locked, known, missing)
    for reason, names in refused.items():
        others = f" and {len(names) - 3} more" if names[3:] else ""
        report.problems.append(f"{', '.join(names[:3])}{others}: {reason}")


def _print_elsewhere(project: Project, written: Sequence[Any], experiment_id: str) -> None:
    """Print which runs of the stages' own code are in another experiment, and what to do."""
    apart: dict[str, list[str]] = {}
    for run in written:
        if run is not None and run.info.experiment_id != experiment_id:
            apart.setdefault(run.info.experiment_id, []).append(run.data.tags["stage"])
    ours = store.experiment(project.folder).name
    for other, stages in apart.items():
        print(
            f"the code of {', '.join(stages[:3])}{' and others' if stages[3:] else ''} logs to the "
            f"experiment {client().get_experiment(other).name}, and sync to {ours}: "
            f"`MLFLOW_EXPERIMENT_NAME={shlex.quote(ours)} dvc repro` lets it log there as well"
        )


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
            run = known.deleted(result)
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
