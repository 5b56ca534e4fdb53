"""``sync``: write the runs that MLflow lacks, from the results that DVC keeps."""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dvc_kit.errors import StageError
from dvc_mlflow import (
    addresses,
    claims,
    git,
    history,
    models,
    pipeline,
    projects,
    reasons,
    runs,
    schema,
    shown,
    state,
    store,
    upkeep,
)
from dvc_mlflow.content import Content
from dvc_mlflow.report import Report, name_in, name_of, some
from dvc_mlflow.result import Result, made_by
from dvc_mlflow.results import Project, changing
from dvc_mlflow.state import Known
from dvc_mlflow.store import client


@dataclass
class State:
    """One state of the dvc.lock files: of this checkout, or of a commit."""

    commit: str | None
    projects: list[Project]
    tags: Mapping[str, str]  # for runs that are written from it

    @property
    def made(self) -> dict[str, str]:
        """The md5 of each out."""
        return made_by(result for read in self.projects for result in read.locked().values())


@contextlib.contextmanager
def state_of(commit: str | None) -> Iterator[State]:
    """The projects of this checkout, or of a commit."""
    files = projects.find(commit=commit)
    with contextlib.ExitStack() as stack:
        if commit is None:
            read = [Project(folder, its) for folder, its in files.items()]
            tags = git.provenance(changing(read))
        else:
            read = [
                Project(
                    folder,
                    its,
                    stack.enter_context(history.repo_of(folder, commit)),
                    history.files_of(commit, its),
                )
                for folder, its in files.items()
            ]
            tags = {schema.COMMIT: commit, schema.DIRTY: "false", **history.experiment_of(commit)}
        yield State(commit, read, tags)


def sync(
    rev: str | None = None,
    all: bool = False,
    since: str | None = None,
    dry: bool = False,
    pull: bool = False,
    project: Path | None = None,
    address: bool = False,
) -> None:
    """Give every result in dvc.lock a finished run with its files and models, and connect the runs.

    Args:
        rev: A commit or a DVC experiment, instead of this checkout.
        all: Every commit and every DVC experiment.
        since: A date. With ``all``, older commits are left out.
        dry: Only say which runs are missing.
        pull: Fetch files that are not in the cache from the remote.
        project: The folder of the only project whose runs are written.
        address: Say at the end where the runs are shown.

    Raises:
        StageError: Something could not be read.
    """
    many = all or since is not None
    commits = history.commits(since) if many else [git.commit_of(rev) if rev else None]
    report, claimed, said = Report(), False, set[str]()
    opened = functools.cache(upkeep.open_store)  # once for all commits of a project
    if not dry:
        upkeep.settle()
    store.find_experiment()
    if not dry:
        runs.end_dead()
    with contextlib.ExitStack() as stack:
        known = Known()
        for commit in commits:
            if many and commit and _is_shown(commit, known, project):
                report.has_results = report.written = True
                continue
            with state_of(commit) as current:
                chosen = [read for read in current.projects if project in (None, read.folder)]
                report.add(chosen, known, commit if many else None)
                for read in chosen:
                    work = Work(read, current, known, report, many, pull and not dry)
                    if dry:
                        for result in work.behind:
                            if result.identity not in said:
                                print(f"would log the run of {name_of(result)}")
                            said.add(result.identity)
                    elif work.is_due():
                        if not claimed:
                            opened(read.folder)
                            # Another machine may have written them meanwhile
                            stack.enter_context(claims.held())
                            known, claimed = Known(), True
                            work = Work(read, current, known, report, many, pull)
                        work.write(opened(read.folder))
        known.settle()
    shown_project = project or projects.MAIN
    if address and (experiment_id := store.find_experiment(shown_project)):
        addresses.print_pages(experiment_id)
    report.end(
        "" if dry else f"; {'all other runs are' if report.written else 'no run is'} written"
    )


