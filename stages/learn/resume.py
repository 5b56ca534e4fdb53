"""A training that resumes after its last finished epoch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tqdm import tqdm

from stages.base.params import Device, Distillation, ModelName, Recipe
from stages.base.splits import SPLITS, Split
from stages.learn import checkpoint, meeting, teachers, training
from stages.learn.checkpoint import Checkpoint
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
        prefix: str = "",
    ) -> None:
        """Build the network, or restore the state of the same training that was interrupted.

        Args:
            stage: The name of the checkpoint.
            splits: See :func:`training.epochs`.
            generator: Its seed is also that of the teachers, if the recipe has some.
            prefix: Of each line that is printed.
        """
        self.splits, self.recipe, self.device, self.prefix = splits, recipe, device, prefix
        self.name = name
        self._stage = stage
        network = models.build(name, recipe).to(device)
        steps = training.total_steps(recipe, len(splits["train"]))
        self.state = training.begin(network, recipe, steps, generator)
        found = checkpoint.digests(self.state, splits, recipe)
        self.checkpoint = Checkpoint(stage, checkpoint.key(found))
        if meeting.is_first():
            self.checkpoint.restore(self.state)
        meeting.agree(found)
        meeting.share(self.state)
        if done := len(self.state.history):
            text = f"{stage} resumes after epoch {done} of {recipe.epochs}"
            print(prefix + text, flush=True)

    def epochs(self) -> Iterator[Row]:
        """Train, and yield one row per epoch. The epochs of an interrupted training come first.

        Shows the progress, and saves a checkpoint after each epoch. Teachers are trained first,
        unless ``state.teachers`` already has them.
        """
        yield from self.state.history
        total, done = self.recipe.epochs, len(self.state.history)
        if self.recipe.distillation and done < total and not self.state.teachers:
            seed = self.state.generator.initial_seed()
            train, settings = self.splits["train"], self.recipe.distillation
            self.state.teachers = teach(self._stage, train, settings, self.device, seed)
        with tqdm(
            total=total,
            initial=done,
            desc=self.prefix + self.name,
            unit="epoch",
            disable=meeting.is_silent() or None,
        ) as progress:
            for row in training.epochs(self.state, self.splits, self.recipe):
                meeting.agree({"weights": self.state.weights[-1][1]})
                if meeting.is_first():
                    self.checkpoint.save(self.state)
                progress.update()
                progress.write(self.prefix + line(row, total))
                yield row

    def finish(self) -> None:
        """Remove the checkpoints. Call this when the results are written."""
        self.checkpoint.remove()
        if self.recipe.distillation:
            for number in range(1, self.recipe.distillation.teachers + 1):
                Checkpoint(_teacher(self._stage, number), b"").remove()


def _teacher(stage: str, number: int) -> str:
    """The name of a teacher's checkpoint."""
    return f"{stage}.teacher-{number}"


def teach(
    stage: str, train: Split, settings: Distillation, device: Device, of_student: int
) -> list[models.Network]:
    """Train the teachers of a student, or restore those that are trained.

    Their checkpoints stay until the student's training is finished.

    Args:
        stage: The name of the student's checkpoint.
        of_student: The seed of the student. Each teacher has a seed that follows from it.
    """
    found: list[models.Network] = []
    for number in range(1, settings.teachers + 1):
        seed = teachers.seed(of_student, number)
        with torch.random.fork_rng(devices=[]):  # the student's random numbers stay its own
            torch.manual_seed(seed)
            teacher = Training(
                _teacher(stage, number),
                "lenet5",
                {"train": train},
                Recipe(**dict(settings.recipe)),
                device,
                torch.Generator().manual_seed(seed),
                f"teacher {number} of {settings.teachers}: ",
            )
            for _ in teacher.epochs():
                pass
        found.append(teacher.state.result.eval().requires_grad_(False))
    return found


def line(row: Mapping[str, Any], epochs: int) -> str:
    """One epoch, as it is printed."""
    parts = [
        f"{split} loss {row[f'{split}_loss']:.4f} accuracy {row[f'{split}_accuracy']:.2%}"
        for split in SPLITS
        if f"{split}_loss" in row
    ]
    return f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  " + ",  ".join(parts)
