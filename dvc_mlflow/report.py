"""What a command says at its end: what could not be done, and what MLflow does not show."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dvc_kit.errors import StageError
from dvc_mlflow import projects
from dvc_mlflow.result import Result
from dvc_mlflow.results import Project
from dvc_mlflow.state import Known


@dataclass
class Report:
    """Everything that could not be done or is not shown, of all states that were looked at."""

    problems: dict[str, list[str]] = field(default_factory=dict)  # with the commits that have it
    missing: dict[str, None] = field(default_factory=dict)  # the paths of files
    undeclared: dict[str, None] = field(default_factory=dict)  # what is in dvc.lock alone
    has_results: bool = False
    written: bool = False  # any run at all

    def add(self, read: Sequence[Project], known: Known, commit: str | None = None) -> None:
        """Note what is not shown of the projects of a state.

        Args:
            known: What an older commit declares may have a run already.
            commit: To be named, where several are looked at.
        """
        for project in read:
            for problem in project.problems:
                self.fail(problem, commit)
            self.has_results |= bool(project.locked())
            for what, tag in project.undeclared.items():
                if not known.having(tag):
                    self.undeclared[name_in(project.folder, what)] = None

    def fail(self, problem: str, commit: str | None = None) -> None:
        """Note a problem, once for all commits that have it."""
        self.problems.setdefault(problem, []).extend([commit] if commit else [])

    def end(self, last: str) -> None:
        """Print it.

        Args:
            last: The last line, if there are problems.

        Raises:
            StageError: Something could not be read, or a run lacks metrics or plots.
        """
        if self.missing:
            print(
                f"{len(self.missing)} files are not here, and are only linked "
                f"({some([*self.missing])}): `dvc pull` brings those that DVC keeps, or "
                "`dvc-mlflow sync --pull`",
                file=sys.stderr,
            )
        if self.undeclared:
            names = [*self.undeclared]
            print(
                "note: dvc.lock has results that dvc.yaml does not declare any more, and no run "
                f"shows them ({some(names, f' and {len(names) - 3} more')}): `dvc-mlflow sync "
                "--all` writes those that an older commit declares",
                file=sys.stderr,
            )
        if not self.has_results and not self.problems:
            print(
                "note: nothing to show: no stage of a dvc.yaml has results in dvc.lock; `dvc stage "
                "add` declares a stage, and `dvc repro` makes its results",
                file=sys.stderr,
            )
        for problem, commits in self.problems.items():
            more = f" and {len(commits) - 1} more" if commits[1:] else ""
            of = f"commit {commits[0][:10]}{more}: " if commits else ""
            print(f"error: {of}{problem}", file=sys.stderr)
        if self.problems:
            raise StageError(f"{len(self.problems)} problems{last}")


def some(names: Sequence[str], rest: str = " and others") -> str:
    """The first names of a list, and that there are others."""
    return ", ".join(names[:3]) + (rest if names[3:] else "")


def name_of(result: Result) -> str:
    return name_in(result.project, result.stage)


def name_in(project: Path, stage: str) -> str:
    return stage if project == projects.MAIN else f"{project}: {stage}"
