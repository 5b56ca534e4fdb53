"""Compute the cells of the study that are missing, as many at once as there are workers.

    python -m study.engine

ENGINE in the environment says where: `local` (each core of this machine), `dask://HOST:PORT`,
`slurm` or `slurm:JOBS`. AUDIT is the share of the cells that a second machine computes as well.

DVC says which cells are missing. Each one is written as soon as it comes, and noted in a journal.
If this process is killed, the next one asks for the rest. When all are there, DVC takes them over:
its run cache and its lock are then the same as if `dvc repro` had run each cell here.
"""

import contextlib
import itertools
import math
import os
import queue
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any

from filelock import FileLock, Timeout

from dvc_mlflow import files
from dvc_mlflow.errors import InputError, StageError, main_function, one_line
from stages.base.files import DATA_PREPARED
from study import inspection, missing, places, worker
from study.missing import JOURNAL, Cell, is_file
from study.places import Place
from study.progress import Progress
from study.worker import Order, Reply

TRIES = 3  # of a cell that fails on other machines
MOST_DISMISSED = 20
TICK = 2.0  # seconds between two looks at the workers


# --- all of them ---


@dataclass
class Job:
    """A cell that was asked for. ``replies`` came before, if it is asked for once more."""

    order: Order
    key: tuple[str, ...]  # of the task
    replies: list[Reply]
    only: set[str]  # the addresses that may compute it; empty: all


