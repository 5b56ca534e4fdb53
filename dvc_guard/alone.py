"""One process per stage and checkout: ``with alone.holding("train"): ...``.

The operating system locks a file of the checkout. The lock ends with its process, however that
ends, and also works between containers. A process that `dvc` started ends when `dvc` ends.
"""

import _thread
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from dvc_kit.commands import shown
from dvc_kit.errors import BusyError, StageError, outlive_readers
from dvc_kit.files import write_bytes, writing
from dvc_mlflow import projects

FOLDER = Path(".dvc", "tmp", "stages")  # of the highest project; git and DVC ignore it
PATIENCE = 5.0  # seconds; a process ends sooner if its `dvc` was killed
INTERVAL = 0.2  # seconds between two looks at the lock, or at `dvc`


@contextmanager
def holding(stage: str) -> Iterator[None]:
    """Run the body while no other process runs this stage in this checkout.

    Raises:
        StageError: Another process does, also after PATIENCE seconds.
    """
    outlive_readers()
    # A stage may run in another folder, and all paths start in the main one
    main = projects.root(Path.cwd()) or Path.cwd()
    with contextlib.chdir(main), writing(_folder()):
        _folder().mkdir(parents=True, exist_ok=True)
        project = _project(stage)
        lock = FileLock(_folder().resolve() / f"{quote(f'{project}/{stage}', safe='')}.lock")
        try:
            held = lock.acquire(PATIENCE, INTERVAL)
        except Timeout:
            raise BusyError(
                f"{stage} already runs in this folder, started by another command: wait for it"
            ) from None
    with held:
        with contextlib.chdir(main):
            _keep_locks()
        if not end_with_dvc():
            again, tell = (shown(["dvc", do, stage], folder=project) for do in ("repro", "commit"))
            print(
                "note: DVC did not start this and will not know of its results: "
                f"`{again}` is the command; `{tell}` tells DVC afterwards",
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


def _keep_locks() -> None:
    """Copy each dvc.lock. If `dvc` is killed while it writes one, mend.py restores the copy."""
    for path in filter(Path.is_file, projects.locks(projects.find())):
        write_bytes(copy_of(path), path.read_bytes())


def _folder() -> Path:
    return projects.scratch() / FOLDER.name


def copy_of(dvc_lock: Path) -> Path:
    return _folder() / dvc_lock.as_posix().replace("/", "-")


def end_with_dvc() -> bool:
    """End this process when its `dvc` has ended, if there is one."""
    if found := bool(os.environ.get("DVC_STAGE")):
        threading.Thread(target=_follow_dvc, daemon=True).start()
    return found


def _follow_dvc() -> None:
    import psutil

    dvc = projects.dvc_process()
    while dvc and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
        time.sleep(INTERVAL)
    print("error: the `dvc` that started this stage has ended", file=sys.stderr, flush=True)
    _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)  # an interrupt does not end the main thread
