"""``mend``: repair everything that keeps `dvc` from starting.

In a copy without history, such as a ZIP file, DVC is told to work without git. DVC writes its lock
files in place, so if it is killed meanwhile, a lock file may be torn. Then no `dvc` command starts
any more. Such a file is replaced by its last copy, which alone.py keeps.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dvc_guard import alone
from dvc_kit.commands import shown
from dvc_kit.errors import StageError, one_line
from dvc_kit.files import write_text, writing
from dvc_mlflow import git, projects
from dvc_mlflow.hooks import hook

RWLOCK = Path(".dvc", "tmp", "rwlock")
HASHES = ("md5", "checksum", "etag", "files")  # one of them is in each entry of a dvc.lock


def check_writable(project: Path) -> None:
    """Check that a project can be written. DVC would report an unexpected error.

    Raises:
        StageError: It cannot.
    """
    folder = project / RWLOCK.parent
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def is_in_git() -> bool:
    """Whether this folder, or one above it, is a git repository. Works without git."""
    here = Path.cwd()
    return any((folder / ".git").exists() for folder in (here, *here.parents))


def do_without_git() -> None:
    """Let DVC work in a folder that is not in a git repository.

    Raises:
        StageError: DVC's settings cannot be read or written.
    """
    if is_in_git():
        return
    dvc = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm"]
    if subprocess.run(dvc, capture_output=True, text=True).stdout.strip() == "true":
        return
    told = subprocess.run([*dvc, "true"], capture_output=True, text=True)
    if told.returncode:
        raise StageError(f"this is no git repository, and DVC fails: {one_line(told.stderr)}")
    print(
        "this is no git repository: DVC does without (core.no_scm in .dvc/config.local). After a "
        "`git init`: `dvc config --local --unset core.no_scm`"
    )


def mend_dvc_lock(path: Path) -> None:
    """Replace a torn dvc.lock by its last readable copy. `dvc repro` runs what is missing there."""
    if not path.exists() or is_whole(path):
        return
    kept = alone.copy_of(path)
    if kept.is_file() and is_whole(kept):
        shutil.copyfile(kept, path)
        origin = "from before its last stage began"
    else:
        try:
            committed = git.git("show", f"HEAD:./{path.as_posix()}")
        except StageError as error:
            raise StageError(
                f"{path} cannot be read, and git gives no older one ({error}): "
                f"`{shown(['rm', '--', str(path)])}`, then `dvc repro` computes it anew"
            ) from None
        write_text(path, committed)
        if not is_whole(path):
            raise StageError(f"{path} cannot be read, nor can the last commit's: take an older one")
        origin = "of the last commit"
    print(f"{path} could not be read; it is the one {origin} now")


def is_whole(path: Path) -> bool:
    """Whether DVC can read a dvc.lock."""
    declared: dict[str, Any] = {}
    with contextlib.suppress(OSError, StageError):
        text = path.with_name(projects.DECLARATION).read_text(encoding="utf-8")
        declared = projects.stages_in(text)
    try:
        stages = projects.stages_in(path.read_text(encoding="utf-8"))
        for name, stage in stages.items():
            group = declared.get(name.partition("@")[0], {"outs": []})
            makes = {"outs", "metrics", "plots"} & group.get("do", group).keys()
            entries = [*stage.get("deps", []), *(stage["outs"] if makes else [])]
            if not all(entry["path"] and any(map(entry.get, HASHES)) for entry in entries):
                return False
    except Exception:  # a cut, empty or binary file may cause any error
        return False
    return True


def mend_rwlock(path: Path) -> None:
    """Remove DVC's list of running commands, if it is torn and no command is running."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        try:
            with FileLock(path.with_name("lock"), timeout=0):
                path.unlink()
        except Timeout:
            raise StageError(f"{path} is torn, and another `dvc` is at work: end it") from None
        print(f"{path} could not be read; it is removed")


def mend(project: Path | None = None) -> None:
    """Check the settings of the project, by its hook, and repair everything, or one project only.

    DVC removes the outs of a stage before the stage can refuse a setting, so this comes first.
    """
    if check := hook("check"):
        check()
    every = projects.find()
    found = every if project is None else {project: every[project]}
    for folder in found:
        check_writable(folder)
    do_without_git()
    for folder, paths in found.items():
        mend_rwlock(folder / RWLOCK)
        for path in paths:
            mend_dvc_lock(path.with_name(projects.LOCK))
