"""How far a computation is: a bar on a terminal, and one line per training."""

import sys
import time
from collections.abc import Collection, Mapping

from tqdm import tqdm

from study.orders import Reply, Task


class Progress:
    """A bar of epochs on a terminal, and one line per training.

    Attributes:
        asked: The number of trainings that were missing at the start.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self._left = {stage for stage, task in tasks.items() if not task.here}
        self.asked = len(self._left)
        self._todo = self._epochs_left
        self._started, self._said = time.time(), ""
        self._bar = tqdm(total=self._todo, unit="epoch", disable=None)

    @property
    def done(self) -> int:
        return len(self._tasks) - len(self._left)

    @property
    def _epochs_left(self) -> int:
        return sum(self._tasks[stage].epochs for stage in self._left)

    def came(self, reply: Reply, verified: str) -> None:
        """One is here. ``verified`` is the worker that has computed the same, if any."""
        self._left.discard(reply.stage)
        self._update()
        line = f"[{self.done}/{len(self._tasks)}] {reply.stage} from {reply.worker}"
        line += f" in {reply.seconds:.0f} s" + (f", the same from {verified}" if verified else "")
        if left := self._epochs_left:
            now, made = time.time(), max(self._todo - left, 1)
            end = time.localtime(now + left * (now - self._started) / made)
            line += f"; {len(self._left)} left, end at {time.strftime('%a %H:%M', end)}"
        self.say(line)

    def lost(self, stages: Collection[str]) -> None:
        self._left.update(stages)
        self._update()

    def _update(self) -> None:
        self._bar.update(self._todo - self._epochs_left - self._bar.n)

    def wait(self, line: str) -> None:
        """Say a line once, until another one is said."""
        if line != self._said:
            self.say(line)

    def say(self, line: str) -> None:
        self._said = line
        tqdm.write(line)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
