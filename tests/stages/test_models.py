"""The two networks are exactly the published ones, and the served model is the trained one."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, linear

from conftest import ROOT
from dvc_kit.errors import StageError
from stages.arithmetic import numerics
from stages.base import params
from stages.base.params import Recipe
from stages.base.splits import Split
from stages.learn import training
from stages.mnist import idx
from stages.networks import MODELS, models
from stages.networks.model import Layer

RECIPE = Recipe(
    epochs=2,
    batch_size=100,
    learning_rate=0.05,
    momentum=0.9,
    dropout=0.5,
    softmax_before_loss=False,
)


@pytest.mark.parametrize(
    ("name", "layers", "total"),
    [("lenet5", [156, 2_416, 48_120, 10_164, 850], 61_706), ("mlp", [61_500, 610], 62_110)],
)
def test_parameter_counts_are_the_published_ones(name, layers, total):
    network = models.build(name, RECIPE)
    counts = [sum(p.numel() for p in child.parameters()) for child in network.children()]
    assert counts == layers
    assert total == MODELS[name].parameters


def test_a_model_whose_layer_has_other_counts_than_its_file_says_is_not_built(monkeypatch):
    wrong = {"fc1": Layer("Linear", (1024, 60), 61_501)}
    monkeypatch.setitem(MODELS, "mlp", replace(MODELS["mlp"], layers=wrong))
    with pytest.raises(AssertionError, match=r"mlp.fc1 has 61500 parameters, not 61501"):
        models.build("mlp", RECIPE)


IMPORT = """
import sys
from stages import hooks, plot
from stages.base import params
params.load()
assert "torch" not in sys.modules
"""


def test_names_and_looks_of_models_are_read_without_torch():
    result = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True)
    assert result.returncode == 0, result.stderr


def plain_lenet5(layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The published network of PyTorch's own parts, up to the input of its last layer."""
    x = avg_pool2d(torch.tanh(conv2d(x, layers.conv1.weight, layers.conv1.bias)), 2)
    x = avg_pool2d(torch.tanh(conv2d(x, layers.conv2.weight, layers.conv2.bias)), 2)
    x = torch.tanh(conv2d(x, layers.conv3.weight, layers.conv3.bias)).flatten(1)
    return torch.tanh(linear(x, layers.fc1.weight, layers.fc1.bias))


def plain_mlp(layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return linear(x.reshape(len(x), 1024), layers.fc1.weight, layers.fc1.bias).clamp(min=0)


PLAIN = {"lenet5": plain_lenet5, "mlp": plain_mlp}


def built(name, seed=0, **settings):
    torch.manual_seed(seed)
    return models.build(name, RECIPE.model_copy(update=settings))


def pixels(count):
    """Images, and as PyTorch's own networks take them."""
    whole = torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8)
    return whole, (whole.double() - 33) / (255 * 0.3081)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("softmax", [False, True])
def test_outputs_and_all_gradients_are_those_of_the_plain_network(name, training, softmax):
    network = built(name, dropout=0.3, softmax_before_loss=softmax).train(training)
    with torch.no_grad():
        for parameter in network.parameters():  # so that each bias and each tanh's bend matters
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().max())
    plain = copy.deepcopy(network).double()
    x, normalised = pixels(96)
    labels = torch.arange(96) % 10
    torch.manual_seed(1)
    found = network(x)
    torch.manual_seed(1)  # the same entries are dropped
    hidden = PLAIN[name](plain, normalised)
    if training:
        hidden = hidden * (torch.rand(hidden.shape) >= 0.3) / 0.7
    expected = linear(hidden, plain.fc2.weight, plain.fc2.bias)
    expected = expected.softmax(1) if softmax else expected
    assert found.shape == (96, 10)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0, atol=2e-3)
    gradients = [
        torch.autograd.grad(cross_entropy(outputs, labels), list(net.parameters()))
        for outputs, net in ((found, network), (expected, plain))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        # Random images' gradients cancel out, their rounding does not; test_exact.py has a layer's
        assert 0 < (ours - theirs).norm() < 0.02 * theirs.norm()


def test_resize_is_pillows_to_the_bit(splits):
    images = splits["train"].images[:1000]
    by_torch = models.resize(torch.from_numpy(images)).squeeze(1).numpy()
    assert np.array_equal(by_torch, by_pillow(images))
    assert np.array_equal(idx.resize(images), by_pillow(images))


def by_pillow(images):
    bilinear = Image.Resampling.BILINEAR
    return np.stack([Image.fromarray(image).resize((32, 32), bilinear) for image in images])


def test_normalisation_is_by_mean_and_deviation_of_all_training_images(raw):
    # The published constants are those of the 28x28 images
    counts = np.bincount(idx.read(raw)["train"].images.ravel())
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=counts)
    deviation = np.average((levels - mean) ** 2, weights=counts) ** 0.5
    assert (f"{mean:.4f}", f"{deviation:.4f}") == ("0.1307", "0.3081")
    scaled = (torch.arange(256).double() - models.SHIFT) * models.SCALE  # of about that mean
    assert torch.allclose(scaled, torch.from_numpy((levels - 0.1307) / 0.3081), atol=0.005)


