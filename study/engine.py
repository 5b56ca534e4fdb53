"""Compute the cells of the study that are missing, as many at once as there are workers.

    python -m study.engine

ENGINE in the environment says where: `local` (each core of this machine) or `local:CORES`,
`dask://HOST:PORT`, `slurm` or `slurm:JOBS`. AUDIT is the share that a second machine computes as
well. The trials of the search (study/search.py) are computed in the same way.

DVC says which cells are missing. Each one is written as soon as it comes, and DVC's run cache keeps
it. If this process is killed, the next one asks for the rest. When all are there, DVC takes them
over: its lock is then the same as if `dvc repro` had run each cell here.
"""

import contextlib
import itertools
import os
import queue
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dvc_kit import files
from dvc_kit.errors import InputError, StageError, main_function, one_line
from stages.base.files import DATA_PREPARED
from study import inspection, missing, places, worker
from study.orders import Reply, Task
from study.places import Place
from study.progress import Progress
from study.team import Job, Team

LOCK = Path(".dvc", "tmp", "engine.lock")
TRIES = 3  # of an order that fails on other machines
TICK = 2.0  # seconds without a reply, after which it looks whether there are workers


class Computation:
    """The orders that a place is given, until each has come or failed."""

    def __init__(self, tasks: Sequence[Task], place: Place, audit: float) -> None:
        self.tasks = {task.order.stage: task for task in tasks}
        self.place, self.audit = place, audit
        self._progress = Progress(self.tasks)
        self._team = Team(place, self._progress.say)
        self._common: dict[str, Any] = {}  # in each order for another machine
        self._tries: Counter[str] = Counter()  # by stage
        self._jobs: dict[Future[Any], Job] = {}
        self._ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._numbers = itertools.count()

    def run(self) -> list[str]:
        """Order all that is not here, and keep each that comes.

        Returns:
            One line per worker that was dismissed, and per order that failed.

        Raises:
            StageError: No worker is left, a file cannot be written, or no two machines agree.
        """
        if self.place.client:
            self._common = {
                "commit": worker.commit(),
                "versions": worker.versions(),
                "prepared": files.md5(DATA_PREPARED),
            }
        with contextlib.closing(self.place), contextlib.closing(self._progress):
            for stage, task in self.tasks.items():
                if not task.here:
                    self._ask(stage)
            while self._jobs:
                try:
                    future = self._ready.get(timeout=TICK)
                except queue.Empty:
                    if self.place.client and not self.place.addresses():
                        self._progress.wait(f"no worker is there yet: {self.place.cure}")
                else:
                    job = self._jobs.pop(future)
                    self._receive(job, self._team.reply(future, job))
            if self.audit and self.place.client and not self._team.audited:
                self._progress.say("note: nothing was verified, because only one worker was there")
        return self._team.faults

    def _ask(self, stage: str, replies: Sequence[Reply] = (), place: Place | None = None) -> None:
        """Give an order, but not to the workers that have given these replies."""
        # To Dask, tasks with the same first part are equals: it keeps them until a worker is free
        key = f"study-{os.getpid()}", stage, str(next(self._numbers))
        only = [] if place else self._team.others(replies)
        order = replace(self.tasks[stage].order, **({} if place else self._common))
        future = (place or self.place).submit(order, key, only)
        self._jobs[future] = Job(order, [*replies])
        future.add_done_callback(self._ready.put)

    def _receive(self, job: Job, reply: Reply) -> None:
        replies = self._team.trusted(job.replies)
        if not reply.fault and (mistake := inspection.mistake_in(reply, self.tasks[reply.stage])):
            reply = reply.model_copy(update={"fault": mistake, "unfit": True})
        if self._team.is_dismissed(reply.worker):  # perhaps at an address that was not known
            self.place.dismiss(reply.address)
            self._ask(reply.stage, replies)
        elif reply.fault:
            self._fail(reply, replies)
        elif replies:
            self._compare(reply, replies)
        elif self._team.audits(reply, self.audit, self._progress.asked):
            self._ask(reply.stage, [reply])
        else:
            self._keep(reply)

    def _keep(self, reply: Reply, verified: str = "") -> None:
        task = self.tasks[reply.stage]
        if not self.place.client:
            task.check()
        task.keep(reply.content)
        self._team.made[reply.stage] = reply.worker
        self._progress.came(reply, verified)

    def _fail(self, reply: Reply, replies: Sequence[Reply]) -> None:
        if reply.unfit and not reply.address:  # of this machine, which nobody replaces
            raise StageError(reply.fault)
        if reply.unfit:
            self._team.dismiss(reply, reply.fault)
        else:
            self._tries[reply.stage] += 1
        # On one machine, the same once more would fail once more
        if self._tries[reply.stage] >= (TRIES if self.place.client else 1):
            self._team.blame(f"{reply.stage} fails on {reply.worker}: {reply.fault}")
        else:
            self._ask(reply.stage, replies)

    def _compare(self, reply: Reply, replies: Sequence[Reply]) -> None:
        first = replies[0]
        same = [known for known in replies if known.content == reply.content]
        if reply.worker == first.worker:  # at an address that was not known to be its own
            if self._team.others([first]):
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
        """Ask others for all that a worker has made."""
        again = [stage for stage, made in self._team.made.items() if made == wrong.worker]
        for stage in again:
            self.tasks[stage].forget()
            del self._team.made[stage]
        self._progress.lost(again)
        where = inspection.first_difference(right.content, wrong.content)
        self._team.dismiss(wrong, f"its {wrong.stage} differs from that of {right.worker} {where}")
        for stage in again:
            self._ask(stage)


