"""No sum is rounded, so none depends on its order, and each is nearly PyTorch's.

That no bit changes at all is in study/bits.json, which tests/study/test_bits.py computes again.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.arithmetic import exact, functions, losses
from stages.arithmetic import threads as pool
from stages.networks import models

# Kernels, side of the images, largest number, its step, groups: as lenet5.py has them
CONVOLUTIONS = {
    "conv1": ((6, 1, 5, 5), 32, 222, 1.0, 4),
    "conv2": ((16, 6, 5, 5), 14, 1.0, 2.0**-8, 2),
}
LAYERS = {"conv3": ((120, 400), 1.0), "mlp fc2": ((10, 60), None)}  # weights, largest number


@pytest.fixture(autouse=True)
def seeded(settings_of_torch):
    torch.manual_seed(1)


def computed(name, x, weight, bias, gradient):
    """The operation's output, and its gradients by inputs, weights and biases."""
    of = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    if name in CONVOLUTIONS:
        _, _, largest, step, groups = CONVOLUTIONS[name]
        y = exact.conv_tanh_pool(*of, largest, step, groups)
    else:
        y = exact.linear(*of, LAYERS[name][1])
    return y.detach(), *torch.autograd.grad(y, of, gradient)


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def a_convolution(name, batch):
    """Images, kernels and biases, and a gradient whose images differ much in size."""
    shape, side, *_ = CONVOLUTIONS[name]
    size = (batch, shape[1], side, side)
    x = torch.randint(-33, 223, size).float() if name == "conv1" else 2 * torch.rand(size) - 1
    deviation = math.prod(shape[1:]) ** -0.5
    weight = (2 * torch.rand(shape) - 1) * deviation * (models.SCALE if name == "conv1" else 1)
    bias = (2 * torch.rand(shape[0]) - 1) * deviation
    pooled = (side - 4) // 2
    gradient = torch.randn(batch, shape[0], pooled, pooled) / batch
    return x, weight, bias, gradient * torch.exp(3 * torch.randn(batch, 1, 1, 1))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("share", [0.999, 1.001])
def test_a_convolution_of_mirrored_images_and_kernels_is_the_mirrored_one(name, share):
    """Each sum is added the other way round. Just below a power of two, the largest sum of the
    first kernel needs all bits of a float32; just above it, the grid is coarser."""
    x, weight, bias, gradient = a_convolution(name, batch=130)
    _, _, largest, step, _ = CONVOLUTIONS[name]
    x[:3] = largest
    x[:3, :, ::2] -= step
    weight[0], bias[0] = 2 * weight[0].abs(), bias[0].abs()
    room = 1 - (largest * weight[0].numel() / step + 1) / 2**24  # what the rounding may add
    most = (weight.double().abs().sum((1, 2, 3)) * largest + bias.abs()).max().item()
    scale = share * room / most
    found = computed(name, x, weight * scale, bias * scale, gradient)
    x, weight, gradient = (tensor.flip(2, 3) for tensor in (x, weight, gradient))
    y, to_x, to_weight, to_bias = computed(name, x, weight * scale, bias * scale, gradient)
    assert_equal((y.flip(2, 3), to_x.flip(2, 3), to_weight.flip(2, 3), to_bias), found)


def a_layer(name, batch):
    (outputs, inputs), largest = LAYERS[name]
    x = (2 * torch.rand(batch, inputs) - 1) * (largest or 2.0 ** torch.randint(-4, 4, (batch, 1)))
    weight = torch.randn(outputs, inputs) * inputs**-0.5
    return x, weight, torch.randn(outputs), torch.randn(batch, outputs) / batch


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *LAYERS])
def test_no_order_slice_or_number_of_threads_changes_a_bit(name):
    batch = 512
    operands = (a_convolution if name in CONVOLUTIONS else a_layer)(name, batch)
    x, weight, bias, gradient = operands
    y, to_x, *to_parameters = computed(name, *operands)
    for order in (torch.randperm(batch), torch.arange(batch).flip(0)):
        shuffled = computed(name, x[order], weight, bias, gradient[order])
        assert_equal(shuffled, (y[order], to_x[order], *to_parameters))
    for threads in (2, 3):
        pool.use(threads)
        assert_equal(computed(name, *operands), (y, to_x, *to_parameters))
    for row in range(0, batch, 131):  # the rest of the batch does not matter
        alone, *_ = computed(name, x[[row]], weight, bias, gradient[[row]])
        assert torch.equal(alone, y[[row]])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 130), st.integers(1, 12)),
    exponents=st.tuples(*[st.integers(-30, 20)] * 3),
    seed=st.integers(0, 99),
)
def test_no_order_changes_a_layer_whatever_its_shape_and_the_size_of_its_numbers(
    shape, exponents, seed
):
    batch, inputs, outputs = shape
    torch.manual_seed(seed)
    sizes = [2.0**exponent for exponent in exponents]
    x = (2 * torch.rand(batch, inputs) - 1) * sizes[0] * 2.0 ** torch.randint(-9, 1, (batch, 1))
    weight, bias = torch.randn(outputs, inputs) * sizes[1], torch.randn(outputs)
    gradient = torch.randn(batch, outputs) * sizes[2]
    rows, columns = torch.randperm(batch), torch.randperm(inputs)
    y, to_x, to_weight, to_bias = computed("mlp fc2", x, weight, bias, gradient)
    found = computed("mlp fc2", x[rows][:, columns], weight[:, columns], bias, gradient[rows])
    assert_equal(found, (y[rows], to_x[rows][:, columns], to_weight[:, columns], to_bias))


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *LAYERS])
def test_outputs_and_gradients_are_nearly_pytorchs(name):
    is_layer = name in LAYERS
    x, weight, bias, gradient = (a_layer if is_layer else a_convolution)(name, 96)
    found = computed(name, x, weight, bias, gradient)
    of = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = F.linear(*of) if is_layer else F.avg_pool2d(F.conv2d(*of).tanh(), 2)
    expected = y.detach(), *torch.autograd.grad(y, of, gradient.double())
    most = 1e-5 if is_layer else 0.01
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).abs().max() < most * plain.abs().max()
        assert (ours - plain).norm() < most * plain.norm()


