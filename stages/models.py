"""The two networks of the experiment, and what stands between an image and their input.

LeNet-5 after Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to
document recognition", Proc. IEEE 86 (1998), with plain average pooling and a linear output layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stages import files, scoring
from stages.errors import InputError
from stages.mnist import INPUT_SIDE, Split
from stages.params import ModelName, Recipe

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images, pixels in [0, 1]
EVALUATION_BATCH = 500

# Weights and biases of each layer. LeNet-5's sum is 61,706, the MLP's 62,110.
PARAMETERS: dict[ModelName, dict[str, int]] = {
    "lenet5": {"conv1": 156, "conv2": 2_416, "conv3": 48_120, "fc1": 10_164, "fc2": 850},
    "mlp": {"fc1": 61_500, "fc2": 610},
}


class TanhPool(torch.autograd.Function):
    """What :func:`tanh_pool` does, in fewer and faster passes over memory, with its gradient.

    tanh(x) = 2 s - 1 with s = sigmoid(2x), which PyTorch computes in a third of tanh's time. The
    mean over four is then sum(s) / 2 - 1, and its derivative by each x is s (1 - s). Rows are added
    first: in channels-last format they are long runs of memory, which avg_pool2d takes apart.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = x.mul(2).sigmoid_()
        ctx.save_for_backward(s)
        rows = s[:, :, ::2] + s[:, :, 1::2]
        return (rows[..., ::2] + rows[..., 1::2]).div_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (s,) = ctx.saved_tensors
        rows = torch.empty_like(s[:, :, ::2])
        rows[..., ::2] = rows[..., 1::2] = gradient
        both = rows.unsqueeze(3).expand(-1, -1, -1, 2, -1)
        pairs = s.unflatten(2, (-1, 2))
        result: Tensor = torch.ops.aten.sigmoid_backward(both, pairs).flatten(2, 3)
        return result


def tanh_pool(x: Tensor) -> Tensor:
    """tanh and 2x2 average pooling: (B, C, H, W) to (B, C, H/2, W/2)."""
    pooled: Tensor = TanhPool.apply(x)  # type: ignore[no-untyped-call]
    return pooled


class LeNet5(nn.Module):
    """Convolutions 1-6-16-120 of 5x5, tanh, 2x2 average pooling, 120-84-10 fully connected.

    Args:
        dropout: Probability, before the last layer.
        softmax_before_loss: End in softmax, although the loss applies log-softmax itself. With a
            right answer of probability 1 the loss is then still ln(e + 9) - 1 = 1.4612.
    """

    def __init__(self, dropout: float, softmax_before_loss: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, 10)
        self.dropout = nn.Dropout(dropout)
        self.softmax_before_loss = softmax_before_loss

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 1, 32, 32) to logits, or to probabilities, (B, 10)."""
        x = tanh_pool(self.conv1(x))  # (B, 6, 14, 14)
        x = tanh_pool(self.conv2(x))  # (B, 16, 5, 5)
        # Its kernel covers all of its input, so the convolution is one matrix product
        x = F.linear(rows(x), rows(self.conv3.weight), self.conv3.bias).tanh_()  # (B, 120)
        x = self.fc1(x).tanh_()  # (B, 84)
        x = self.fc2(self.dropout(x))
        return x.softmax(1) if self.softmax_before_loss else x


def rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, HWC), the order in which channels-last memory holds them."""
    return x.permute(0, 2, 3, 1).flatten(1)


class MLP(nn.Module):
    """1024-60-10 fully connected with ReLU; arguments and output as :class:`LeNet5`."""

    def __init__(self, dropout: float, softmax_before_loss: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUT_SIDE * INPUT_SIDE, 60)
        self.fc2 = nn.Linear(60, 10)
        self.dropout = nn.Dropout(dropout)
        self.softmax_before_loss = softmax_before_loss

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 1, 32, 32) to logits, or to probabilities, (B, 10)."""
        x = F.relu(self.fc1(x.flatten(1)))  # (B, 60)
        x = self.fc2(self.dropout(x))
        return x.softmax(1) if self.softmax_before_loss else x


Network = LeNet5 | MLP


class Classifier(nn.Module):
    """What a person uses: raw images in, probabilities out, whatever the recipe trained."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 28, 28), uint8, white on black as in MNIST, to probabilities (B, 10)."""
        return probabilities(self.network, self.network(normalize(resize(images))))


