"""Networks of every model: made, fed, asked for answers, written and read.

Their outputs and gradients have the same bits on every processor: see
:mod:`stages.arithmetic.exact`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.compiler import is_exporting

from dvc_kit.errors import InputError
from dvc_kit.files import sha256, write_bytes
from stages.arithmetic import choice, losses, workers
from stages.base.params import ModelName, Recipe
from stages.base.splits import INPUT_SIDE, Split
from stages.networks import MODELS
from stages.networks.model import Model

Bools = NDArray[np.bool_]

STD = 0.3081  # of the 60,000 training images, pixels in [0, 1]; their mean is 0.1307
# The mean of the pixels, 33.3, as a whole number: a sum is exact only if its numbers have few bits.
# So they are not divided by their standard deviation either
SHIFT = 33
LARGEST = 255 - SHIFT  # size of an input
SCALE = 1 / (255 * STD)  # gives the inputs a standard deviation of 1; multiplies the first weights
EVALUATION_BATCH = 500
FEW = 37  # images that kernels are compared with the reference on: not a multiple of their vectors


class Network(nn.Module):
    """A model with weights.

    Args:
        dropout: Probability, before the last layer.
        softmax_before_loss: End in softmax, although the loss applies log-softmax itself. With a
            right answer of probability 1 the loss is then still ln(e + 9) - 1 = 1.4612.
    """

    def __init__(self, model: Model, dropout: float, softmax_before_loss: bool) -> None:
        super().__init__()
        for name, layer in model.layers.items():
            self.add_module(name, getattr(nn, layer.kind)(*layer.shape))
        self.model = model
        self.dropout = dropout
        self.softmax_before_loss = softmax_before_loss

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, 32, 32), uint8, to logits, or to probabilities, (B, 10)."""
        if not is_exporting():
            kind = "training" if torch.is_grad_enabled() else "answers"
            choice.compare(f"{kind} of {self.model.title}", lambda: self._few(x[:FEW]))
        x = self.model.logits(self, x)
        return losses.softmax(x) if self.softmax_before_loss else x

    def _few(self, x: Tensor) -> Sequence[Tensor]:
        """The outputs, and all gradients if they are wanted."""
        # Dropout draws random numbers, and each worker has other images
        with torch.random.fork_rng(devices=[]), workers.alone():
            outputs = self.model.logits(self, x)
            loss = losses.cross_entropy(outputs, outputs.argmax(1))
            if not torch.is_grad_enabled():
                return outputs, loss
            weights = [weight for weight in self.parameters() if weight.requires_grad]
            return outputs, loss, *torch.autograd.grad(loss, weights)

    def weights(self, layer: str) -> tuple[Tensor, Tensor]:
        """The weights and the biases of a layer."""
        weight, bias = self.get_submodule(layer).parameters(recurse=False)
        return weight, bias

    def dropped(self, x: Tensor) -> Tensor:
        """The input of the last layer, with dropout while it is trained."""
        return dropout(x, self.dropout) if self.training else x


def dropout(x: Tensor, probability: float) -> Tensor:
    """Set each number to zero with ``probability``; divide the others by 1 - ``probability``.

    The random numbers are drawn on the CPU. They are multiples of 2^-24, so nothing is rounded.
    """
    if probability == 0:
        return x
    shape = workers.of_all(len(x)), *x.shape[1:]
    keep = workers.own(torch.rand(shape) >= probability).to(x.device)
    return x * (keep * (1 / (1 - probability)))


class Classifier(nn.Module):
    """A network for use: from raw images to probabilities, for every recipe.

    An exported one holds PyTorch's own operations, whose sums are rounded. So its probabilities
    are not the same bits everywhere.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 28, 28), uint8, white on black as in MNIST, to probabilities (B, 10)."""
        outputs = self.network(resize(images))
        return outputs if self.network.softmax_before_loss else losses.softmax(outputs)