def test_a_sum_that_is_too_long_is_refused_by_the_shape_of_its_layer():
    def convolution(channels, side, largest=1.0):
        x, weight = torch.zeros(1, channels, side, side), torch.zeros(2, channels, 5, 5)
        weight.requires_grad_()
        return exact.conv_tanh_pool(x, weight, torch.zeros(2), largest, 2.0**-8, 2)

    def layer(rows, inputs):
        weight = torch.zeros(2, inputs, requires_grad=True)
        return exact.linear(torch.zeros(rows, inputs), weight, torch.zeros(2), 1.0)

    with pytest.raises(ValueError, match=r"^layer \(2, 8193\): a sum over its weights is too long"):
        layer(1, 8193)
    with pytest.raises(ValueError, match=r"^layer \(2, 3\): a sum over 8193 rows is too long"):
        layer(8193, 3).sum().backward()
    assert layer(8192, 8192).isfinite().all()
    assert not layer(8193, 3).any()  # without a gradient, rows are not added
    with pytest.raises(ValueError, match=r"^convolution \(2, 4000, 5, 5\): a sum over its weights"):
        convolution(4000, 8)
    with pytest.raises(ValueError, match=r"^convolution \(2, 1, 5, 5\): a sum over 7200 is too lo"):
        convolution(1, 124).sum().backward()


# Elementwise functions

NEAR_1 = torch.rand(999, generator=torch.Generator().manual_seed(0)).double()
OF_EXP = torch.cat([torch.linspace(-700, 0, 20_001), torch.linspace(-1, 0, 20_001)]).double()
OF_LOG = torch.cat([2.0 ** torch.linspace(-1022, 1000, 20_001).double(), 1 + NEAR_1])


@pytest.mark.parametrize(
    ("function", "libms", "x", "absolute", "relative"),
    [
        (functions.exp, math.exp, OF_EXP, 0, 4e-16),
        (functions.log, math.log, OF_LOG, 1e-15, 2.3e-16),
        (functions.tanh, math.tanh, torch.linspace(-9, 9, 100_001), 2.4e-5, 0),
    ],
    ids=["exp", "log", "tanh"],
)
def test_a_function_is_as_accurate_as_it_says(function, libms, x, absolute, relative):
    expected = torch.tensor([libms(value) for value in x.tolist()], dtype=torch.float64)
    error = (function(x).double() - expected).abs()
    assert (error <= absolute + relative * expected.abs()).all()


def test_tanh_is_odd_and_at_most_1():
    x = torch.linspace(-9, 9, 100_001)
    assert functions.tanh(x).abs().max() <= 1  # the next layer's grid relies on it
    assert torch.equal(-functions.tanh(x).flip(0), functions.tanh(-x.flip(0)))
    assert functions.exp(torch.tensor([0.0, -1e9], dtype=torch.float64)).tolist()[0] == 1.0


@pytest.mark.parametrize("softmax", [False, True])
def test_cross_entropy_and_softmax_are_pytorchs_in_any_order(softmax):
    x = (5 * torch.randn(512, 10)).requires_grad_()
    labels = torch.randint(0, 10, (512,))
    outputs = losses.softmax(x) if softmax else x
    loss = losses.cross_entropy(outputs, labels)
    plain = x.detach().double().requires_grad_()
    of_plain = F.softmax(plain, 1) if softmax else plain
    if softmax:
        assert torch.allclose(outputs.double(), of_plain, rtol=1e-7, atol=0)
    expected = F.cross_entropy(of_plain, labels)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7 if softmax else 1e-12)
    [ours], [theirs] = (torch.autograd.grad(of, by) for of, by in ((loss, x), (expected, plain)))
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()
    probabilities = losses.probabilities(x.detach())
    assert torch.allclose(probabilities, plain.detach().softmax(1), rtol=1e-14, atol=0)
    order = torch.randperm(512)
    assert losses.cross_entropy(outputs[order], labels[order]).item() == loss.item()
