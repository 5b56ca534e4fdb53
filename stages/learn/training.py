"""The training loop, as an iterator over epochs."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dvc_kit.errors import StageError
from stages.arithmetic import losses, workers
from stages.base import files
from stages.base.params import Recipe
from stages.base.splits import Split
from stages.learn import augmentation, average, teachers
from stages.learn.optimizers import SGD, AdamW, Optimizer, constant, one_cycle
from stages.networks import models

Row = dict[str, float]

# More images than WHOLE are shuffled in two steps: first the chunks of neighbours, then the images
# within a pool of chunks. So each training step reads a mapped file close to where the last one
# read. Linux maps up to 2 MB for a chunk, and so 256 MB for a pool.
WHOLE, POOL, CHUNK = 2**16, 2**14, 2**7


@dataclass
class State:
    """Everything that changes during a training, and the records of it."""

    network: models.Network
    optimizer: Optimizer
    rate: Callable[[int], float]  # the learning rate of each step, counted from 0
    generator: torch.Generator  # of the order of the images and their distortions
    history: list[Row] = field(default_factory=list)  # one row per finished epoch
    weights: list[tuple[str, str]] = field(default_factory=list)  # moments and fingerprints
    average: models.Network | None = None  # of the weights over the steps, if the recipe has it
    teachers: Sequence[models.Network] = ()  # trained; not part of the state that is saved

    @property
    def result(self) -> models.Network:
        """The network that is scored and kept."""
        return self.average or self.network

    def record_weights(self, moment: str) -> None:
        self.weights.append((moment, models.fingerprint(self.result)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "global generator": torch.get_rng_state(),  # of dropout
            "history": self.history,
            "weights": self.weights,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.network.load_state_dict(saved["network"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global generator"])
        self.history, self.weights = saved["history"], saved["weights"]


def epochs(state: State, splits: Mapping[str, Split], recipe: Recipe) -> Iterator[Row]:
    """Train ``state.network`` for the epochs that ``state.history`` does not have yet.

    A row holds the number of the epoch, from 1, and the loss and accuracy on each split. For
    ``train`` they are means over the steps of the epoch, each taken before the update, with dropout
    and distortions, and the loss is the one with the teachers' answers, if there are teachers. For
    the other splits they are taken at the end of the epoch, by ``state.result``.

    ``state.weights`` gets a fingerprint of the initial weights, of those after the first batch, and
    of those after each epoch.

    Args:
        splits: The network is trained on ``train``. It is scored on ``validation`` and ``test``, if
            they are there and not empty.

    Yields:
        The new last row of ``state.history``, one per epoch.

    Raises:
        StageError: The loss is no longer finite. Names the epoch and the step.
    """
    device = str(next(state.network.parameters()).device)
    data = {name: models.examples(part, device) for name, part in splits.items() if len(part)}
    if not state.history:
        state.record_weights("initial")
    for epoch in range(len(state.history) + 1, recipe.epochs + 1):
        row: Row = {"epoch": epoch}
        order = random_order(len(splits["train"]), state.generator)
        row |= train_epoch(state, data["train"], order, recipe, epoch)
        state.record_weights(f"epoch {epoch}")
        for name in ("validation", "test"):
            if name in data:
                own = data[name].images[workers.rows(len(data[name].labels))]
                outputs = workers.whole(models.outputs(state.result, own))
                loss = losses.cross_entropy(outputs, data[name].labels.long())
                row[f"{name}_loss"] = loss.item()
                row[f"{name}_accuracy"] = models.accuracy(outputs, data[name].labels)
        state.history.append(files.rounded(row))
        yield state.history[-1]


def total_steps(recipe: Recipe, images: int) -> int:
    return recipe.epochs * -(-images // recipe.batch_size)


def begin(network: models.Network, recipe: Recipe, steps: int, generator: torch.Generator) -> State:
    """The state before the first of ``steps`` steps."""
    weights, largest = network.parameters(), recipe.learning_rate
    optimizer: Optimizer
    if recipe.optimizer == "sgd":
        optimizer = SGD(weights, recipe.momentum, recipe.weight_decay)
    else:
        optimizer = AdamW(weights, (recipe.momentum, 0.999), recipe.weight_decay)
    rate = functools.partial(constant, largest)
    if recipe.schedule == "one_cycle":
        if steps == 10:
            raise StageError(
                "one_cycle cannot be spread over 10 steps, because its first tenth would be one "
                "step without a rise: change epochs or batch_size"
            )
        rate = functools.partial(one_cycle, largest, steps)
    averaged = copy.deepcopy(network) if recipe.averaging else None
    return State(network, optimizer, rate, generator, average=averaged)


def train_epoch(
    state: State,
    data: models.Examples,
    order: Tensor,
    recipe: Recipe,
    epoch: int,
) -> Row:
    """Train on all of ``data`` once, in ``order`` (N,).

    Returns:
        The mean loss and accuracy of the steps.
    """
    network, device = state.network, data.labels.device
    loss_sum, correct = 0.0, torch.zeros((), dtype=torch.int64, device=device)
    for step, batch in enumerate(torch.split(order.to(device), recipe.batch_size), start=1):
        own = workers.rows(len(batch))
        labels, images = data.labels[batch].long(), data.images.index_select(0, batch[own])
        if recipe.augmentation:
            images = augmentation.distort(images, recipe.augmentation, state.generator)
        taught = None
        if recipe.distillation:
            taught = workers.whole(
                teachers.answers(state.teachers, images, recipe.distillation.temperature)
            )
        outputs = workers.whole(network(images))
        loss = teachers.loss(outputs, labels, taught, recipe.distillation)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise StageError(
                f"the loss is {loss_value} in epoch {epoch}, step {step}; no model is written. "
                "A smaller learning_rate may help"
            )
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        workers.add_gradients()
        state.optimizer.step(state.rate(state.optimizer.steps))
        if state.average:
            average.update(state.average, network, recipe.averaging, state.optimizer.steps)
        if epoch == step == 1:
            state.record_weights("first batch")
        loss_sum += loss_value * len(labels)
        correct += (outputs.argmax(1) == labels).sum()
        if len(data.labels) > WHOLE and step % (POOL // recipe.batch_size or 1) == 0:
            data.release()
    return {"train_loss": loss_sum / len(order), "train_accuracy": correct.item() / len(order)}


def random_order(size: int, generator: torch.Generator) -> Tensor:
    """0 to ``size`` - 1 in a random order. Up to WHOLE, each order is equally likely."""
    if size <= WHOLE:
        return torch.randperm(size, generator=generator)
    first = CHUNK * torch.randperm(-(-size // CHUNK), generator=generator)
    numbers = (first.unsqueeze(1) + torch.arange(CHUNK)).flatten()
    pools = torch.split(numbers[numbers < size], POOL)
    return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for pool in pools])
