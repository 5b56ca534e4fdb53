"""No order of a sum changes a bit: against permutations, other libraries' sums, and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import correlate

from stages.base import params
from stages.learn import augmentation, optimizers
from stages.networks import exact, models

SEED = 1
BATCHES = (512, 96)  # the first and the last one of an epoch

# Kernels, side of the images, largest number, its step, run: as models.LeNet5 has them
CONVOLUTIONS = {
    "conv1": ((6, 1, 5, 5), 32, 222, 1.0, 4),
    "conv2": ((16, 6, 5, 5), 14, 1.0, 2.0**-8, 2),
}
# Weights, and the largest number, of every layer that is a matrix product
LAYERS = {
    "conv3": ((120, 400), 1.0),
    "fc1": ((84, 120), 1.0),
    "fc2": ((10, 84), 2.0),
    "mlp fc1": ((60, 1024), 222.0),
    "mlp fc2": ((10, 60), None),
}


@pytest.fixture(autouse=True)
def seeded():
    state = torch.get_rng_state()
    torch.manual_seed(SEED)
    yield
    torch.set_rng_state(state)


def fractions(tensor):
    return [Fraction(value) for value in tensor.flatten().tolist()]


def dot(a, b):
    return sum((u * v for u, v in zip(fractions(a), fractions(b), strict=True)), Fraction())


def some(*sizes, count=12):
    """Random places in an array of these sizes."""
    return torch.stack([torch.randint(0, size, (count,)) for size in sizes], 1).tolist()


# Convolutions


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


def computed(name, x, weight, bias, gradient):
    """The layer's output, and its gradients by images, kernels and biases."""
    _, _, largest, step, run = CONVOLUTIONS[name]
    of = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    pooled = exact.conv_tanh_pool(*of, largest, step, run)
    return pooled.detach(), *torch.autograd.grad(pooled, of, gradient)


def operands(name, x, weight, bias):
    """Rounded as the layer rounds them, as float64."""
    _, _, largest, step, _ = CONVOLUTIONS[name]
    length = weight[0].numel()
    sizes = weight.double().abs().sum((1, 2, 3)) * largest + bias.abs()
    grid = exact.step_for(sizes.max().item(), 2.0**24 * step - largest * length - step)
    rounded = exact.on_grid(weight.double(), grid), exact.on_grid(bias.double(), grid * step)
    return exact.on_grid(x.double(), step), *rounded