# --- one command ---


def read_audit() -> float:
    given = os.environ.get("AUDIT") or "0.05"
    with contextlib.suppress(ValueError):
        if 0 <= float(given) <= 1:
            return float(given)
    raise InputError(f"AUDIT is {given}, expected a share from 0 to 1")


def compute(tasks: Sequence[Task], title: str) -> list[str]:
    """Compute those that are not here, where ENGINE says.

    Args:
        title: What they are, in a line that is printed.

    Returns:
        One line per worker that was dismissed, and per order that failed.

    Raises:
        InputError: ENGINE or AUDIT cannot be used.
        StageError: Nothing can be computed there, or nothing more.
    """
    engine, audit = os.environ.get("ENGINE") or "local", read_audit()
    if not (wanted := sum(not task.here for task in tasks)):
        return []
    print(f"{title}: {wanted}; ENGINE={engine}", flush=True)
    if not engine.startswith("local") and (changed := worker.changed_files()):
        raise StageError(
            f"{changed[0]} is not as in the last commit, which other machines compute: commit it"
        )
    return Computation(tasks, places.open_place(engine, wanted), audit).run()


def study() -> None:
    """Compute what is missing, and let DVC take it over.

    Raises:
        StageError: A cell is missing at the end, or a worker had to be dismissed.
    """
    with missing.opened() as repo:
        cells = missing.stale(repo)
        if all(cell.here for cell in cells):
            missing.take_over(cells)
            return
    faults = compute(cells, "missing cells of the study")
    with missing.opened() as repo:
        cells = missing.stale(repo)
        left = [cell.stage.name for cell in cells if not cell.here]
        if left:
            reasons = ". ".join(faults) or "what they depend on was changed meanwhile"
            raise StageError(f"{len(left)} cells are missing, the others are kept. {reasons}")
        missing.take_over(cells)
    if faults:
        raise StageError(f"all cells are there, but: {'. '.join(faults)}")


@main_function
def main() -> None:
    from dvc.exceptions import DvcException

    os.chdir(worker.ROOT)
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOCK, timeout=0):
            study()
    except Timeout:
        raise StageError("another `make study` computes in this folder: wait for it") from None
    except DvcException as error:
        raise StageError(f"DVC: {one_line(error)}") from None


if __name__ == "__main__":
    main()
