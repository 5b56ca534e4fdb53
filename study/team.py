"""The workers of a computation: who they are, who is trusted, and who made what."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dvc_kit.errors import StageError
from study import inspection
from study.orders import Order, Reply
from study.places import Place

MOST_DISMISSED = 20


@dataclass
class Job:
    """An order that was given. ``replies`` came before, if it is given once more."""

    order: Order
    replies: list[Reply]


class Team:
    """The workers of a place.

    Attributes:
        at: The worker at each address.
        made: The worker of each stage that is kept.
        faults: One line per worker that was dismissed, and per order that failed.
        audited: For how many trainings of each worker another one was asked.
    """

    def __init__(self, place: Place, say: Callable[[str], None]) -> None:
        self._place, self._say = place, say
        self._dismissed: set[str] = set()
        self.at: dict[str, str] = {}
        self.made: dict[str, str] = {}
        self.faults: list[str] = []
        self.audited: Counter[str] = Counter()
        self._came = 0  # trainings that an audit could choose

    def is_dismissed(self, worker: str) -> bool:
        return worker in self._dismissed

    def blame(self, line: str) -> None:
        self.faults.append(line)
        self._say(line)

    def trusted(self, replies: Iterable[Reply]) -> list[Reply]:
        return [reply for reply in replies if reply.worker not in self._dismissed]

    def others(self, replies: Sequence[Reply]) -> list[str]:
        """The addresses of the workers on other machines than the replies are from."""
        not_these = {reply.worker for reply in replies} | self._dismissed
        there = self._place.addresses() if replies else []
        return [address for address in there if self.at.get(address) not in not_these]

    def dismiss(self, reply: Reply, reason: str) -> None:
        """Give the worker of a reply nothing more.

        Raises:
            StageError: No worker is left.
        """
        if reply.worker not in self._dismissed:
            self.blame(f"{reply.worker} gets no more orders: {reason}")
        self._dismissed.add(reply.worker)
        for address in {reply.address, *(at for at, by in self.at.items() if by == reply.worker)}:
            self._place.dismiss(address)
        if not self.others([reply]) or len(self._dismissed) >= MOST_DISMISSED:
            raise StageError(f"no worker is left. {'. '.join(self.faults)}")

    def audits(self, reply: Reply, share: float, of: int) -> bool:
        """Whether another machine computes the same: one of each machine, then a share of all."""
        self._came += 1
        audits = self.audited.total()
        if audits >= math.ceil(share * of):
            return False
        chosen = reply.worker not in self.audited or audits < share * self._came
        if chosen and self.others([reply]):
            self.audited[reply.worker] += 1
            return True
        return False

    def reply(self, future: Future[Any], job: Job) -> Reply:
        """The reply to a job, also if it is an exception of Dask's, or cannot be used."""
        stage, at = job.order.stage, ""
        try:
            at, given = future.result()
            reply = inspection.read(given, job.order, at)
        except StageError as error:
            name = self.at.get(at, at) or "a worker"
            fault = str(error)
            return Reply(stage=stage, worker=name, address=at, fault=fault, unfit=bool(at))
        except Exception as error:
            self._place.addresses()  # says so if the scheduler has gone
            fault = f"{type(error).__name__}: {inspection.line(str(error))}"
            return Reply(stage=stage, worker="Dask", fault=fault)
        self.at[reply.address] = reply.worker
        return reply
