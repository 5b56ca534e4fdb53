"""One process a stage and checkout: ``with alone.holding("train_mlp"): ...``.

The lock is the operating system's, on a file of the checkout: it goes when its process goes,
however that ends, and holds across containers. A process that `dvc` started ends when `dvc` does.
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

from stages import files
from stages.errors import StageError, outlive_readers

FOLDER = Path(".dvc", "tmp", "stages")  # where neither git nor DVC looks
PATIENCE = 5.0  # seconds; a process whose `dvc` was killed ends sooner
INTERVAL = 0.2  # seconds between two looks at the lock, or at `dvc`
SHELLS = ("sh", "dash", "bash", "zsh", "fish", "ksh")  # `dvc` starts a stage through one


@contextmanager
def holding(stage: str) -> Iterator[None]:
    """Run the body while no other process runs this stage in this checkout.

    Raises:
        StageError: One does, and is still there after PATIENCE seconds.
    """
    outlive_readers()
    with files.writing(FOLDER):
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
    """The command that goes to the DVC project of a stage, from the main folder."""
    is_study = "@" in stage or stage == "report"
    return f"cd {files.STUDY} && " if is_study else ""


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keep_locks() -> None:
    """Copy the lock files, which `dvc` has just read and does not write atomically.

    Where it is killed while it writes one, stages/preflight.py takes the copy.
    """
    # Stages that start together write the same copies, through the same temporary files
    with (FOLDER / "copies.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in filter(Path.is_file, map(Path, files.LOCKS)):
            files.write_bytes(kept(path), path.read_bytes())


def kept(dvc_lock: Path) -> Path:
    return FOLDER / dvc_lock.as_posix().replace("/", "-")


def _end_with_dvc() -> None:
    """End this process when the one that started it has ended."""
    import psutil  # `dvc` needs it too

    parents = psutil.Process().parents()
    dvc = next((parent for parent in parents if parent.name() not in SHELLS), None)
    while dvc and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
        time.sleep(INTERVAL)
    print("error: the `dvc` that started this stage has ended", file=sys.stderr, flush=True)
    _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)  # the main thread waits for something that an interrupt does not end
