"""One order, on any machine: `compute` takes it, and gives a reply.

A worker on another machine has its own clone. It computes only if the clone is at the commit of the
order, without changes, with the same libraries and the same prepared images. Training runs in a
process of its own, such as `python -m study.cell`, which ends with the worker.
"""

import contextlib
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvc_kit import files
from dvc_kit.commands import shown
from dvc_kit.errors import BusyError, StageError, WriteError, one_line
from dvc_mlflow import git
from stages.base.files import DATA_PREPARED
from study.orders import Order, Reply
from study.settings import FOLDER

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path("requirements", "compute.txt")
# All code and settings that a training may depend on, and what of it is a result
HOUSES = ("dvc_kit", "dvc_guard", "dvc_mlflow", "stages", "study")
CODE = (*HOUSES, "requirements", "params.yaml", "recipes.yaml")
RESULTS = ("cells", "report", "search", "findings", "bits.json", "dvc.lock")
GONE = "its coordinator has gone"

stop = threading.Event()  # set when the coordinator in this process ends


def commit() -> str:
    return git.git("-C", str(ROOT), "rev-parse", "HEAD").strip()


def changed_files() -> list[str]:
    """The files of code and settings that differ from the last commit."""
    excluded = [f":(exclude){(FOLDER / name).as_posix()}" for name in RESULTS]
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
    """Compute an order in this folder. Every failure is a reply as well."""
    dask = _of_dask()
    started = time.monotonic()
    mine: dict[str, Any] = {
        "stage": order.stage,
        "worker": socket.gethostname() + (f":{ROOT}" if order.commit else ""),
        "address": dask.address if dask and order.commit else "",
    }
    try:
        if order.commit and (reason := unfit(order)):
            return Reply(**mine, fault=reason, unfit=True)
        code, fault = _train(order)
        while code == BusyError.exit_code:  # for a coordinator that was killed meanwhile
            code, fault = _train(order)
        if fault:
            return Reply(**mine, fault=fault, unfit=code == WriteError.exit_code)
        content = (ROOT / order.path).read_bytes()
    except (StageError, OSError) as error:
        return Reply(**mine, fault=one_line(error), unfit=True)
    return Reply(**mine, seconds=time.monotonic() - started, content=content)


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """``compute`` for an order that any process can make, with the fields of the reply."""
    return compute(Order(**order)).model_dump()


def _train(order: Order) -> tuple[int, str]:
    """Run an order in a process of its own; its exit code, and the reason if it failed."""
    # As DVC sets them: so the process ends with this one, and knows its project
    environment = os.environ | {"DVC_STAGE": order.stage, "DVC_ROOT": str(ROOT / FOLDER)}
    if order.commit:
        environment |= {"MIRROR": "off", "PWD": str(ROOT)}
    if stop.is_set():
        return 0, GONE
    module = ["-m", order.module, *order.arguments]
    process = subprocess.Popen(
        [sys.executable, *module, *filter(None, [order.settings])],
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
                return 0, GONE
    finally:
        process.kill()
        process.wait()
    code, said = process.returncode, [line for line in errors.splitlines() if line.strip()]
    if code == 0:
        for line in said:
            if line.startswith("warning: "):
                tqdm.write(line, file=sys.stderr)
        return 0, ""
    reason = said[-1].removeprefix("error: ") if said else f"exit code {code}"
    return code, f"`{shown(['python', *module])}`: {one_line(reason)}"


def _of_dask() -> Any:
    """The worker of Dask that this thread belongs to, or None."""
    try:
        from distributed import get_worker

        return get_worker()
    except (ImportError, ValueError):
        return None


def _unwanted() -> bool:
    """Whether nobody waits for what this thread computes: its coordinator has gone."""
    if stop.is_set() or not (dask := _of_dask()):
        return stop.is_set()
    task = dask.state.tasks.get(dask.get_current_task())
    return task is None or task.state == "cancelled"
