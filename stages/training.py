"""The training loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from stages import augmentation, exact, files, models, scoring
from stages.errors import StageError
from stages.mnist import Split
from stages.optimizers import SGD, AdamW
from stages.params import Recipe

Row = dict[str, float]

# More images than WHOLE are put in a random order in two steps, so that what a training step reads
# of a mapped file is near what was read before: chunks of neighbours first, then pools of chunks.
# A chunk costs up to 2 MB of resident memory, which Linux maps at once; a pool of them 256 MB.
WHOLE, POOL, CHUNK = 2**16, 2**14, 2**7


@dataclass
class State:
    """All that a training changes as it goes, and what it has recorded."""

    network: models.Network
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator  # of the order of the images and their distortions
    history: list[Row] = field(default_factory=list)  # a row a finished epoch
    weights: list[tuple[str, str]] = field(default_factory=list)  # moments and fingerprints

    def record_weights(self, moment: str) -> None:
        self.weights.append((moment, models.fingerprint(self.network)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "global generator": torch.get_rng_state(),  # of dropout
            "history": self.history,
            "weights": self.weights,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global generator"])
        self.history, self.weights = saved["history"], saved["weights"]


def train(
    state: State,
    splits: Mapping[str, Split],
    recipe: Recipe,
    on_epoch: Callable[[State], None],
) -> None:
    """Train ``state.network`` as ``recipe`` says, from wherever ``state`` is.

    ``state.history`` gets, for every epoch, its number from 1 and the loss and accuracy on each
    split. Those on ``train`` are the mean over the epoch's own steps, each before its update, with
    dropout and distortions as trained; the others are taken at the epoch's end. ``state.weights``
    gets a fingerprint of the initial weights, those after the first batch, and after each epoch.

    Args:
        splits: ``train`` is trained on; ``validation`` and ``test``, where there and not empty,
            are scored.
        on_epoch: Is called after every epoch.

    Raises:
        StageError: The loss is no longer finite; names the epoch and the step.
    """
    network = state.network
    device = str(next(network.parameters()).device)
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
                outputs = models.outputs(network, data[name].images)
                loss = exact.cross_entropy(outputs, data[name].labels.long())
                row[f"{name}_loss"] = loss.item()
                row[f"{name}_accuracy"] = scoring.accuracy(outputs, data[name].labels)
        state.history.append(files.rounded(row))
        on_epoch(state)


def total_steps(recipe: Recipe, images: int) -> int:
    return recipe.epochs * -(-images // recipe.batch_size)


def begin(network: models.Network, recipe: Recipe, steps: int, generator: torch.Generator) -> State:
    """Optimizer and schedule of a training of so many steps."""
    weights, rate = network.parameters(), recipe.learning_rate
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = SGD(weights, rate, recipe.momentum, recipe.weight_decay)
    else:
        optimizer = AdamW(weights, rate, (recipe.momentum, 0.999), recipe.weight_decay)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if recipe.schedule == "constant":
        scheduler = ConstantLR(optimizer, factor=1.0)
    else:
        # Linear, because the cosine of the C library is not the same everywhere; the rest of this
        # schedule, and all of the constant one, is a sum, a product or a quotient of Python floats
        scheduler = OneCycleLR(
            optimizer, rate, steps, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
        )
    return State(network, optimizer, scheduler, generator)


def train_epoch(
    state: State,
    data: models.Examples,
    order: Tensor,
    recipe: Recipe,
    epoch: int,
) -> Row:
    """One pass over ``data`` in ``order`` (N,); the mean loss and accuracy of its steps."""
    network, device = state.network, data.labels.device
    loss_sum, correct = 0.0, torch.zeros((), dtype=torch.int64, device=device)
    for step, batch in enumerate(torch.split(order.to(device), recipe.batch_size), start=1):
        labels, images = data.labels[batch].long(), data.images[batch]
        if recipe.augmentation:
            images = augmentation.distort(images, recipe.augmentation, state.generator)
        outputs = network(models.normalize(images))
        loss = exact.cross_entropy(outputs, labels)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise StageError(
                f"the loss is {loss_value} in epoch {epoch}, step {step}; no model is written. "
                "A smaller learning_rate may help"
            )
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.scheduler.step()
        if epoch == step == 1:
            state.record_weights("first batch")
        loss_sum += loss_value * len(labels)
        correct += (outputs.argmax(1) == labels).sum()
        if len(data.labels) > WHOLE and step % (POOL // recipe.batch_size or 1) == 0:
            data.release()
    return {"train_loss": loss_sum / len(order), "train_accuracy": correct.item() / len(order)}


def random_order(size: int, generator: torch.Generator) -> Tensor:
    """0 to ``size`` - 1 in a random order; up to WHOLE, each order is equally likely."""
    if size <= WHOLE:
        return torch.randperm(size, generator=generator)
    first = CHUNK * torch.randperm(-(-size // CHUNK), generator=generator)
    numbers = (first.unsqueeze(1) + torch.arange(CHUNK)).flatten()
    pools = torch.split(numbers[numbers < size], POOL)
    return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for pool in pools])
