"""Where trainings are computed: the cores of this machine, Dask, or Slurm.

All three are an executor of the standard library. Slurm is reached through dask-jobqueue, because
its jobs are workers of Dask: both engines then take the same path.
"""

import contextlib
import logging
import re
import shlex
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib

from dvc_kit.commands import quoted
from dvc_kit.errors import InputError, StageError, one_line
from study import worker
from study.orders import Order

PATIENCE = 20  # seconds that a scheduler has to answer
OUTAGE = 60  # seconds that the network to it may fail
JOBS = 16  # of Slurm at a time, unless ENGINE says so: slurm:100
INSTALL = "pip install -c constraints.txt -e '.[engines]'"

# Names nothing of ours: so a scheduler needs no clone, and a worker with an older one can say so.
# The answer has no class of ours, because Dask never hands over one that is not there.
# Beside it is the address that Dask has for the worker, whatever the answer says
CALL = (
    "__import__('distributed').get_worker().address, "
    "__import__('study.worker').worker.answer(order)"
)

# A job of Slurm makes its own clone, of the commit and with the downloads of this folder, and
# removes it at its end
PROLOGUE = """
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
git clone --quiet --no-hardlinks {root} "$clone/study" || exit 1
cd "$clone/study" && git checkout --quiet {commit} || exit 1
mkdir -p data && cp -r {root}/data/raw data/
export PATH={bin}:"$PATH" PYTHONPATH="$PWD" MIRROR=off
{python} -m dvc repro --quiet prepare || exit 1
"""


@dataclass
class Place:
    """An executor, and what Dask knows of its workers.

    Attributes:
        client: That of Dask. None on this machine.
        name: The value of ENGINE.
        cure: How to start workers.
        known: The addresses of the workers, when the scheduler was last asked.
    """

    name: str
    executor: Executor
    client: Any = None
    cluster: Any = None
    cure: str = ""
    known: Collection[str] = ()

    def submit(self, order: Order, key: tuple[str, ...], only: Collection[str] = ()) -> Future[Any]:
        """Give an order, to any worker or to one of those with the given addresses.

        Returns:
            The address of the worker, if it has one, and the fields of its reply.
        """
        if not self.client:
            return self.executor.submit(_answer, asdict(order))
        executor = self.executor
        if only:
            # If all of these go, Dask takes any other
            executor = self.client.get_executor(
                pure=False, workers=list(only), allow_other_workers=True
            )
        named: dict[str, Any] = {"key": key}
        return executor.submit(eval, CALL, {"order": asdict(order)}, **named)

    def addresses(self) -> list[str]:
        """Those of the workers that there are now.

        Raises:
            StageError: The scheduler has gone.
        """
        if self.client:
            try:
                self.known = list(self.client.scheduler_info(n_workers=-1)["workers"])
            except Exception:
                if self.client.status not in ("running", "connecting"):
                    raise StageError(
                        f"the scheduler of ENGINE={self.name} has gone: all that came is kept, and "
                        "the same command asks for the rest"
                    ) from None
        return list(self.known)

    def dismiss(self, address: str) -> None:
        """Give a worker nothing more to do."""
        with contextlib.suppress(Exception):  # it has gone already
            self.client.retire_workers([address], close_workers=True)

    def close(self) -> None:
        """End what is still running, here and elsewhere."""
        worker.stop.set()
        for end in (partial(self.executor.shutdown, wait=False), self.client, self.cluster):
            with contextlib.suppress(Exception):  # the scheduler may have gone
                getattr(end, "close", end)()


def _answer(order: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What CALL gives, for this machine."""
    return "", worker.answer(order)


def local(cores: int = 0) -> Place:
    """One thread per core that this process may use. Each waits for a process that trains."""
    worker.stop.clear()
    return Place("local", ThreadPoolExecutor(cores or joblib.cpu_count()))


def open_place(engine: str, orders: int) -> Place:
    """The place that ENGINE names.

    Args:
        engine: `local`, `local:CORES`, `dask://HOST:PORT`, `slurm` or `slurm:JOBS`.
        orders: How many will be given.

    Raises:
        InputError: There is no such engine.
        StageError: It is not installed, or does not answer.
    """
    if found := re.fullmatch(r"local(?::0*([1-9]\d*))?", engine):
        return local(int(found[1] or 0))
    if re.fullmatch(r"dask://[^:/]+:\d+", engine):
        return _dask(engine, engine.replace("dask://", "tcp://"))
    if found := re.fullmatch(r"slurm(?::0*([1-9]\d*))?", engine):
        return _slurm(engine, min(int(found[1] or JOBS), orders))
    raise InputError(
        f"ENGINE is {engine}, expected local, local:CORES, dask://HOST:PORT, slurm or slurm:JOBS"
    )


def _dask(engine: str, address: Any, cluster: Any = None) -> Place:
    try:
        from distributed import Client
    except ImportError:
        raise StageError(f"ENGINE={engine} needs distributed: `{INSTALL}`") from None
    try:
        if not cluster:
            host, port = address[6:].split(":")
            socket.create_connection((host, int(port)), PATIENCE).close()
        logging.disable()  # Dask logs a lost worker with a traceback, the engine in one line
        # Each worker compares the versions itself, and is named with the cure
        warnings.filterwarnings("ignore", "\\s*Mismatched versions found")
        client = Client(address, timeout=OUTAGE, set_as_default=False)
    except Exception as error:
        raise StageError(
            f"the scheduler of ENGINE={engine} does not answer ({one_line(error)}): start it with "
            "`make scheduler`, and workers with `make worker SCHEDULER=HOST:PORT`"
        ) from None
    print(f"dashboard: {client.dashboard_link}", flush=True)
    cure = (
        "`squeue` tells about its jobs"
        if cluster
        else f"`make worker SCHEDULER={quoted(address[6:])}`"
    )
    return Place(engine, client.get_executor(pure=False), client, cluster, cure)


def _slurm(engine: str, jobs: int) -> Place:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise StageError(f"ENGINE={engine} needs dask-jobqueue: `{INSTALL}`") from None
    if not shutil.which("sbatch"):
        raise StageError(f"ENGINE={engine} needs sbatch in PATH: is this a machine of Slurm's?")
    try:
        told = subprocess.run(["sinfo"], capture_output=True, text=True, timeout=PATIENCE)
        reason = told.stderr if told.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"nothing in {PATIENCE} s"
    if reason:
        raise StageError(f"Slurm does not answer ({one_line(reason)}): `sinfo` tells when it does")
    prologue = PROLOGUE.format(
        root=shlex.quote(str(worker.ROOT)),
        commit=worker.commit(),
        bin=shlex.quote(str(Path(sys.executable).parent)),
        python=shlex.quote(sys.executable),
    )
    # What a site needs besides, such as an account, is in Dask's own jobqueue.yaml
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        memory="2GB",
        python=shlex.quote(sys.executable),
        job_script_prologue=prologue.strip().splitlines(),
    )
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # a job that is lost is replaced
    return _dask(engine, cluster, cluster)
