"""LeNet-5: convolutions 1-6-16-120 of 5x5, tanh, 2x2 average pooling, 120-84-10 fully connected.

After Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86 (1998), with plain average pooling and a linear output layer.
"""

from typing import TYPE_CHECKING

from stages.networks.model import Layer, Model

if TYPE_CHECKING:
    from torch import Tensor

    from stages.networks.models import Network


def logits(network: "Network", x: "Tensor") -> "Tensor":
    from stages.arithmetic import exact
    from stages.arithmetic.functions import tanh
    from stages.networks.models import LARGEST, SCALE, SHIFT

    weight, bias = network.weights("conv1")
    x = exact.conv_tanh_pool(x, weight * SCALE, bias, LARGEST, 1.0, 4, SHIFT)  # (B, 6, 14, 14)
    # The outputs of tanh are at most 1 in size
    x = exact.conv_tanh_pool(x, *network.weights("conv2"), 1.0, 2.0**-8, 2)  # (B, 16, 5, 5)
    # Its kernel covers all of its input, so the convolution is one matrix product
    weight, bias = network.weights("conv3")
    x = tanh(exact.linear(x.flatten(1), weight.flatten(1), bias, 1.0))  # (B, 120)
    x = tanh(exact.linear(x, *network.weights("fc1"), 1.0))  # (B, 84)
    return exact.linear(network.dropped(x), *network.weights("fc2"), 1 / (1 - network.dropout))


MODEL = Model(
    title="LeNet-5",
    spoken="LeNet-5",
    color="#0072B2",
    dark="#56b4e9",
    marker="o",
    dashes="-",
    layers={
        "conv1": Layer("Conv2d", (1, 6, 5), 156),
        "conv2": Layer("Conv2d", (6, 16, 5), 2_416),
        "conv3": Layer("Conv2d", (16, 120, 5), 48_120),
        "fc1": Layer("Linear", (120, 84), 10_164),
        "fc2": Layer("Linear", (84, 10), 850),
    },
    logits=logits,
    javascript="""(w, dropout) => {
    const conv1 = convolution(INPUT_SIDE, scaled(w["conv1.weight"]), w["conv1.bias"], LARGEST, 1);
    const conv2 = convolution(14, w["conv2.weight"], w["conv2.bias"], 1, 2 ** -8);
    const [conv3, fc1, fc2] = ["conv3", "fc1", "fc2"].map((name) => layer(w, name));
    const step = stepFor(1, 2 ** 20);
    return (x) => {
      const first = conv1(x), second = conv2(pool(first, 28));
      const hidden = fc1(conv3(pool(second, 10), step).map(tanh), step).map(tanh);
      return { first, second, logits: fc2(hidden, stepFor(1 / (1 - dropout), 2 ** 20)) };
    };
  }""",
    published=(1.5190, 0.945),
)
