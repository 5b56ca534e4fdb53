"""The MLP: 1024-60-10, fully connected, with ReLU."""

from typing import TYPE_CHECKING

from stages.networks.model import Layer, Model

if TYPE_CHECKING:
    from torch import Tensor

    from stages.networks.models import Network


def logits(network: "Network", x: "Tensor") -> "Tensor":
    from stages.arithmetic import exact
    from stages.arithmetic.functions import relu
    from stages.networks.models import LARGEST, SCALE, SHIFT

    weight, bias = network.weights("fc1")
    x = relu(exact.linear(x.flatten(1), weight * SCALE, bias, LARGEST, SHIFT))  # (B, 60)
    return exact.linear(network.dropped(x), *network.weights("fc2"))


MODEL = Model(
    title="MLP",
    spoken="the MLP",
    color="#D55E00",
    dark="#e69f00",
    marker="s",
    dashes=(0, (5, 2)),
    layers={
        "fc1": Layer("Linear", (32 * 32, 60), 61_500),
        "fc2": Layer("Linear", (60, 10), 610),
    },
    logits=logits,
    javascript="""(w) => {
    const fc1 = linear(scaled(w["fc1.weight"]), w["fc1.bias"]), fc2 = layer(w, "fc2");
    return (x) => {
      const hidden = fc1(x, stepFor(LARGEST, 2 ** 20)).map((value) => Math.max(0, value));
      return { logits: fc2(hidden, stepFor(largestOf(hidden), 1) / 2 ** 20) };
    };
  }""",
    published=(0.0928, 0.9731),
)