def _is_shown(commit: str, known: Known, project: Path | None) -> bool:
    """Whether the store has everything of a commit, as far as that is seen without DVC."""
    found = projects.find(commit=commit).items()
    with contextlib.suppress(StageError):
        return all(
            known.shows(history.identities(commit, files), history.files_of(commit, files))
            for folder, files in found
            if project in (None, folder)
        )
    return False


class Work:
    """What the store lacks of one project in one state.

    Args:
        many: Whether it is one of many commits, so that its problems name it.
        pull: Fetch files that are not in the cache from the remote.
    """

    def __init__(
        self,
        project: Project,
        of: State,
        known: Known,
        report: Report,
        many: bool = False,
        pull: bool = False,
    ) -> None:
        self.project, self.state, self.known, self.report = project, of, known, report
        self.commit = of.commit if many else None
        self.content = Content(project, of.made, of.commit, pull)
        self.locked = project.locked()
        self.behind = [
            result
            for result in self.locked.values()
            if not known.is_whole(result, self.content.may_have)
        ]
        report.written |= len(self.behind) < len(self.locked)

    def is_due(self) -> bool:
        """Whether anything has to be written."""
        return bool(self.behind) or pipeline.is_apart(self.project, self.locked, self.known)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Whatever is wrong with one run, the others are written."""
        try:
            yield
        except Exception as error:
            if not reasons.is_refusal(error):
                raise
            self.refused.setdefault(reasons.explain(error), []).append(name)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Report what was refused in the body, the stages of each reason in one line."""
        self.refused: dict[str, list[str]] = {}
        yield
        for reason, names in self.refused.items():
            self.report.fail(f"{some(names, f' and {len(names) - 3} more')}: {reason}", self.commit)

    def write(self, experiment_id: str) -> None:
        """Write everything that is lacking."""
        folder, logged = self.project.folder, list[str]()
        with self._refusing():
            try:
                bar = tqdm(self.behind, "logging", unit="run", leave=False, delay=2, disable=None)
                for result in bar:
                    with self._alone(name_of(result)):
                        if self._complete(experiment_id, result):
                            logged.append(name_of(result))
                        self.report.written = True
            finally:
                _print_logged(logged)
            with self._alone(name_in(folder, schema.PIPELINE)):
                # A model that was logged anew has no scores yet
                if self.behind or pipeline.is_apart(self.project, self.locked, self.known):
                    with self.content.laid(pipeline.wanted(self.project, self.locked)) as missing:
                        pipeline.connect(
                            experiment_id, self.project, self.locked, self.known, missing
                        )

    def _complete(self, experiment_id: str, result: Result) -> bool:
        """Give a result its finished run, with all files that can be had; whether it had none."""
        run = self.known.of(result)
        with self.content.laid(shown.wanted(result)) as missing:
            self.report.missing |= {path.removesuffix(shown.SOME): None for path in missing}
            run = run or self.known.deleted(result)
            if run and run.info.lifecycle_stage == "deleted":
                client().restore_run(run.info.run_id)
                tqdm.write(f"restored the deleted run of {name_of(result)}")
            if run:
                lost, noted = self.known.lost_files(run), state.missing_files(run)
                if state.is_complete(run) and not lost and missing and {*missing} == {*noted}:
                    return False  # the remote did not have them either
                runs.complete(run.info.run_id, result, missing)
                self.known.add(run.info.run_id)
                told = f", which had lost {', '.join(lost)}" if lost else ""
                tqdm.write(f"completed the run of {name_of(result)}{told}")
                return False
            for path in result.models:
                models.drop_unfinished(result.outs[path])
            tags = {**self.state.tags, schema.BACKFILLED: "true"}
            self.known.add(runs.write(experiment_id, result, tags, missing))
            return True


def _print_logged(names: list[str]) -> None:
    """Print which runs were written: one line for all items of a matrix or a foreach."""
    stages = [re.sub("@[^:]*$", "", name) for name in names]
    for stage, count in Counter(stages).items():
        if count > 1:
            print(f"logged {count} runs of {stage} from their results")
        else:
            print(f"logged the run of {names[stages.index(stage)]} from its results")
