"""The training loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages import models, scoring
from stages.errors import StageError
from stages.mnist import Split
from stages.params import Recipe

Row = dict[str, float]


@dataclass(frozen=True)
class Examples:
    """Images resized to (N, 1, 32, 32), uint8, and labels (N,), int64."""

    images: Tensor
    labels: Tensor


def examples(part: Split) -> Examples:
    return Examples(models.resize(part.images), part.labels.long())


def train(
    network: models.Network,
    splits: Mapping[str, Split],
    recipe: Recipe,
    generator: torch.Generator,
    on_epoch: Callable[[Row], None],
    on_weights: Callable[[str], None],
) -> None:
    """Train ``network`` in place with SGD.

    Args:
        splits: ``train``, ``test`` and, unless it is empty, ``validation`` are scored.
        generator: Draws the order of the training images.
        on_epoch: Is given, after every epoch, its number from 1 and the loss and accuracy on each
            split. Those on ``train`` are the mean over the epoch's own steps, each before its
            update and with dropout as trained; the others are taken at the epoch's end.
        on_weights: Is told when there are new weights to take a fingerprint of: the initial ones,
            those after the first batch, and those after each epoch.

    Raises:
        StageError: The loss is no longer finite; names the epoch and the step.
    """
    data = {name: examples(part) for name, part in splits.items() if len(part)}
    optimizer = build_optimizer(network, recipe)
    on_weights("initial")
    for epoch in range(1, recipe.epochs + 1):
        row: Row = {"epoch": epoch}
        row |= train_epoch(network, data["train"], recipe, optimizer, generator, epoch, on_weights)
        on_weights(f"epoch {epoch}")
        for name in ("validation", "test"):
            if name in data:
                outputs = models.outputs(network, data[name].images)
                row[f"{name}_loss"] = scoring.loss(outputs, data[name].labels)
                row[f"{name}_accuracy"] = scoring.accuracy(outputs, data[name].labels)
        on_epoch(row)


def build_optimizer(network: models.Network, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)


def train_epoch(
    network: models.Network,
    data: Examples,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    epoch: int,
    on_weights: Callable[[str], None],
) -> Row:
    """One pass over ``data`` in a random order; the mean loss and accuracy of its steps."""
    loss_sum, correct = 0.0, 0
    order = torch.randperm(len(data.labels), generator=generator)
    for step, batch in enumerate(torch.split(order, recipe.batch_size), start=1):
        labels = data.labels[batch]
        outputs = network(models.normalize(data.images[batch]))
        loss = F.cross_entropy(outputs, labels)
        if not math.isfinite(loss.item()):
            raise StageError(
                f"the loss is {loss.item()} in epoch {epoch}, step {step}; no model is written. "
                "A smaller learning_rate may help"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if epoch == step == 1:
            on_weights("first batch")
        loss_sum += loss.item() * len(labels)
        correct += int((outputs.argmax(1) == labels).sum())
    size = len(data.labels)
    return {"train_loss": loss_sum / size, "train_accuracy": correct / size}
