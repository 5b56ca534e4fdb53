"""What git knows: commits, the state of the working tree, and contents."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dvc_kit.commands import CommandError, bytes_of, output_of
from dvc_kit.errors import InputError
from dvc_mlflow import schema

GitError = CommandError  # git fails or is not installed, or this is not a git repository


def git(*arguments: str, given: str | None = None) -> str:
    """The output of a git command.

    Raises:
        GitError: See there.
    """
    return output_of(["git", *arguments], given=given)


def content(*arguments: str, folder: Path = Path(), given: bytes = b"") -> bytes | None:
    """The bytes that a git command gives, which takes paths as they are. None if it fails."""
    return bytes_of(["git", "--literal-pathspecs", *arguments], folder, given)


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
        head = git("rev-parse", "HEAD").strip()
        tags = {schema.COMMIT: head, schema.DIRTY: str(bool(status)).lower()}
    except GitError:
        pass  # the project was copied without its history
    names = {"DVC_EXP_NAME": schema.EXPERIMENT, "DVC_EXP_BASELINE_REV": schema.BASELINE}
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
            if error.reason:
                raise
    raise InputError(f"{rev} is not a commit of this repository{shallow()}")


def shallow() -> str:
    """That this clone lacks a part of the history, and the cure; empty if it lacks none."""
    try:
        is_shallow = git("rev-parse", "--is-shallow-repository").strip() == "true"
    except GitError:
        return ""
    return ": this clone is shallow, `git fetch --unshallow` brings its history" * is_shallow


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
