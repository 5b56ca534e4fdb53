"""What the commits of git hold: each dvc.lock of the history."""

import contextlib
import functools
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.errors import StageError
from dvc_mlflow import identity, projects, schema
from dvc_mlflow.git import git


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


def files_of(commit: str, declarations: Iterable[Path]) -> str:
    """A hash of some dvc.yaml files of a commit and of the dvc.lock beside each."""
    names = [str(path) for file in declarations for path in (file, file.with_name(projects.LOCK))]
    listed = git("--literal-pathspecs", "ls-tree", "-r", "-z", commit, "--", *names)
    return identity.of(sorted(listed.split("\0")))


def identities(commit: str, declarations: Iterable[Path]) -> frozenset[str]:
    """The identities of all results in the dvc.lock beside each dvc.yaml of a commit.

    Raises:
        StageError: One is not there, or names no stages.
    """
    locks = [file.with_name(projects.LOCK) for file in declarations]
    texts = [git("cat-file", "blob", f"{commit}:{lock.as_posix()}") for lock in locks]
    parts = zip(texts, locks, strict=True)
    return frozenset().union(*(identity.of_lock(text, lock.parent) for text, lock in parts))


def experiment_of(commit: str) -> dict[str, str]:
    """A tag with the name of the DVC experiment that a commit is, or nothing."""
    refs = git("for-each-ref", "--points-at", commit, "--format=%(refname:lstrip=4)", "refs/exps")
    return {schema.EXPERIMENT: refs.split()[-1]} if refs.split() else {}


@dataclass(frozen=True)
class Lock:
    """One content of a dvc.lock, and the commits that have it."""

    commits: tuple[str, ...]  # the newest first
    text: str
    results: frozenset[str]  # the identities, see identity.py


def _lock(text: str, folder: Path, commits: Iterable[str] = ()) -> Lock:
    """What the text of a dvc.lock in a folder holds."""
    return Lock(tuple(commits), text, identity.of_lock(text, folder))


def locks_here() -> list[Lock]:
    """Every dvc.lock of this checkout that can be read."""
    found = []
    for path in filter(Path.is_file, projects.locks(projects.find())):
        with contextlib.suppress(OSError, StageError):
            found.append(_lock(files.read_text(path), path.parent))
    return found


def locks_beside() -> list[Lock]:
    """Every dvc.lock that lies in another worktree, or where DVC runs an experiment."""
    listed = git("worktree", "list", "--porcelain").splitlines()
    places = [Path(line.removeprefix("worktree ")) for line in listed if line[:9] == "worktree "]
    found = []
    for place in filter(Path.is_dir, places):
        inner = [place / folder / ".dvc/tmp/exps" for folder in projects.find(place)]
        copies = [exps.glob(f"{depth}/.git") for exps in inner for depth in ("*", "*/*")]
        for root in (place, *(its.parent for of in copies for its in of)):
            for path in projects.locks(projects.find(root)):
                with contextlib.suppress(OSError, StageError):
                    found.append(_lock(files.read_text(root / path), path.parent))
    return found


def _stashed() -> list[str]:
    """The commits of stashes, also of the queue of DVC. Only the last one of each is a reference,
    the others are in its reflog."""
    refs = git("for-each-ref", "--format=%(refname)", "refs/stash", "refs/exps").split()
    of_stashes = [ref for ref in refs if ref.endswith(("/stash", "/celery/failed"))]
    logs = (git("log", "--walk-reflogs", "--format=%H", ref, "--") for ref in of_stashes)
    return [commit for log in logs for commit in log.split()]


@functools.cache
def _blobs(since: str | None = None) -> dict[str, dict[Path, tuple[str, int]]]:
    """The object and the size of each dvc.lock in each commit, also of branches and DVC
    experiments, the newest first.

    Args:
        since: A date. Older commits are left out.
    """
    after = [f"--since={since}"] if since else []
    all_of_them = ["--all", *_stashed()]
    commits = git("rev-list", "--date-order", *after, *all_of_them).split()
    of_locks = ["--format=", "--name-only", "-z", *all_of_them, "--", f":(glob)**/{projects.LOCK}"]
    every = git("log", *of_locks)
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
def locks(md5s: frozenset[str] = frozenset()) -> tuple[Lock, ...]:
    """Every dvc.lock of the history, the newest first.

    Args:
        md5s: Only those that name one of these. The others are not parsed, which would take long.
    """
    by_lock: dict[tuple[Path, tuple[str, int]], list[str]] = {}
    for commit, blobs in _blobs().items():
        for key in blobs.items():
            by_lock.setdefault(key, []).append(commit)
    found = []
    for (lock, (blob, size)), holding in by_lock.items():
        if size > files.LARGEST:
            continue
        with contextlib.suppress(Exception):  # a damaged dvc.lock in the history holds nothing
            text = git("cat-file", "blob", blob)
            if not md5s or any(md5 in text for md5 in md5s):
                found.append(_lock(text, lock.parent, holding))
    return tuple(found)


def commits_with(results: frozenset[str], md5s: frozenset[str]) -> list[str]:
    """The commits that hold all results with these identities, the newest first.

    Args:
        md5s: Of outs of these results, to find them sooner.
    """
    held = held_by(md5s)
    return [commit for commit in _blobs() if results <= held.get(commit, set())]


def held_by(md5s: frozenset[str] = frozenset()) -> dict[str, set[str]]:
    """The identities of the results that each commit holds. See :func:`locks`."""
    held: dict[str, set[str]] = {}
    for lock in locks(md5s):
        for commit in lock.commits:
            held.setdefault(commit, set()).update(lock.results)
    return held


def commits_naming(md5: str) -> list[str]:
    """The commits with a file of this content among deps or outs, the newest first."""
    holding = {commit for lock in locks(frozenset({md5})) for commit in lock.commits}
    return [commit for commit in _blobs() if commit in holding]