class Computation:
    """The cells that a place is asked for, until each has come or failed.

    Attributes:
        faults: One line per worker that was dismissed, and per cell that failed.
    """

    def __init__(self, cells: Sequence[Cell], place: Place, audit: float) -> None:
        self.cells = {cell.stage.name: cell for cell in cells}
        self.place, self.audit = place, audit
        self.faults: list[str] = []
        self._orders: dict[str, Order] = {}
        self._dismissed: set[str] = set()
        self._tries: Counter[str] = Counter()  # by stage
        self._audited: Counter[str] = Counter()  # by worker
        self._at: dict[str, str] = {}  # the worker at each address
        self._jobs: dict[Future[Any], Job] = {}
        self._ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._progress = Progress(cells)

    def run(self) -> None:
        """Ask for all cells that are not here, and keep each that comes.

        Raises:
            StageError: No worker is left, a file cannot be written, or no two machines agree.
        """
        common: dict[str, Any] = {}
        if self.place.client:
            common = {
                "commit": worker.commit(),
                "versions": worker.versions(),
                "prepared": files.md5(DATA_PREPARED),
            }
        looked = 0.0
        with contextlib.closing(self.place), contextlib.closing(self._progress):
            for name, cell in self.cells.items():
                self._orders[name] = Order(name, cell.arguments, cell.path.as_posix(), **common)
                if not cell.here:
                    self._ask(name)
            while self._jobs:
                with contextlib.suppress(queue.Empty):
                    future = self._ready.get(timeout=TICK)
                    if job := self._jobs.pop(future, None):
                        self._receive(job, self._reply(future, job))
                if time.monotonic() > looked + TICK:
                    self._look()
                    looked = time.monotonic()
            if self.audit and self.place.client and not self._audited:
                self._progress.say("note: no cell was verified, because only one worker was there")

    def _ask(self, stage: str, replies: Sequence[Reply] = (), place: Place | None = None) -> None:
        """Ask for a cell, but not from the workers that have given these replies."""
        order = self._orders[stage]
        # To Dask, tasks with the same first part are equals: it keeps them until a worker is free
        key = f"study-{os.getpid()}", stage, str(next(self._numbers))
        only = [] if place else self._others(replies)
        if place:
            order = replace(order, commit="")
        future = (place or self.place).submit(order, key, only)
        self._jobs[future] = Job(order, key, [*replies], {*only})
        future.add_done_callback(self._ready.put)

    def _reply(self, future: Future[Any], job: Job) -> Reply:
        """The reply to a job, also if it is an exception of Dask's, or cannot be used."""
        stage = job.order.stage
        try:
            at, given = future.result()
        except CancelledError:
            self.place.addresses()  # says so if the scheduler has gone
            return Reply(stage, "the scheduler", fault="the task was cancelled")
        except Exception as error:
            fault = f"{type(error).__name__}: {inspection.line(str(error))}"
            if type(error).__name__ == "KilledWorker":
                return Reply(stage, "each of several workers", fault=fault)
            at = self.place.failed_at(job.key)
            fault += f": is its clone at commit {job.order.commit[:12]}?"
            return self._refused(stage, at, fault)
        try:
            reply = inspection.read(given, job.order, at)
        except StageError as error:
            return self._refused(stage, at, str(error))
        self._at[reply.address] = reply.worker
        _, epochs = self._progress.epochs[stage]
        mistake = "" if reply.fault else inspection.mistake_in(reply, job.order, epochs)
        return replace(reply, fault=mistake, unfit=True) if mistake else reply

    def _refused(self, stage: str, at: str, fault: str) -> Reply:
        """In place of what a worker gave that cannot be used."""
        name = self._at.get(at, at) or "a worker"
        return Reply(stage, name, at, fault=fault, unfit=bool(at))

    def _receive(self, job: Job, reply: Reply) -> None:
        replies = self._trusted(job.replies)
        if reply.worker in self._dismissed:  # perhaps at an address that was not known
            self.place.dismiss(reply.address)
            self._ask(reply.stage, replies)
        elif reply.fault:
            self._fail(reply, replies)
        elif replies:
            self._compare(reply, replies)
        elif self._is_audited(reply) and self._others([reply]):
            self._audited[reply.worker] += 1
            self._ask(reply.stage, [reply])
        else:
            self._keep(reply)

    def _keep(self, reply: Reply, verified: str = "") -> None:
        cell = self.cells[reply.stage]
        if not self.place.client:
            for dep in cell.stage.deps:
                found = None
                with contextlib.suppress(OSError):  # it is gone
                    found = type(dep).get_hash(dep)
                if found != dep.hash_info:
                    raise StageError(
                        f"{dep} was changed while cells were computed: `make study` computes "
                        "those again that depend on it"
                    )
        if not is_file(cell.path, reply.md5):
            files.write_bytes(cell.path, reply.content)
        missing.note(reply.stage, cell.key, reply.md5, reply.worker)
        self._progress.came(reply, verified)

    def _look(self) -> None:
        """See which workers there are, and which of them has which cell."""
        there = set(self.place.addresses())
        if self.place.client and not there:
            self._progress.wait(f"no worker is there yet: {self.place.cure}")
        for future, job in list(self._jobs.items()):
            if job.only and not job.only & there:  # all that could answer have gone
                del self._jobs[future]
                future.cancel()
                replies = self._trusted(job.replies)
                if not replies or self._others(replies):
                    self._ask(job.order.stage, replies)
                else:
                    self._keep(replies[0])
        self._progress.show(self.place.running(), self._at)

    # --- faults ---

    def _fail(self, reply: Reply, replies: Sequence[Reply]) -> None:
        if reply.unfit and not reply.address:  # of this machine, which nobody replaces
            raise StageError(reply.fault)
        if reply.unfit:
            self._dismiss(reply, reply.fault)
        else:
            self._tries[reply.stage] += 1
        # On one machine, the same once more would fail once more
        if self._tries[reply.stage] >= (TRIES if self.place.client else 1):
            self.faults.append(f"{reply.stage} fails on {reply.worker}: {reply.fault}")
            self._progress.say(self.faults[-1])
        else:
            self._ask(reply.stage, replies)

    def _dismiss(self, reply: Reply, reason: str) -> None:
        if reply.worker not in self._dismissed:
            self.faults.append(f"{reply.worker} gets no more cells: {reason}")
            self._progress.say(self.faults[-1])
        self._dismissed.add(reply.worker)
        for address in {reply.address, *(at for at, by in self._at.items() if by == reply.worker)}:
            self.place.dismiss(address)
        if not self._others([reply]) or len(self._dismissed) >= MOST_DISMISSED:
            raise StageError(f"no worker is left. {'. '.join(self.faults)}")

    # --- trust, but verify ---

    def _is_audited(self, reply: Reply) -> bool:
        """Whether another machine computes a cell: one of each machine, then a share."""
        made = self._audited.total()
        if made >= math.ceil(self.audit * len(self.cells)):
            return False
        return reply.worker not in self._audited or made < self.audit * self._progress.done

    def _trusted(self, replies: Sequence[Reply]) -> list[Reply]:
        return [reply for reply in replies if reply.worker not in self._dismissed]

    def _others(self, replies: Sequence[Reply]) -> list[str]:
        """The addresses of the workers on other machines than the replies are from."""
        not_these = {reply.worker for reply in replies} | self._dismissed
        there = self.place.addresses() if replies else []
        return [address for address in there if self._at.get(address) not in not_these]

    def _compare(self, reply: Reply, replies: Sequence[Reply]) -> None:
        first = replies[0]
        same = [known for known in replies if known.content == reply.content]
        if reply.worker == first.worker:  # at an address that was not known to be its own
            if self._others([first]):
                self._ask(reply.stage, [first])
            else:
                self._keep(first)
        elif same:
            self._keep(same[0], reply.worker)
            for known in replies:
                if known.content != reply.content:
                    self._is_wrong(known, reply)
        elif len(replies) == 1:
            self._progress.say(
                f"{reply.stage} differs between {first.worker} and {reply.worker}: it is computed "
                "here as well"
            )
            self._ask(reply.stage, [first, reply], places.local())
        else:
            names = ", ".join(known.worker for known in (*replies, reply))
            raise StageError(
                f"{reply.stage} has other bits on each of {names}: `make verify` there tells which "
                "of them computes the committed ones"
            )

    def _is_wrong(self, wrong: Reply, right: Reply) -> None:
        """Ask others for all cells of a worker, also for those of an earlier run."""
        again = [
            stage
            for stage, entry in missing.read_journal().items()
            if entry.worker == wrong.worker and stage in self.cells
        ]
        for stage in again:
            missing.note(stage)
            with files.writing(self.cells[stage].path):
                self.cells[stage].path.unlink(missing_ok=True)
        self._progress.lost(again)
        where = inspection.difference(right.content, wrong.content)
        self._dismiss(wrong, f"its {wrong.stage} differs from that of {right.worker} {where}")
        for stage in again:
            self._ask(stage)


