"""One cell, on any machine: `compute` takes an order, and gives a reply.

A worker on another machine has its own clone. It computes only if the clone is at the commit of the
order, without changes, with the same libraries and the same prepared images. Training runs in a
process of its own, `python -m study.cell`, which ends with the worker.
"""

import contextlib
import hashlib
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvc_mlflow import files, git
from dvc_mlflow.commands import shown
from dvc_mlflow.errors import StageError, one_line
from stages.base.files import DATA_PREPARED
from study.settings import CELLS, FOLDER, REPORT

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path("requirements", "compute.txt")
# All code and settings that a cell may depend on. Cells, reports and locks are results.
CODE = ("dvc_mlflow", "stages", "study", "requirements", "params.yaml", "recipes.yaml")
RESULTS = (CELLS, REPORT, FOLDER / "dvc.lock")
FULL = "cannot be written"  # what dvc_mlflow.files says of a full or read-only disk
GONE = "its coordinator has gone"
AT_WORK = "already runs in this folder"  # what dvc_mlflow.alone says

stop = threading.Event()  # set when the coordinator in this process ends
at_work: dict[int, str] = {}  # the stage that each thread of this process computes


@dataclass(frozen=True)
class Order:
    """What a worker needs to compute a cell.

    Attributes:
        stage: Its name, such as `cell@fast-mlp-0`.
        arguments: Those of `python -m study.cell`.
        path: Of its file, from the main folder.
        commit: That of the worker's clone. Empty: compute in this folder as it is.
        versions: Of Python and the libraries that compute.
        prepared: The md5 of the prepared images.
    """

    stage: str
    arguments: tuple[str, ...]
    path: str
    commit: str = ""
    versions: Mapping[str, str] | None = None
    prepared: str = ""


@dataclass(frozen=True)
class Reply:
    """The file of a cell, or the reason why there is none.

    Attributes:
        worker: The machine, and the folder of its clone.
        address: That of the worker for Dask.
        seconds: That the training took.
        fault: One line. Empty if the cell was computed.
        unfit: Whether this worker cannot compute any other cell either.
    """

    stage: str
    worker: str
    address: str = ""
    seconds: float = 0.0
    content: bytes = b""
    md5: str = ""
    fault: str = ""
    unfit: bool = False


def commit() -> str:
    return git.git("-C", str(ROOT), "rev-parse", "HEAD").strip()


def changed_files() -> list[str]:
    """The files of code and settings that differ from the last commit."""
    excluded = [f":(exclude){path.as_posix()}" for path in RESULTS]
    status = ["status", "--porcelain", "--untracked-files=all", "--", *CODE, *excluded]
    return [line[3:] for line in git.git("-C", str(ROOT), *status).splitlines()]


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for line in (ROOT / REQUIREMENTS).read_text(encoding="utf-8").splitlines():
        name = line.partition("==")[0].strip()
        if name and not name.startswith("#"):
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
    return found


def unfit(order: Order) -> str:
    """Why this clone must not compute an order, and the cure; or nothing."""
    if (here := commit()) != order.commit:
        cure = f"`git fetch && git checkout {order.commit[:12]}`, and start it again"
        return f"its clone has commit {here[:12]}, not {order.commit[:12]}: {cure}"
    if changed := changed_files():
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        return f"its clone has changes in {changed[0]}{more}: `git stash --all` there"
    mine = versions()
    for name, wanted in (order.versions or {}).items():
        if mine.get(name) != wanted:
            cure = "make its .venv with that Python" if name == "Python" else "`make install` there"
            return f"it has {name} {mine.get(name, '(none)')}, not {wanted}: {cure}"
    prepared = ROOT / DATA_PREPARED
    if not prepared.is_dir() or files.md5(prepared) != order.prepared:
        return f"its {DATA_PREPARED} is not the one here: `dvc repro prepare` there"
    return ""


def compute(order: Order) -> Reply:
    """Compute a cell in this folder. Every failure is a reply as well."""
    worker, address = socket.gethostname(), ""
    if order.commit:
        worker, address = f"{worker}:{ROOT}", _address()
    try:
        if order.commit and (reason := unfit(order)):
            return Reply(order.stage, worker, address, fault=reason, unfit=True)
        started = time.monotonic()
        fault = _train(order)
        while AT_WORK in fault:  # for a coordinator that was killed meanwhile
            fault = _train(order)
        if fault:
            return Reply(order.stage, worker, address, fault=fault, unfit=FULL in fault)
        content = (ROOT / order.path).read_bytes()
        seconds, md5 = time.monotonic() - started, hashlib.md5(content).hexdigest()
        return Reply(order.stage, worker, address, seconds, content, md5)
    except (StageError, OSError) as error:
        return Reply(order.stage, worker, address, fault=one_line(error), unfit=True)


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """``compute`` for an order and a reply that any process can read."""
    at_work[threading.get_ident()] = order["stage"]
    try:
        return asdict(compute(Order(**order)))
    finally:
        del at_work[threading.get_ident()]


def _train(order: Order) -> str:
    """Run a cell in a process of its own; the reason why it failed, or nothing."""
    # As DVC sets them: so the process ends with this one, and knows its project
    environment = os.environ | {"DVC_STAGE": order.stage, "DVC_ROOT": str(ROOT / FOLDER)}
    if order.commit:
        environment |= {"MIRROR": "off", "PWD": str(ROOT)}
    if stop.is_set():
        return GONE
    process = subprocess.Popen(
        [sys.executable, "-m", "study.cell", *order.arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=1)
                break
            if _unwanted():
                return GONE
    finally:
        process.kill()
        process.wait()
    said = [line for line in errors.splitlines() if line.strip()]
    if process.returncode == 0:
        for line in said:
            if line.startswith("warning: "):
                tqdm.write(line, file=sys.stderr)
        return ""
    reason = said[-1].removeprefix("error: ") if said else f"exit code {process.returncode}"
    return f"`{shown(['python', '-m', 'study.cell', *order.arguments])}`: {one_line(reason)}"


def _address() -> str:
    """That of this worker for Dask, or nothing."""
    try:
        from distributed import get_worker

        return str(get_worker().address)
    except (ImportError, ValueError):
        return ""


def _unwanted() -> bool:
    """Whether nobody waits for the cell that this thread computes: its coordinator has gone."""
    if stop.is_set():
        return True
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        return False
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled"
