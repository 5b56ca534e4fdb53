"""One process per stage and checkout: ``with alone.holding("train"): ...``.

The operating system locks a file of the checkout. The lock ends with its process, however that
ends, and also works between containers. A process that `dvc` started ends when `dvc` ends.
"""

import _thread
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc_mlflow import projects
from dvc_mlflow.errors import StageError, outlive_readers
from dvc_mlflow.files import write_bytes, writing

FOLDER = Path(".dvc", "tmp", "stages")  # git and DVC ignore it
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
    with writing(FOLDER):
        FOLDER.mkdir(parents=True, exist_ok=True)
        file = (FOLDER / f"{stage}.lock").open("w")
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
            place = _place(stage)
            print(
                "note: DVC did not start this and will not know of its results: "
                f"`{place}dvc repro {stage}` is the command; `{place}dvc commit {stage}` tells DVC "
                "afterwards",
                file=sys.stderr,
                flush=True,
            )
        yield


def _place(stage: str) -> str:
    """The command that goes from this folder to the DVC project of a stage."""
    folder = projects.of_stage(stage)
    return "" if folder == Path() else f"cd {folder} && "


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keep_locks() -> None:
    """Copy each dvc.lock. If `dvc` is killed while it writes one, mend.py restores the copy."""
    for path in filter(Path.is_file, projects.locks()):
        write_bytes(copy_of(path), path.read_bytes())


def copy_of(dvc_lock: Path) -> Path:
    return FOLDER / dvc_lock.as_posix().replace("/", "-")


def _end_with_dvc() -> None:
    """End this process when its `dvc` has ended."""
    import psutil  # `dvc` needs it too

    parents = psutil.Process().parents()
    dvc = next((parent for parent in parents if parent.name() not in SHELLS), None)
    while dvc and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
        time.sleep(INTERVAL)
    print("error: the `dvc` that started this stage has ended", file=sys.stderr, flush=True)
    _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)  # an interrupt does not end the main thread
