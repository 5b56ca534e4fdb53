"""What git knows: commits, the dvc.lock of each commit, and the state of the working tree."""

import functools
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc_mlflow import projects
from dvc_mlflow.errors import InputError, StageError


class GitError(StageError):
    """git fails. The message is its reason, or empty if git was asked to be quiet."""


def git(*arguments: str, given: str | None = None) -> str:
    """The output of a git command.

    Raises:
        GitError: git fails or is not installed, or this is not a git repository.
    """
    try:
        result = subprocess.run(
            ["git", *arguments], input=given, capture_output=True, text=True, encoding="utf-8"
        )
    except FileNotFoundError:
        raise GitError("there is no git in PATH: install it") from None
    except OSError as error:
        raise GitError(f"git: {error.strerror}") from None
    if result.returncode:
        reason = " ".join(result.stderr.split())
        raise GitError(reason and f"git {arguments[0]}: {reason}")
    return result.stdout


def provenance(outs: Sequence[str]) -> dict[str, str]:
    """Tags for the code that is running: the commit, whether files differ from it, and DVC's
    experiment.

    Args:
        outs: The paths of the results of a project. They and those of all others do not count as
            different files, because a pipeline is about to change them.
    """
    tags = {}
    try:
        others = [
            path
            for lock in filter(Path.is_file, projects.locks())
            for stage in projects.outs_here(lock.parent).values()
            for path in stage
        ]
        excluded = [f":(exclude){path}" for path in (*projects.locks(), *outs, *others)]
        status = git("status", "--porcelain", "--", ".", *excluded)
        tags = {"commit": git("rev-parse", "HEAD").strip(), "dirty": str(bool(status)).lower()}
    except StageError:
        pass  # the project was copied without its history
    names = {"DVC_EXP_NAME": "dvc_experiment", "DVC_EXP_BASELINE_REV": "dvc_experiment_baseline"}
    return tags | {tag: os.environ[name] for name, tag in names.items() if os.environ.get(name)}


def commit_of(rev: str) -> str:
    """The full hash of a commit, from any of git's names for it, or from a DVC experiment.

    Raises:
        InputError: There is no such commit.
        GitError: git fails.
    """
    for name in (rev, *_experiments(rev)):
        try:
            return git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
            ).strip()
        except GitError as error:
            if str(error):
                raise
    raise InputError(f"{rev} is not a commit of this repository")


def _experiments(name: str) -> list[str]:
    """The references of the DVC experiments with this name. The one on the checked out commit is
    the first."""
    if not re.fullmatch(r"[\w.-]+", name):
        return []
    refs = git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").split()
    try:
        head = git("rev-parse", "--verify", "--quiet", "HEAD").strip()
    except GitError:  # there is no commit yet
        head = ""
    return sorted(refs, key=lambda ref: ref.replace("/", "").find(head) < 0)


def described(commit: str) -> str:
    """A commit in one line: its short hash, its date, and its subject."""
    return git("log", "-1", "--format=%h %cs %s", commit).strip()


def lock_of(commit: str, lock: Path) -> str:
    """The text of a dvc.lock in a commit.

    Raises:
        InputError: The commit does not have it.
    """
    try:
        return git("show", f"{commit}:./{lock.as_posix()}")
    except StageError:
        raise InputError(f"commit {commit[:10]} has no {lock}") from None


def outs_of(commit: str, lock: Path) -> dict[str, dict[str, str]]:
    """The md5 of each out in a dvc.lock of a commit, by stage and path."""
    declared = lock_of(commit, lock.with_name("dvc.yaml"))
    return projects.outs(lock_of(commit, lock), declared, lock.parent)


@dataclass(frozen=True)
class Holder:
    """The commits that have the same dvc.lock."""

    first: str  # the oldest commit, which introduced it
    others: int
    stages: dict[str, dict[str, str]]  # the md5 of each out, by stage and path

    def holds(self, outs: Mapping[str, str]) -> bool:
        """Whether each of these outs is in dvc.lock."""
        held = {path: md5 for stage in self.stages.values() for path, md5 in stage.items()}
        return all(held.get(path) == md5 for path, md5 in outs.items())


@functools.cache
def holders() -> tuple[Holder, ...]:
    """Every dvc.lock of the history, also of branches and DVC experiments, the newest first."""
    commits = git("rev-list", "--all", "--date-order").split()
    asked = [(commit, lock) for commit in commits for lock in projects.locks()]
    names = "".join(f"{commit}:./{lock.as_posix()}\n" for commit, lock in asked)
    answers = git("cat-file", "--batch-check=%(objectname) %(objecttype)", given=names)
    by_lock: dict[tuple[str, Path], list[str]] = {}
    for (commit, lock), answer in zip(asked, answers.splitlines(), strict=True):
        if answer.endswith(" blob"):
            by_lock.setdefault((answer.split()[0], lock), []).append(commit)
    found = []
    for (_, lock), holding in by_lock.items():
        try:
            outs = outs_of(holding[-1], lock)
        except Exception:  # a damaged dvc.lock in the history holds nothing
            continue
        found.append(Holder(holding[-1], len(holding) - 1, outs))
    return tuple(found)
