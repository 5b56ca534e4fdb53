"""A training that resumes after its last finished epoch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tqdm import tqdm

from stages.base.params import Device, ModelName, Recipe
from stages.base.splits import SPLITS, Split
from stages.learn import training
from stages.learn.checkpoint import Checkpoint, key
from stages.learn.training import Row
from stages.networks import models


class Training:
    """The training of a new network.

    Attributes:
        state: The network, and one row per finished epoch.
    """

    def __init__(
        self,
        stage: str,
        name: ModelName,
        splits: Mapping[str, Split],
        recipe: Recipe,
        device: Device,
        generator: torch.Generator,
    ) -> None:
        """Build the network, or restore the state of the same training that was interrupted.

        Args:
            stage: The name of the checkpoint.
            splits: See :func:`training.epochs`.
        """
        self.splits, self.recipe, self.name = splits, recipe, name
        network = models.build(name, recipe).to(device)
        steps = training.total_steps(recipe, len(splits["train"]))
        self.state = training.begin(network, recipe, steps, generator)
        self._checkpoint = Checkpoint(stage, key(self.state, splits, recipe))
        self._checkpoint.restore(self.state)
        if done := len(self.state.history):
            print(f"{stage} resumes after epoch {done} of {recipe.epochs}", flush=True)

    def epochs(self) -> Iterator[Row]:
        """Train, and yield one row per epoch. The epochs of an interrupted training come first.

        Shows the progress, and saves a checkpoint after each epoch.
        """
        yield from self.state.history
        total, done = self.recipe.epochs, len(self.state.history)
        with tqdm(
            total=total, initial=done, desc=self.name, unit="epoch", disable=None
        ) as progress:
            for row in training.epochs(self.state, self.splits, self.recipe):
                self._checkpoint.save(self.state)
                progress.update()
                progress.write(line(row, total))
                yield row

    def finish(self) -> None:
        """Remove the checkpoint. Call this when the results are written."""
        self._checkpoint.remove()


def line(row: Mapping[str, Any], epochs: int) -> str:
    """One epoch, as it is printed."""
    parts = [
        f"{split} loss {row[f'{split}_loss']:.4f} accuracy {row[f'{split}_accuracy']:.2%}"
        for split in SPLITS
        if f"{split}_loss" in row
    ]
    return f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  " + ",  ".join(parts)
