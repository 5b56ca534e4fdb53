"""Where the DVC projects of a repository are, and which dvc.yaml files they have.

All commands run in the root of the git repository, and all paths start there. Without git, the root
is the highest folder of a DVC project.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.errors import InputError, StageError
from dvc_mlflow.git import GitError, git

MAIN = Path()
DECLARATION, LOCK, CONFIG = "dvc.yaml", "dvc.lock", ".dvc/config"
SHELLS = ("sh", "dash", "bash", "zsh", "fish", "ksh")  # `dvc` starts a stage through one

Projects = dict[Path, list[Path]]  # the dvc.yaml files of each project, by its folder


def root(start: Path) -> Path | None:
    """The root of the repository that a folder is in, if it has a DVC project."""
    highest = None
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            highest = folder
        if (folder / ".git").exists():
            return folder if highest or find(folder) else None
    return highest


def find(root: Path = MAIN, commit: str | None = None) -> Projects:
    """The projects of a checkout or of a commit, the higher ones first."""
    names = sorted(_names(root, commit), key=lambda name: (name.count("/"), name))
    found: Projects = {Path(name).parents[1]: [] for name in names if name.endswith(CONFIG)}
    for path in (Path(name) for name in names if name.endswith(DECLARATION)):
        holding = [folder for folder in found if folder in path.parents]
        if holding:
            found[holding[-1]].append(path)  # the innermost one
    return found


def _names(root: Path, commit: str | None) -> Iterator[str]:
    """The paths of all dvc.yaml files and of the configurations of projects."""
    wanted = [f":(glob)**/{DECLARATION}", f":(glob)**/{CONFIG}"]
    if commit:
        listed = git("ls-tree", "-r", "--name-only", "-z", commit).split("\0")
        yield from (
            name for name in listed if f"/{name}".endswith((f"/{DECLARATION}", f"/{CONFIG}"))
        )
        return
    try:
        ours = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *wanted]
        listed = git("-C", str(root), *ours).split("\0")
    except GitError:  # no git, or no repository: only the folders here and below
        places = [path for path in (root, *root.iterdir()) if (path / ".dvc").is_dir()]
        paths = [file for place in places for file in (place / CONFIG, place / DECLARATION)]
        listed = [path.relative_to(root).as_posix() for path in paths]
    yield from (name for name in dict.fromkeys(listed) if name and (root / name).is_file())


def named(folder: str, start: Path) -> Path:
    """The project in a folder that a user named.

    Args:
        start: The folder that a relative path starts in.

    Raises:
        InputError: There is no project.
    """
    found = find()
    for project in found:
        if project.resolve() == (start / folder).resolve():
            return project
    names = ", ".join(project.as_posix() for project in found)
    raise InputError(f"{folder} is not the folder of a DVC project; here are {names}")


def scratch(root: Path = MAIN) -> Path:
    """A folder that git and DVC ignore, in the highest project."""
    return root / next(iter(find(root)), MAIN) / ".dvc" / "tmp"


def locks(projects: Projects) -> list[Path]:
    """The dvc.lock beside each dvc.yaml."""
    return [path.with_name(LOCK) for paths in projects.values() for path in paths]


@functools.lru_cache(50)  # one file is read several times, and parsing it takes 50 ms
def stages_in(text: str) -> dict[str, Any]:
    """The stages in the text of a dvc.yaml or dvc.lock. DVC 1 had locks that held nothing else."""
    found = files.parse_yaml(text, "dvc.yaml or dvc.lock")
    if isinstance(found, dict) and ("schema" in found or "stages" in found):
        found = found.get("stages")
    if not isinstance(found, dict):
        raise StageError("dvc.yaml or dvc.lock names no stages: `git checkout` it")
    return found


# --- what DVC runs ---


def dvc_process() -> Any:
    """The process of the `dvc` that started this one through a shell, or None."""
    import psutil  # `dvc` needs it too

    parents = psutil.Process().parents()
    return next((parent for parent in parents if parent.name() not in SHELLS), None)


def address() -> str:
    """The full name of the stage that `dvc` runs, such as `train` or `folder/dvc.yaml:train`.

    DVC_STAGE has the path as it is from the folder where `dvc` was started.
    """
    file, _, name = os.environ["DVC_STAGE"].rpartition(f"{DECLARATION}:")
    top = Path(os.environ["DVC_ROOT"]).resolve()
    started = [top]
    with contextlib.suppress(Exception):  # another user's process
        started.insert(0, Path(dvc_process().cwd()))
    for folder in ((place / file).resolve() for place in started):
        above = (place for place in (folder, *folder.parents) if (place / ".dvc").is_dir())
        project = next(above, Path())
        is_copy = project.is_relative_to(top / ".dvc")  # by `dvc exp run --temp`
        if (project == top or is_copy) and (folder / DECLARATION).is_file():
            below = (folder / DECLARATION).relative_to(project).as_posix()
            return name if folder == project else f"{below}:{name}"
    return name
