"""The training loop."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stages import models, scoring
from stages.errors import StageError
from stages.mnist import Split
from stages.params import Recipe

Row = dict[str, float]

# More images than WHOLE are put in a random order in two steps, so that what a training step reads
# of a mapped file is near what was read before: chunks of neighbours first, then pools of chunks.
# A chunk costs up to 2 MB of resident memory, which Linux maps at once; a pool of them 256 MB.
WHOLE, POOL, CHUNK = 2**16, 2**14, 2**7


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
    device = str(next(network.parameters()).device)
    data = {name: models.examples(part, device) for name, part in splits.items() if len(part)}
    optimizer = build_optimizer(network, recipe)
    on_weights("initial")
    for epoch in range(1, recipe.epochs + 1):
        row: Row = {"epoch": epoch}
        order = random_order(len(splits["train"]), generator)
        row |= train_epoch(network, data["train"], order, recipe, optimizer, epoch, on_weights)
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
    data: models.Examples,
    order: Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    on_weights: Callable[[str], None],
) -> Row:
    """One pass over ``data`` in ``order`` (N,); the mean loss and accuracy of its steps."""
    device = data.labels.device
    loss_sum, correct = 0.0, torch.zeros((), dtype=torch.int64, device=device)
    for step, batch in enumerate(torch.split(order.to(device), recipe.batch_size), start=1):
        labels = data.labels[batch].long()
        outputs = network(models.normalize(data.images[batch]))
        loss = F.cross_entropy(outputs, labels)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise StageError(
                f"the loss is {loss_value} in epoch {epoch}, step {step}; no model is written. "
                "A smaller learning_rate may help"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if epoch == step == 1:
            on_weights("first batch")
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