def build(name: ModelName, recipe: Recipe) -> Network:
    """The network ``name`` with PyTorch's default initialisation, drawn from the global generator.

    Its memory format is channels-last, in which a step of LeNet-5 takes two thirds of the time.
    """
    network: Network
    if name == "lenet5":
        network = LeNet5(recipe.dropout, recipe.softmax_before_loss)
    else:
        network = MLP(recipe.dropout, recipe.softmax_before_loss)
    for layer, expected in PARAMETERS[name].items():
        found = sum(parameter.numel() for parameter in network.get_submodule(layer).parameters())
        assert found == expected, f"{name}.{layer} has {found} parameters, not {expected}"
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def resize(images: Tensor) -> Tensor:
    """Images (B, 28, 28) to (B, 1, 32, 32), uint8: what :func:`mnist.resize` does, to the bit."""
    return F.interpolate(
        images.unsqueeze(1), (INPUT_SIDE, INPUT_SIDE), mode="bilinear", antialias=True
    )


def normalize(images: Tensor) -> Tensor:
    """uint8 pixels to floats of mean 0 and standard deviation 1 over the training images."""
    return images.to(torch.float32, copy=True).div_(255).sub_(MEAN).div_(STD)


@dataclass(frozen=True)
class Examples:
    """Resized images (N, 1, 32, 32), uint8 or normalised, and labels (N,), uint8."""

    images: Tensor
    labels: Tensor
    release: Callable[[], None]  # forgets what was read of a mapped file, until it is used again


def examples(part: Split, device: str = "cpu") -> Examples:
    """``part``, resized, as tensors: on the CPU its own memory, on a GPU a copy there."""
    images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    return Examples(images.unsqueeze(1).to(device), labels.to(device), part.release)


def normalized(data: Examples) -> Examples:
    """A copy with normalised images, in 4 KB an image."""
    images = torch.empty(data.images.shape, device=data.images.device)
    for start in range(0, len(images), EVALUATION_BATCH):
        rows = slice(start, start + EVALUATION_BATCH)
        images[rows] = normalize(data.images[rows])
    data.release()
    return replace(data, images=images)


@torch.no_grad()
def outputs(network: Network, images: Tensor) -> Tensor:
    """What ``network`` says of resized images (N, 1, 32, 32), uint8, without dropout: (N, 10)."""
    was_training = network.training
    network.eval()
    result = torch.cat(
        [network(normalize(batch)) for batch in torch.split(images, EVALUATION_BATCH)]
    )
    network.train(was_training)
    return result


def probabilities(network: Network, network_outputs: Tensor) -> Tensor:
    """The probabilities (N, 10) that outputs (N, 10) of ``network`` stand for."""
    return network_outputs if network.softmax_before_loss else network_outputs.softmax(1)


@dataclass(frozen=True)
class Answers:
    """What a network says of a split; arrays of N unless said otherwise."""

    outputs_sha256: str  # of the outputs (N, 10) as float32, row by row
    loss: float  # the one that it was trained with
    probabilities: NDArray[np.float64]  # (N, 10)
    labels: NDArray[np.uint8]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.probabilities.argmax(1)
        return found

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the predicted class."""
        found: NDArray[np.float64] = self.probabilities.max(1)
        return found

    @cached_property
    def correct(self) -> scoring.Bools:
        found: scoring.Bools = self.predicted == self.labels
        return found


def answers(network: Network, part: Split, device: str = "cpu") -> Answers:
    data = examples(part, device)
    found = outputs(network, data.images)
    return Answers(
        outputs_sha256=files.sha256(found.cpu().numpy().tobytes()),
        loss=scoring.loss(found, data.labels),
        probabilities=probabilities(network, found.cpu().double()).numpy(),
        labels=part.labels,
    )


def to_bytes(network: Network) -> bytes:
    """The weights as the bytes of a safetensors file; the same weights give the same bytes."""
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def fingerprint(network: Network) -> str:
    """SHA-256 of the weights: what `sha256sum` says of the file that :func:`save_model` writes."""
    return files.sha256(to_bytes(network))


def save_model(network: Network, path: Path) -> None:
    files.write_bytes(path, to_bytes(network))


def load_model(name: ModelName, recipe: Recipe, path: Path) -> Network:
    """The network that :func:`save_model` wrote to ``path``.

    Raises:
        InputError: The file is missing, or is not this network.
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