def build(name: ModelName, recipe: Recipe) -> Network:
    """The network ``name``. Its weights are drawn from the global generator."""
    model = MODELS[name]
    with torch.device("meta"):  # there, PyTorch draws no weights
        network = Network(model, recipe.dropout, recipe.softmax_before_loss)
    initialize(network.to_empty(device="cpu"))
    for layer, described in model.layers.items():
        found = sum(weight.numel() for weight in network.weights(layer))
        expected = described.parameters
        assert found == expected, f"{name}.{layer} has {found} parameters, not {expected}"
    return network


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Draw PyTorch's default weights: uniform, at most 1 / sqrt(inputs) in size.

    PyTorch's own function may fuse a product and a sum, so that its weights may differ by a bit.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            largest = 1 / math.sqrt(layer.weight[0].numel())
            for weight in layer.parameters(recurse=False):
                weight.copy_((torch.rand(weight.shape) * (2 * largest)).sub_(largest))


def resize(images: Tensor) -> Tensor:
    """Images (B, 28, 28) to (B, 1, 32, 32), uint8, like :func:`stages.mnist.idx.resize`."""
    return F.interpolate(
        images.unsqueeze(1), (INPUT_SIDE, INPUT_SIDE), mode="bilinear", antialias=True
    )


@dataclass(frozen=True)
class Examples:
    """Resized images (N, 1, 32, 32) and labels (N,), uint8."""

    images: Tensor
    labels: Tensor
    release: Callable[[], None]  # frees the memory of a mapped file, see Split.release


def examples(part: Split, device: str = "cpu") -> Examples:
    """``part``, resized, as tensors: on the CPU in the same memory, on a GPU as a copy."""
    images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    return Examples(images.unsqueeze(1).to(device), labels.to(device), part.release)


@torch.no_grad()
def outputs(network: Network, images: Tensor) -> Tensor:
    """The outputs (N, 10) for resized images (N, 1, 32, 32), uint8, without dropout."""
    was_training = network.training
    network.eval()
    result = torch.cat([network(batch) for batch in torch.split(images, EVALUATION_BATCH)])
    network.train(was_training)
    return result


def probabilities(network: Network, network_outputs: Tensor) -> Tensor:
    """The probabilities (N, 10), float64, for outputs (N, 10) of ``network``."""
    if network.softmax_before_loss:
        return network_outputs.double()
    return losses.probabilities(network_outputs)


@dataclass(frozen=True)
class Answers:
    """The answers of a network for a split of N images."""

    outputs_sha256: str  # of the outputs (N, 10) as float32, row by row
    loss: float  # the mean of the loss that the network was trained with
    probabilities: NDArray[np.float64]  # (N, 10)
    labels: NDArray[np.uint8]  # (N,)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The class with the highest probability, (N,)."""
        found: NDArray[np.int64] = self.probabilities.argmax(1)
        return found

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class, (N,)."""
        found: NDArray[np.float64] = self.probabilities.max(1)
        return found

    @cached_property
    def correct(self) -> Bools:
        """(N,)."""
        found: Bools = self.predicted == self.labels
        return found


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The share of outputs (N, 10) whose largest number is that of the label (N,)."""
    return int((outputs.argmax(1) == labels).sum()) / len(labels)


def answers(network: Network, part: Split, device: str = "cpu") -> Answers:
    data = examples(part, device)
    found = outputs(network, data.images)
    return Answers(
        outputs_sha256=sha256(found.cpu().numpy().tobytes()),
        loss=losses.cross_entropy(found, data.labels.long()).item(),
        probabilities=probabilities(network, found).cpu().numpy(),
        labels=part.labels,
    )


def to_bytes(network: Network) -> bytes:
    """The weights as the bytes of a safetensors file. The same weights give the same bytes."""
    return save(network.state_dict())


def fingerprint(network: Network) -> str:
    """SHA-256 of the weights, and of the file that :func:`save_model` writes."""
    return sha256(to_bytes(network))


def save_model(network: Network, path: Path) -> None:
    write_bytes(path, to_bytes(network))


def load_model(name: ModelName, recipe: Recipe, path: Path) -> Network:
    """The network in a file of :func:`save_model`.

    Raises:
        InputError: The file is missing, or does not hold this network.
    """
    cure = f"`dvc repro train_{name}` makes it again"
    if not path.is_file():
        raise InputError(f"{path} is missing: {cure}")
    network = build(name, recipe)
    try:
        network.load_state_dict(load_file(path))
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}): remove it, and {cure}") from None
    return network
