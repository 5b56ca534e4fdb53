"""What the commits of git hold: each dvc.lock of the history."""

import contextlib
import functools
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.errors import InputError, StageError
from dvc_mlflow import identity, projects, schema
from dvc_mlflow.git import git


def lock_of(commit: str, lock: Path) -> str:
    """The text of a dvc.lock in a commit.

    Raises:
        InputError: The commit does not have it.
        StageError: It is too large to be parsed.
    """
    name = f"{commit}:./{lock.as_posix()}"
    try:
        size = int(git("cat-file", "-s", name))
        text = git("cat-file", "blob", name) if size <= files.LARGEST else ""
    except StageError:
        raise InputError(f"commit {commit[:10]} has no {lock}") from None
    if size > files.LARGEST:
        raise StageError(f"{lock} of commit {commit[:10]} has {size:,} bytes: too large to be read")
    return text


def outs_of(commit: str, lock: Path) -> dict[str, dict[str, str]]:
    """The md5 of each out in a dvc.lock of a commit, by stage and path."""
    return _outs(commit, lock, lock_of(commit, lock))


def _outs(commit: str, lock: Path, text: str) -> dict[str, dict[str, str]]:
    """Those of the text of a dvc.lock. See :func:`outs_of`."""
    file = lock.with_name(projects.DECLARATION)

    def folders() -> dict[str, str]:
        project = projects.folder_of(file, commit=commit)
        with repo_of(project, commit) as repo:
            below = file.relative_to(project).as_posix()
            return projects.folders_in(repo, posixpath.join(repo.root_dir, below))

    return projects.outs(text, lock_of(commit, file), lock.parent, folders)


@contextlib.contextmanager
def repo_of(folder: Path, commit: str) -> Iterator[Any]:
    """DVC's object for the project in a folder, as it was in a commit."""
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo
    from dvc.repo.brancher import switch
    from dvc.scm import SCM

    if (folder / ".dvc").is_dir():
        with switch(_repo(folder), commit):
            yield _repo(folder)
    else:  # this checkout does not have the project, or has it elsewhere
        scm = SCM(".")
        fs = GitFileSystem(scm=scm, rev=commit)
        yield Repo(posixpath.join("/", folder.as_posix()), fs=fs, scm=scm)


@functools.cache
def _repo(folder: Path) -> Any:
    from dvc.repo import Repo

    return Repo(str(folder))


def experiment_of(commit: str) -> dict[str, str]:
    """A tag with the name of the DVC experiment that a commit is, or nothing."""
    refs = git("for-each-ref", "--points-at", commit, "--format=%(refname:lstrip=4)", "refs/exps")
    return {schema.EXPERIMENT: refs.split()[-1]} if refs.split() else {}


@dataclass(frozen=True)
class Holder:
    """The commits that have the same dvc.lock, or the same ones."""

    commits: tuple[str, ...]  # the newest first
    stages: dict[str, dict[str, str]]  # the md5 of each out, by stage and path
    results: frozenset[str] = frozenset()  # the identities, see identity.py

    @property
    def first(self) -> str:
        """The oldest commit, which introduced it."""
        return self.commits[-1]

    def holds(self, outs: Mapping[str, str], results: frozenset[str] = frozenset()) -> bool:
        """Whether each of these outs is in dvc.lock, and each result with one of these identities.

        The paths of outs may be unknown, so identities alone say enough.
        """
        held = {path: md5 for stage in self.stages.values() for path, md5 in stage.items()}
        return results <= self.results and outs.items() <= held.items()


@functools.cache
def _blobs(since: str | None = None) -> dict[str, dict[Path, tuple[str, int]]]:
    """The object and the size of each dvc.lock in each commit, also of branches and DVC
    experiments, the newest first.

    Args:
        since: A date. Older commits are left out.
    """
    after = [f"--since={since}"] if since else []
    commits = git("rev-list", "--all", "--date-order", *after).split()
    every = git(
        "log", "--all", "--format=", "--name-only", "-z", "--", f":(glob)**/{projects.LOCK}"
    )
    locks = [Path(name) for name in sorted({*every.split("\0")} - {""})]
    asked = [(commit, lock) for commit in commits for lock in locks]
    names = "".join(f"{commit}:{lock.as_posix()}\n" for commit, lock in asked)
    checks = "--batch-check=%(objectname) %(objecttype) %(objectsize)"
    found: dict[str, dict[Path, tuple[str, int]]] = {}
    answers = git("cat-file", checks, given=names).splitlines()
    for (commit, lock), answer in zip(asked, answers, strict=True):
        blob, _, size = answer.partition(" blob ")
        if size:
            found.setdefault(commit, {})[lock] = blob, int(size)
    return found


def commits(since: str | None = None) -> list[str]:
    """One commit, the oldest, for each state of the dvc.lock files; the oldest first."""
    first: dict[tuple[tuple[Path, tuple[str, int]], ...], str] = {}
    for commit, blobs in reversed(_blobs(since).items()):
        first.setdefault(tuple(sorted(blobs.items())), commit)
    return list(first.values())


@functools.cache
def holders(wanted: frozenset[frozenset[str]] | None = None) -> tuple[Holder, ...]:
    """Every dvc.lock of the history, the newest first.

    Args:
        wanted: Only those that name all md5s of one of these sets. The others are not parsed, which
            would take long.
    """
    by_lock: dict[tuple[Path, tuple[str, int]], list[str]] = {}
    for commit, blobs in _blobs().items():
        for key in blobs.items():
            by_lock.setdefault(key, []).append(commit)
    found = []
    for (lock, (blob, size)), holding in by_lock.items():
        if size > files.LARGEST:
            continue
        try:
            text = git("cat-file", "blob", blob)
            named = {*re.findall(r"[\w.-]+", text)}
            if wanted is not None and not any(md5s <= named for md5s in wanted):
                continue
            outs = _outs(holding[-1], lock, text)
        except Exception:  # a damaged dvc.lock in the history holds nothing
            continue
        results = identity.of_lock(text, lock.parent)
        found.append(Holder(tuple(holding), outs, results))
    return tuple(found)


def together(parts: Iterable[Holder]) -> list[Holder]:
    """The same commits, the newest first, each with what all of its dvc.lock files hold."""
    of_commit: dict[str, list[Holder]] = {}
    for part in parts:
        for commit in part.commits:
            of_commit.setdefault(commit, []).append(part)
    same: dict[tuple[int, ...], list[str]] = {}
    for commit in filter(of_commit.__contains__, _blobs()):
        same.setdefault(tuple(map(id, of_commit[commit])), []).append(commit)
    found = []
    for commits in same.values():
        held = of_commit[commits[0]]
        stages = {
            f"{at} {name}": outs
            for at, part in enumerate(held)
            for name, outs in part.stages.items()
        }
        found.append(
            Holder(tuple(commits), stages, frozenset[str]().union(*(part.results for part in held)))
        )
    return found