def pooled_tanh(y):
    t = exact.rational_tanh(y, torch.empty_like(y))
    rows = t[:, :, ::2] + t[:, :, 1::2]
    return t, (rows[..., ::2] + rows[..., 1::2]) * 0.25


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_neither_the_order_nor_the_slices_of_the_images_change_a_convolution(
    name, batch, monkeypatch
):
    x, weight, bias, gradient = a_convolution(name, batch)
    pooled, to_x, to_weight, to_bias = computed(name, x, weight, bias, gradient)
    for order in (torch.randperm(batch), torch.arange(batch).flip(0)):
        found = computed(name, x[order], weight, bias, gradient[order])
        for ours, expected in zip(
            found, (pooled[order], to_x[order], to_weight, to_bias), strict=True
        ):
            assert torch.equal(ours, expected)
    monkeypatch.setattr(exact, "CACHED", 13)
    found = computed(name, x, weight, bias, gradient)
    for ours, expected in zip(found, (pooled, to_x, to_weight, to_bias), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_outputs_are_other_libraries_and_the_exact_sums(name, batch):
    x, weight, bias, gradient = a_convolution(name, batch)
    pooled, *_ = computed(name, x, weight, bias, gradient)
    images, kernels, biases = operands(name, x, weight, bias)
    y = F.conv2d(images, kernels, biases)
    assert torch.equal(y.float().double(), y)  # a float32 holds it
    assert torch.equal(pooled_tanh(y.float())[1], pooled)
    for image, kernel in some(batch, len(weight), count=4):  # in float32, by SciPy
        found = np.float32(biases[kernel]) + sum(
            correlate(a, b, "valid", "direct")
            for a, b in zip(
                images[image].float().numpy(), kernels[kernel].float().numpy(), strict=True
            )
        )
        assert np.array_equal(found, y[image, kernel].float().numpy())
    for image, kernel, row, column in some(batch, len(weight), *y.shape[2:]):
        window = images[image, :, row : row + 5, column : column + 5]
        total = dot(window, kernels[kernel]) + Fraction(biases[kernel].item())
        assert Fraction(y[image, kernel, row, column].item()) == total


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_gradients_are_exact_sums_of_rounded_numbers(name, batch):
    x, weight, bias, gradient = a_convolution(name, batch)
    _, to_x, to_weight, to_bias = computed(name, x, weight, bias, gradient)
    images, kernels, biases = operands(name, x, weight, bias)
    t, _ = pooled_tanh(F.conv2d(images, kernels, biases).float())
    of_y = (1 - t * t) * (gradient * 0.25).repeat_interleave(2, 2).repeat_interleave(2, 3)
    # Each image on its own grid, if that is not much finer than that of the largest
    _, _, largest, step, run = CONVOLUTIONS[name]
    steps = min(512, int(2**24 / (largest / step * (of_y[0, 0].numel() // run))))
    own = exact.power_of_two(of_y.abs().amax((1, 2, 3), keepdim=True) * (1 / steps))
    coarse = exact.power_of_two((gradient * 0.25).abs().max() * (1 / steps))
    spare = 53 - 24 - (batch * run).bit_length()
    rounded = exact.on_grid(of_y, torch.maximum(own, coarse * 2.0**-spare)).double()
    length = weight[:, 0].numel()
    sizes = weight.double().abs().sum((0, 2, 3)).max().item()
    by_grid = exact.on_grid(weight.double(), exact.step_for(sizes, 2.0**24 / steps - length))
    assert torch.equal(F.conv_transpose2d(rounded, by_grid).float(), to_x)
    sums = torch.bmm(rounded.flatten(2), F.unfold(images, 5).mT)  # of each image, exact in float64
    for kernel, place in some(len(weight), sums.shape[2]):
        total = float(sum(fractions(sums[:, kernel, place]), Fraction()))
        assert torch.tensor(total).float() == to_weight.flatten(1)[kernel, place]
    for kernel in range(2):
        total = float(sum(fractions(rounded[:, kernel].sum((1, 2))), Fraction()))
        assert torch.tensor(total).float() == to_bias[kernel]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_nearly_pytorchs(name):
    x, weight, bias, gradient = a_convolution(name, 96)
    found = computed(name, x, weight, bias, gradient)
    of = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = F.avg_pool2d(F.conv2d(*of).tanh(), 2)
    expected = y.detach(), *torch.autograd.grad(y, of, gradient.double())
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).abs().max() < 0.01 * plain.abs().max()
        assert (ours - plain).norm() < 0.01 * plain.norm()


def convolution_of_the_worst(name):
    """Sums of the largest products, some of them one step smaller, so that they need all bits; how
    many of them are wrong."""
    shape, side, largest, step, run = CONVOLUTIONS[name]
    length = math.prod(shape[1:])
    room = 2.0**24 * step - largest * length - step
    weight = torch.rand(shape) * 0.01 + 0.99
    weight *= 0.99 * 2.0**14 * step / (exact.total(weight.flatten(1), 1).max().item() * largest)
    sizes = exact.total(weight.flatten(1), 1) * largest
    grid = exact.weight_step(sizes, room, largest * length, weight.shape)
    kernels = exact.on_grid(weight.double(), grid)
    x = torch.full((4, shape[1], side, side), float(largest))
    x[:, :, ::2] -= step
    images = x.permute(0, 2, 3, 1).contiguous()
    matrix = exact.spread(kernels.float(), run)
    y = torch.mm(exact.windows(images, run).flatten(0, 1), matrix)
    y = y.view(4, side - 4, side - 4, -1).permute(0, 3, 1, 2)
    return int((F.conv2d(x.double(), kernels) != y.double()).sum())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_sums_still_fit_and_with_a_grid_one_bit_finer_they_do_not(name, monkeypatch):
    assert convolution_of_the_worst(name) == 0
    as_it_is = exact.step_for
    monkeypatch.setattr(exact, "step_for", lambda *of: as_it_is(*of) / 2)
    assert convolution_of_the_worst(name) > 0


# Fully connected layers


def a_layer(name, batch):
    (outputs, inputs), largest = LAYERS[name]
    x = (2 * torch.rand(batch, inputs) - 1) * (largest or 2.0 ** torch.randint(-4, 4, (batch, 1)))
    weight = torch.randn(outputs, inputs) * inputs**-0.5
    return x, weight, torch.randn(outputs), torch.randn(batch, outputs) / batch


def linear(name, x, weight, bias, gradient):
    of = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    y = exact.linear(*of, LAYERS[name][1])
    return y.detach(), *torch.autograd.grad(y, of, gradient)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", LAYERS)
def test_neither_the_order_of_rows_nor_of_numbers_changes_a_layer(name, batch):
    x, weight, bias, gradient = a_layer(name, batch)
    y, to_x, to_weight, to_bias = linear(name, x, weight, bias, gradient)
    for order in (torch.randperm(batch), torch.arange(batch).flip(0)):
        found = linear(name, x[order], weight, bias, gradient[order])
        for ours, expected in zip(found, (y[order], to_x[order], to_weight, to_bias), strict=True):
            assert torch.equal(ours, expected)
    order = torch.randperm(x.shape[1])
    found = linear(name, x[:, order], weight[:, order], bias, gradient)
    for ours, expected in zip(
        found, (y, to_x[:, order], to_weight[:, order], to_bias), strict=True
    ):
        assert torch.equal(ours, expected)
    for row in range(0, batch, 31):  # the rest of the batch does not matter
        assert torch.equal(exact.linear(x[row : row + 1], weight, bias, LAYERS[name][1]), y[[row]])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_sums_are_numpys_and_the_exact_ones(name, batch):
    x, weight, bias, gradient = a_layer(name, batch)
    y, to_x, to_weight, to_bias = linear(name, x, weight, bias, gradient)
    largest = LAYERS[name][1]
    tops = [largest] * batch if largest else x.abs().amax(1).tolist()
    rows = torch.stack([exact.fine(row, top) for row, top in zip(x, tops, strict=True)])
    weights, gradients, inputs = exact.fine(weight), exact.fine(gradient), exact.fine(x, largest)

    def rounded(sums):
        return torch.from_numpy(sums).float()

    parted = sum(rows.numpy()[:, part::3] @ weights.numpy()[:, part::3].T for part in range(3))
    assert torch.equal(rounded(parted + bias.double().numpy()), y)
    assert torch.equal(rounded(gradients.numpy() @ weights.numpy()), to_x)
    assert torch.equal(rounded(gradients.numpy().T @ inputs.numpy()), to_weight)
    assert torch.equal(rounded(gradients.numpy()[::-1].sum(0)), to_bias)
    for row, output in some(batch, len(weight)):
        total = dot(rows[row], weights[output])
        assert Fraction(float(total)) == total  # a float64 holds it
        assert torch.tensor(float(total) + bias[output].item()).float() == y[row, output]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_gradients_are_nearly_pytorchs(name):
    x, weight, bias, gradient = a_layer(name, 96)
    found = linear(name, x, weight, bias, gradient)
    of = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = F.linear(*of)
    expected = y.detach(), *torch.autograd.grad(y, of, gradient.double())
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).abs().max() < 1e-5 * plain.abs().max()


def test_no_order_changes_a_total_of_numbers_of_all_sizes():
    x = torch.randn(8192, 3) * 2.0 ** torch.randint(-30, 1, (8192, 3))
    found = exact.total(x)
    for order in (torch.randperm(8192), torch.arange(8192).flip(0)):
        assert torch.equal(exact.total(x[order]), found)
    assert (found - x.double().sum(0)).abs().max() < 1e-9


def test_8192_products_of_20_bits_each_fit_into_a_float64():
    x = torch.full((2, exact.LONGEST), exact.STEPS - 1, dtype=torch.float64)
    assert (x @ x.T == float(exact.LONGEST * (int(exact.STEPS) - 1) ** 2)).all()


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


# Numbers that are not finite


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("softmax", [False, True])
def test_a_number_that_is_not_finite_comes_out_in_the_loss(name, softmax):
    recipe = params.Recipe(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.9, dropout=0.5,
                           softmax_before_loss=softmax)  # fmt: skip
    images, labels = torch.randint(0, 256, (8, 1, 32, 32)), torch.arange(8)
    network = models.build(name, recipe)

    def loss():
        return exact.cross_entropy(network(models.normalize(images)), labels).item()

    for layer, weight in network.named_parameters():
        before = weight.detach().clone()
        # Before it reaches the last layer, tanh and ReLU make a finite number of infinity
        for value in (math.nan, math.inf) if layer.startswith("fc2") else (math.nan,):
            with torch.no_grad():
                weight.view(-1)[0] = value
            assert not math.isfinite(loss())
        with torch.no_grad():
            weight.copy_(before)
    assert math.isfinite(loss())


def test_subnormal_numbers_are_computed_as_ieee_754_says():
    tiny = torch.tensor([2.0**-149, 3.0 * 2.0**-140, -(2.0**-126)])
    for size in (tiny, tiny.repeat(3, 1).double().float()):
        assert torch.equal(exact.on_grid(size, 2.0**-149), size)
    x, weight = tiny.repeat(4, 1), tiny.repeat(2, 1)
    found = [tensor.clone().requires_grad_() for tensor in (x, weight, torch.ones(2))]
    y = exact.linear(*found)
    assert torch.equal(y, torch.ones(4, 2))
    assert not any(
        gradient.isnan().any()
        for gradient in torch.autograd.grad(y, found, torch.full_like(y, 2.0**-149))
    )
    # A velocity that dies away goes through them, as NumPy's does
    weight = torch.nn.Parameter(torch.full((3,), 2.0**-130))
    weight.grad = torch.full((3,), 2.0**-128)
    optimizer = optimizers.SGD([weight], lr=0.5, momentum=0.75)
    w, velocity = np.full(3, 2.0**-130, np.float32), np.zeros(3, np.float32)
    for gradient in (2.0**-128, *[0.0] * 60):
        weight.grad.fill_(gradient)
        optimizer.step()
        velocity = velocity * np.float32(0.75) + np.float32(gradient)
        w = w - velocity * np.float32(0.5)
        assert np.array_equal(weight.detach().numpy(), w)
    assert np.isfinite(w).all()
    assert w.any()


# Elementwise functions


def test_exp_log_and_tanh_are_as_accurate_as_they_say():
    x = torch.cat([torch.linspace(-700, 0, 20_001), torch.linspace(-1, 0, 20_001)]).double()
    expected = torch.tensor([math.exp(value) for value in x.tolist()], dtype=torch.float64)
    assert ((exact.exp(x) - expected) / expected).abs().max() < 4e-16
    assert exact.exp(torch.tensor([0.0, -1e9], dtype=torch.float64)).tolist()[0] == 1.0
    x = torch.cat(
        [2.0 ** torch.linspace(-1022, 1000, 20_001).double(), 1 + torch.rand(999).double()]
    )
    expected = torch.tensor([math.log(value) for value in x.tolist()], dtype=torch.float64)
    assert (exact.log(x) - expected).abs().max() < 1.2e-13  # an ulp of the largest
    near = (x > 0.5) & (x < 20)
    assert (exact.log(x) - expected)[near].abs().max() < 1e-15
    x = torch.linspace(-9, 9, 100_001)
    expected = torch.tensor([math.tanh(value) for value in x.tolist()], dtype=torch.float64)
    found = exact.tanh(x)
    assert (found.double() - expected).abs().max() < 2.4e-5
    assert found.abs().max() <= 1  # the next layer's grid relies on it
    assert torch.equal(-found.flip(0), exact.tanh(-x.flip(0)))
    angle = torch.linspace(-math.pi, math.pi, 10_001, dtype=torch.float64)
    for function, values in zip((math.cos, math.sin), augmentation._cos_sin(angle), strict=True):
        expected = torch.tensor([function(value) for value in angle.tolist()], dtype=torch.float64)
        assert (values - expected).abs().max() < 1e-15


def test_tanhs_gradient_is_that_of_its_value():
    x = torch.linspace(-5, 5, 1_001, requires_grad=True)
    t = exact.tanh(x)
    [found] = torch.autograd.grad(t, x, torch.full_like(x, 3.0))
    assert torch.allclose(found, 3 * (1 - t.detach() ** 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
def test_cross_entropy_and_softmax_are_pytorchs(softmax):
    x = (5 * torch.randn(512, 10)).requires_grad_()
    labels = torch.randint(0, 10, (512,))
    outputs = exact.softmax(x) if softmax else x
    loss = exact.cross_entropy(outputs, labels)
    plain = x.detach().double().requires_grad_()
    of_plain = F.softmax(plain, 1) if softmax else plain
    if softmax:
        assert torch.allclose(outputs.double(), of_plain, rtol=1e-7, atol=0)
    expected = F.cross_entropy(of_plain, labels)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7 if softmax else 1e-12)
    [found] = torch.autograd.grad(loss, x)
    [gradient] = torch.autograd.grad(expected, plain)
    assert (found - gradient).abs().max() < 1e-6 * gradient.abs().max()
    probabilities = exact.probabilities(x.detach())
    assert torch.allclose(probabilities, plain.detach().softmax(1), rtol=1e-14, atol=0)
    order = torch.randperm(512)
    assert exact.cross_entropy(outputs[order], labels[order]).item() == loss.item()
