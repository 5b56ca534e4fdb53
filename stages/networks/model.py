"""What one model consists of: layers, arithmetic, and its looks in tables, figures and pages.

Nothing here imports torch, and a model's file imports it only inside its function. So names and
colours can be read without waiting for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A layer of PyTorch with weights and biases."""

    kind: str  # a class of torch.nn: Conv2d or Linear
    shape: tuple[int, ...]  # its arguments
    parameters: int  # how many weights and biases it has; `models.build` asserts it


@dataclass(frozen=True)
class Model:
    """A model, as its file describes it."""

    title: str  # in tables and figures
    spoken: str  # within a sentence
    color: str  # of the palette of Okabe and Ito, which colour-blind people can tell apart
    dark: str  # its colour on a dark page
    marker: str  # o, s, ^ or D: a second cue, with the dashes
    dashes: Any  # of matplotlib's lines
    layers: Mapping[str, Layer]  # in the order in which their weights are drawn
    # From a models.Network and normalised images (B, 1, 32, 32) to logits (B, 10)
    logits: Callable[[Any, Any], Any]
    # The same bits for one image in a browser, with the functions of assets/networks.js: from
    # weights by name and the recipe's dropout to a function of pixels less SHIFT (32, 32). It
    # gives {logits}, and may give maps to show
    javascript: str
    published: tuple[float, float] | None = None  # loss and accuracy of the published experiment

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers.values())


def listed(parts: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