# --- one command ---


def read_audit() -> float:
    given = os.environ.get("AUDIT") or "0.05"
    with contextlib.suppress(ValueError):
        if 0 <= float(given) <= 1:
            return float(given)
    raise InputError(f"AUDIT is {given}, expected a share from 0 to 1")


def study(engine: str, audit: float) -> None:
    """Compute what is missing, and let DVC take it over.

    Raises:
        StageError: A cell is missing at the end, or a worker had to be dismissed.
    """
    with missing.opened() as repo:
        cells = missing.stale(repo)
        if all(cell.here for cell in cells):
            missing.take_over(repo, cells)
            return
    wanted = sum(not cell.here for cell in cells)
    print(f"missing cells of the study: {wanted}; ENGINE={engine}", flush=True)
    if engine != "local" and (changed := worker.changed_files()):
        raise StageError(
            f"{changed[0]} is not as in the last commit, which other machines compute: commit it"
        )
    computation = Computation(cells, places.open_place(engine, wanted), audit)
    computation.run()
    with missing.opened() as repo:
        cells = missing.stale(repo)
        left = [cell.stage.name for cell in cells if not cell.here]
        if left:
            reasons = ". ".join(computation.faults) or "what they depend on was changed meanwhile"
            raise StageError(f"{len(left)} cells are missing, the others are kept. {reasons}")
        missing.take_over(repo, cells)
    if computation.faults:
        raise StageError(f"all cells are there, but: {'. '.join(computation.faults)}")


@main_function
def main() -> None:
    engine, audit = os.environ.get("ENGINE") or "local", read_audit()
    from dvc.exceptions import DvcException

    os.chdir(worker.ROOT)
    JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(JOURNAL.with_suffix(".lock"), timeout=0):
            study(engine, audit)
    except Timeout:
        raise StageError("another `make study` computes in this folder: wait for it") from None
    except DvcException as error:
        raise StageError(f"DVC: {one_line(error)}") from None


if __name__ == "__main__":
    main()
