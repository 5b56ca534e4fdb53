"""One process per stage and checkout: ``with alone.holding("train"): ...``.

The operating system locks a file of the checkout. The lock ends with its process, however that
ends, and also works between containers. A process that `dvc` started ends when `dvc` ends.
"""

import _thread
import contextlib
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dvc_mlflow import projects
from dvc_mlflow.commands import shown
from dvc_mlflow.errors import StageError, outlive_readers
from dvc_mlflow.files import write_bytes, writing

FOLDER = Path(".dvc", "tmp", "stages")  # of the highest project; git and DVC ignore it
PATIENCE = 5.0  # seconds; a process ends sooner if its `dvc` was killed
INTERVAL = 0.2  # seconds between two looks at the lock, or at `dvc`
SHELLS = ("sh", "dash", "bash", "zsh", "fish", "ksh")  # `dvc` starts a stage through one


@contextmanager
def holding(stage: str) -> Iterator[None]:
    """Run the body while no other process runs this stage in this checkout.

    Raises:
        StageError: Another process does, also after PATIENCE seconds.
    """
    outlive_readers()
    with writing(_folder()):
        _folder().mkdir(parents=True, exist_ok=True)
        project = _project(stage)
        file = (_folder() / f"{quote(f'{project}/{stage}', safe='')}.lock").open("w")
    with file:
        started = time.monotonic()
        while not _locked(file.fileno()):
            if time.monotonic() > started + PATIENCE:
                raise StageError(
                    f"{stage} already runs in this folder, started by another command: wait for it"
                )
            time.sleep(INTERVAL)
        _keep_locks()
        if os.environ.get("DVC_STAGE"):
            threading.Thread(target=_end_with_dvc, daemon=True).start()
        else:
            repro, commit = (
                shown(["dvc", do, stage], folder=project) for do in ("repro", "commit")
            )
            print(
                "note: DVC did not start this and will not know of its results: "
                f"`{repro}` is the command; `{commit}` tells DVC afterwards",
                file=sys.stderr,
                flush=True,
            )
        yield


def _project(stage: str) -> Path:
    """The folder of the DVC project of a stage."""
    if named := os.environ.get("DVC_ROOT"):
        return Path(os.path.relpath(named))
    for folder, files in projects.find().items():
        for file in files:
            with contextlib.suppress(OSError, StageError):
                declared = projects.stages_in(file.read_text("utf-8"))
                if stage.partition("@")[0] in declared:
                    return folder
    return Path()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keep_locks() -> None:
    """Copy each dvc.lock. If `dvc` is killed while it writes one, mend.py restores the copy."""
    for path in filter(Path.is_file, projects.locks(projects.find())):
        write_bytes(copy_of(path), path.read_bytes())


def _folder() -> Path:
    return projects.scratch() / FOLDER.name


def copy_of(dvc_lock: Path) -> Path:
    return _folder() / dvc_lock.as_posix().replace("/", "-")


def _dvc() -> Any:
    """The process of the `dvc` that started this one through a shell, or None."""
    import psutil  # `dvc` needs it too

    parents = psutil.Process().parents()
    return next((parent for parent in parents if parent.name() not in SHELLS), None)


def address() -> str:
    """The full name of the stage that `dvc` runs, such as `train` or `folder/dvc.yaml:train`.

    DVC_STAGE has the path as it is from the folder where `dvc` was started.
    """
    file, _, name = os.environ["DVC_STAGE"].rpartition(f"{projects.DECLARATION}:")
    root = Path(os.environ["DVC_ROOT"]).resolve()
    started = [root]
    with contextlib.suppress(Exception):  # another user's process
        started.insert(0, Path(_dvc().cwd()))
    for folder in ((place / file).resolve() for place in started):
        above = (place for place in (folder, *folder.parents) if (place / ".dvc").is_dir())
        project = next(above, Path())
        is_copy = project.is_relative_to(root / ".dvc")  # by `dvc exp run --temp`
        if (project == root or is_copy) and (folder / projects.DECLARATION).is_file():
            below = (folder / projects.DECLARATION).relative_to(project).as_posix()
            return name if folder == project else f"{below}:{name}"
    return name


def _end_with_dvc() -> None:
    """End this process when its `dvc` has ended."""
    import psutil

    dvc = _dvc()
    while dvc and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
        time.sleep(INTERVAL)
    print("error: the `dvc` that started this stage has ended", file=sys.stderr, flush=True)
    _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)  # an interrupt does not end the main thread
