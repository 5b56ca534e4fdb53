"""``damage``: results whose bytes are not those of dvc.lock, although DVC does not notice it.

DVC does not hash an out again if its size and time have not changed. The name of an object in its
cache, or in a remote, is the md5 of its content. DVC trusts that name, so it checks out and pushes
a damaged object like any other.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.commands import as_path, shown, visible
from dvc_kit.errors import StageError, one_line
from dvc_kit.files import md5
from dvc_mlflow import git, projects
from dvc_mlflow.results import Project

REMOVE = ["dvc-guard", "damage", "--remove"]

Outs = dict[tuple[str, str], str]  # the md5 of each out, by stage and path


@dataclass(frozen=True)
class Damage:
    """A file that differs from dvc.lock, or an object that differs from its name."""

    stage: str
    out: str
    path: str
    cure: str
    store: Any = None  # DVC's cache or remote, or None for a file in this folder

    @property
    def place(self) -> str:
        """The path, with its server if it has one."""
        if self.store is None or self.store.fs.protocol == "local":
            return self.path
        return str(self.store.fs.unstrip_protocol(self.path))

    def __str__(self) -> str:
        place, out = visible(self.place), visible(self.out)
        return f"{place} is damaged ({out} of stage {self.stage}): `{self.cure}`"


def locked(folder: Path = projects.MAIN, project: Path = projects.MAIN) -> Outs:
    """Every out in the dvc.lock of a project. The paths start in the main folder.

    Args:
        folder: The main folder of the checkout.

    Raises:
        StageError: There is no dvc.lock, or it or a dvc.yaml cannot be read.
    """
    lock = project / projects.LOCK
    with chdir(folder), repo_of(project) as repo:
        declared = projects.find()[project]
        read = Project(project, declared, repo)
        results = read.locked().values()
        is_lost = lock.with_name(projects.DECLARATION) in declared and not lock.is_file()
    for problem in read.problems or ["it is lost"] * is_lost:
        cure = shown(["git", "checkout", as_path(str(lock))])
        raise StageError(f"{lock} cannot be read ({problem}): `{cure}`")
    return {
        (result.stage, path): md5
        for result in results
        for path, md5 in result.outs.items()
        if "://" not in path
    }


def projects_that_ran() -> list[Path]:
    """The projects here of which a dvc.yaml has a dvc.lock, in this folder or in git."""

    def has_run(pipelines: Sequence[Path]) -> bool:
        locks = [str(file.with_name(projects.LOCK)) for file in pipelines]
        return any(map(os.path.exists, locks)) or bool(git.content("ls-files", "--", *locks))

    return [folder for folder, pipelines in projects.find().items() if has_run(pipelines)]


def in_folder(outs: Outs, project: Path = projects.MAIN) -> list[Damage]:
    """The outs in this folder that differ from dvc.lock. A missing one is not damaged."""
    return [
        Damage(stage, out, out, cure(stage, out, wanted, project))
        for (stage, out), wanted in outs.items()
        if Path(out).exists() and md5(Path(out)) != wanted
    ]


def in_stores(outs: Outs, project: Path = projects.MAIN) -> list[Damage]:
    """The damaged objects of these outs in the cache and in the default remote of a project."""
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException

    found = []
    with repo_of(project) as repo:
        for (stage, out), wanted in outs.items():
            again = shown(REMOVE, ["dvc", "repro", as_path(stage)], folder=project)
            for name in _damaged(repo.cache.local, wanted):
                found.append(Damage(stage, out, name, again, repo.cache.local))
        try:
            remote = repo.cloud.get_remote_odb()
            for (stage, out), wanted in outs.items():
                again = shown(REMOVE, ["dvc", "push", _below(out, project)], folder=project)
                for name in _damaged(remote, wanted):
                    found.append(Damage(stage, out, name, again, remote))
        except NoRemoteError:
            pass
        except (DvcException, ImportError, OSError) as error:
            print(f"warning: the remote is not looked at ({one_line(error)})", file=sys.stderr)
    return found


def repo_of(project: Path) -> Any:
    """DVC's object for a project. git is not needed."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        return Repo(str(project), config={"core": {"no_scm": True}})
    except DvcException as error:
        raise StageError(f"DVC: {one_line(error)}") from None


def _below(out: str, project: Path) -> str:
    """The path of an out from the folder of its project."""
    return as_path(Path(os.path.relpath(out, project)).as_posix())


def cure(stage: str, out: str, wanted: str, project: Path = projects.MAIN) -> str:
    """The command that brings an out with the md5 ``wanted`` back: from git, from the cache of
    DVC, or by its stage."""
    staged = git.content("cat-file", "--filters", f":0:./{out}")  # None for a folder
    is_kept = staged is None or hashlib.md5(staged).hexdigest() == wanted
    if is_kept and git.content("ls-files", "--", out):
        literal = [] if re.fullmatch(r"[^:*?\[\\]+", out) else ["--literal-pathspecs"]
        return shown(["git", *literal, "checkout", "--", out])
    below = _below(out, project)
    with repo_of(project) as repo:
        is_cached = repo.cache.local.exists(wanted)
    # In a target, DVC takes a backslash for a slash, and a colon for the end of a file's name
    target = below if is_cached and not re.search(r"[:\\]", below) else as_path(stage)
    again = ["dvc", "checkout" if is_cached else "repro", target]
    return shown(["rm", "-r", below], again, folder=project)


def _damaged(store: Any, name: str) -> Iterator[str]:
    """The paths in ``store`` of the damaged objects of an out."""
    from dvc_data.hashfile.hash import file_md5

    at = store.oid_to_path(name)
    if not store.fs.exists(at):
        return
    if file_md5(at, store.fs) != name.removesuffix(".dir"):
        yield at
    elif name.endswith(".dir"):
        for entry in files.parse_json(store.fs.cat_file(at), name):
            yield from _damaged(store, entry["md5"])


def damage(remove: bool = False) -> None:
    """Look for damage in the cache, the remote and this folder.

    Args:
        remove: Only remove the damaged objects from the cache and the remote.

    Raises:
        StageError: Something is damaged. One line for each file or object.
    """
    found = []
    for folder in projects_that_ran():
        outs = locked(project=folder)
        found += in_stores(outs, folder) + ([] if remove else in_folder(outs, folder))
    if remove:
        for stored in {stored.place: stored for stored in found}.values():
            stored.store.fs.rm_file(stored.path)
            print(f"{stored.place} is removed")
    elif found:
        raise StageError("\nerror: ".join(dict.fromkeys(map(str, found))))