def by_hand(name, network, images):
    """The logits of raw images, from Pillow and PyTorch's own parts."""
    larger = by_pillow(images)
    x = torch.from_numpy((larger[:, None] - 33.0) / (255 * 0.3081)).float()
    return linear(PLAIN[name](network, x), network.fc2.weight, network.fc2.bias)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("softmax", [False, True])
def test_answers_are_those_of_each_raw_image_without_dropout(name, softmax, splits):
    images, labels = splits["test"].images[:1_003].copy(), splits["test"].labels[:1_003].copy()
    network = built(name, softmax_before_loss=softmax)
    found = models.answers(network, Split(idx.resize(images), labels))
    assert network.training
    with torch.no_grad():
        expected = by_hand(name, network, images).double().softmax(1).numpy()
        served = models.Classifier(network.eval())(torch.from_numpy(images[:5]))
    assert np.allclose(served, expected[:5], atol=1e-4)
    assert np.allclose(found.probabilities, expected, atol=1e-4)
    assert np.allclose(found.confidence, expected.max(1), atol=1e-4)
    assert np.array_equal(found.correct, found.probabilities.argmax(1) == labels)
    outputs = np.log(found.probabilities)  # but for a constant, which softmax takes away
    outputs = found.probabilities if softmax else outputs
    loss = cross_entropy(torch.from_numpy(outputs), torch.from_numpy(labels).long())
    assert found.loss == pytest.approx(float(loss), abs=1e-4)  # of outputs


@pytest.mark.parametrize("name", params.MODEL_NAMES)
def test_a_saved_model_comes_back_and_a_damaged_one_is_named_with_its_cure(name, tmp_path):
    network = models.build(name, RECIPE)
    path = tmp_path / "model.safetensors"
    models.save_model(network, path)
    loaded = models.load_model(name, RECIPE, path)
    for before, after in zip(network.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(before, after)

    other = "mlp" if name == "lenet5" else "lenet5"
    with pytest.raises(StageError, match=rf"damaged.*dvc repro train_{other}"):
        models.load_model(other, RECIPE, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StageError, match=rf"damaged.*dvc repro train_{name}"):
        models.load_model(name, RECIPE, path)
    path.unlink()
    with pytest.raises(StageError, match=rf"missing.*dvc repro train_{name}"):
        models.load_model(name, RECIPE, path)


def begun(name, recipe, size=2_000, seed=0):
    generator = numerics.configure(threads=1, seed=seed)
    steps = training.total_steps(recipe, size)
    return training.begin(models.build(name, recipe), recipe, steps, generator)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(resized):
    recipe = RECIPE.model_copy(update={"learning_rate": 1e20})
    with pytest.raises(StageError, match=r"the loss is (nan|inf) in epoch 1, step \d+"):
        list(training.epochs(begun("mlp", recipe), resized, recipe))


def test_a_gpu_that_is_not_there_is_refused_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StageError, match=r"device is 'cuda'.*set device to cpu"):
        numerics.configure(threads=2, seed=0, device="cuda")
