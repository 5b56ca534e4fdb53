"""What git knows: commits, the dvc.lock of each commit, and the state of the working tree."""

import os
import re
import subprocess
from collections.abc import Sequence

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


def provenance(results: Sequence[str]) -> dict[str, str]:
    """Tags for the code that is running: the commit, whether files differ from it, and DVC's
    experiment.

    Args:
        results: Paths that do not count as different files, because a pipeline changes them: the
            outs and the dvc.lock files of all projects.
    """
    tags = {}
    try:
        excluded = [f":(exclude){path}" for path in results]
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
