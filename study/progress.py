"""How far the study is: a bar on a terminal, and one line per cell."""

import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from stages.base import params
from study.missing import Cell
from study.worker import Reply


class Progress:
    """A bar on a terminal, and one line per cell.

    Attributes:
        epochs: The model and the number of epochs of each cell, by stage.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        recipes = params.load_recipes()
        self.epochs = {
            cell.stage.name: (model, getattr(recipes[recipe], model).epochs)
            for cell in cells
            for recipe, model, _ in [cell.arguments]
        }
        self._left = {cell.stage.name for cell in cells if not cell.here}
        self._took: dict[str, list[float]] = {}  # seconds per epoch, by model
        self._seconds, self._started, self._running, self._said = 0.0, time.time(), 0, ""
        self.done, self._all = len(cells) - len(self._left), len(cells)
        self._bar = tqdm(total=self._all, initial=self.done, unit="cell", disable=None)

    def came(self, reply: Reply, verified: str) -> None:
        """A cell is here. ``verified`` is the worker that has computed the same, if any."""
        model, epochs = self.epochs[reply.stage]
        self._took.setdefault(model, []).append(reply.seconds / epochs)
        self._seconds += reply.seconds
        self._left.discard(reply.stage)
        self.done += 1
        self._bar.update()
        line = f"[{self.done}/{self._all}] {reply.stage} from {reply.worker}"
        line += f" in {reply.seconds:.0f} s" + (f", the same from {verified}" if verified else "")
        if left := len(self._left):
            line += f"; {self._running} at work, {left} left, end at {self._end()}"
        self.say(line)

    def _end(self) -> str:
        """When all will be there, if the rest is computed as fast, and by as many workers."""
        known = [seconds for some in self._took.values() for seconds in some]
        work = 0.0
        for model, epochs in map(self.epochs.__getitem__, self._left):
            of_model = self._took.get(model, known)
            work += epochs * sum(of_model) / len(of_model)
        now = time.time()
        at_once = max(self._seconds / (now - self._started), 1e-9)
        return time.strftime("%a %H:%M", time.localtime(now + work / at_once))

    def lost(self, cells: Sequence[str]) -> None:
        self._left.update(cells)
        self.done -= len(cells)
        self._bar.update(-len(cells))

    def show(self, running: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> None:
        """Show which worker has which cells."""
        self._running = len(running)
        shown = (f"{names.get(at, at)}: {' '.join(stages)}" for at, stages in running.items())
        self._bar.set_postfix_str("; ".join(shown))

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
