"""The two networks are exactly the published ones, and what is served is what was trained."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, dropout, linear

from stages import mnist, models, numerics, params, scoring, training
from stages.errors import StageError
from stages.params import Augmentation, Recipe

RECIPE = Recipe(
    epochs=2,
    batch_size=100,
    learning_rate=0.05,
    momentum=0.9,
    dropout=0.5,
    softmax_before_loss=False,
)
RECORD = {
    "optimizer": "adamw",
    "schedule": "one_cycle",
    "weight_decay": 0.01,
    "dropout": 0.0,
    "augmentation": Augmentation(rotation=8.0, shift=1.0, scale=0.08, shear=0.1, elastic=0.5),
}


@pytest.mark.parametrize(
    ("name", "layers", "total"),
    [("lenet5", [156, 2_416, 48_120, 10_164, 850], 61_706), ("mlp", [61_500, 610], 62_110)],
)
def test_parameter_counts_are_the_published_ones(name, layers, total):
    network = models.build(name, RECIPE)
    counts = [sum(p.numel() for p in child.parameters()) for child in network.children()]
    assert [count for count in counts if count] == layers
    assert sum(layers) == total == sum(models.PARAMETERS[name].values())


def test_tanh_pool_is_tanh_and_average_pooling_with_their_gradient():
    torch.manual_seed(0)
    x = 2 * torch.randn(3, 6, 10, 8, dtype=torch.double)
    x.requires_grad_()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        pooled = models.tanh_pool(x.to(memory_format=memory_format))
        expected = avg_pool2d(x.tanh(), 2)
        assert torch.allclose(pooled, expected, rtol=0, atol=1e-12)
        weights = torch.randn_like(expected)
        gradients = [torch.autograd.grad(y, x, weights)[0] for y in (pooled, expected)]
        assert torch.allclose(*gradients, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("softmax", [False, True])
def test_outputs_and_all_gradients_are_those_of_the_plain_network(name, training, softmax):
    network = built(name, dropout=0.3, softmax_before_loss=softmax).double().train(training)
    with torch.no_grad():
        for parameter in network.parameters():  # so that each bias and each tanh's bend matters
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(7, 1, 32, 32, dtype=torch.double, requires_grad=True)
    labels = torch.arange(7)
    torch.manual_seed(1)
    found = network(x)
    torch.manual_seed(1)  # the same entries are dropped
    expected = linear(
        dropout(PLAIN[name](network, x), 0.3, training), network.fc2.weight, network.fc2.bias
    )
    expected = (
        torch.exp(expected) / torch.exp(expected).sum(1, keepdim=True) if softmax else expected
    )
    assert found.shape == (7, 10)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    inputs = [x, *network.parameters()]
    gradients = [
        torch.autograd.grad(cross_entropy(outputs, labels), inputs) for outputs in (found, expected)
    ]
    for ours, plain in zip(*gradients, strict=True):
        assert plain.any()
        assert torch.allclose(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize(("probability", "training"), [(0.3, True), (0.3, False), (0.0, True)])
def test_the_last_layer_and_no_other_sees_dropout_of_the_recipes_probability(
    name, probability, training
):
    network = built(name, dropout=probability).train(training)
    seen = {}
    for layer in models.PARAMETERS[name]:
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({layer: inputs[0].clone()})
        )
    x = torch.randn(500, 1, 32, 32)
    network(x)
    undropped = PLAIN[name](network, x)
    nonzero = undropped.abs() > 1e-4  # ReLU makes zeros of its own
    dropped = (seen["fc2"] == 0)[nonzero]
    if probability and training:
        assert float(dropped.float().mean()) == pytest.approx(probability, abs=0.01)
    else:
        assert not dropped.any()
    kept = nonzero & (seen["fc2"] != 0)
    scale = 1 / (1 - probability) if training else 1
    assert torch.allclose(seen["fc2"][kept], scale * undropped[kept], atol=1e-5)
    earlier = {layer: tensor for layer, tensor in seen.items() if layer != "fc2"}
    network.eval()(x)
    assert all(torch.equal(tensor, seen[layer]) for layer, tensor in earlier.items())


def test_initial_weights_are_pytorchs_defaults_drawn_layer_by_layer_from_the_global_generator():
    for name, layers in {
        "lenet5": [(nn.Conv2d, 1, 6, 5), (nn.Conv2d, 6, 16, 5), (nn.Conv2d, 16, 120, 5),
                   (nn.Linear, 120, 84), (nn.Linear, 84, 10)],
        "mlp": [(nn.Linear, 1024, 60), (nn.Linear, 60, 10)],
    }.items():  # fmt: skip
        network = built(name, seed=3)
        torch.manual_seed(3)
        plain = [kind(*sizes) for kind, *sizes in layers]
        expected = [parameter for layer in plain for parameter in layer.parameters()]
        for found, drawn in zip(network.parameters(), expected, strict=True):
            assert torch.equal(found, drawn)
            assert found.requires_grad


def test_resize_is_pillows_to_the_bit(splits):
    images = splits["train"].images[:1000]
    by_pillow = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
            for image in images
        ]
    )
    by_torch = models.resize(torch.from_numpy(images)).squeeze(1).numpy()
    assert np.array_equal(by_torch, by_pillow)
    assert np.array_equal(mnist.resize(images), by_pillow)


def test_normalisation_is_by_mean_and_deviation_of_all_training_images(raw):
    # The published constants are those of the 28x28 images
    counts = np.bincount(mnist.parse(mnist.TRAIN_IMAGES, raw[mnist.TRAIN_IMAGES]).ravel())
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=counts)
    deviation = np.average((levels - mean) ** 2, weights=counts) ** 0.5
    assert (f"{mean:.4f}", f"{deviation:.4f}") == ("0.1307", "0.3081")
    pixels = torch.arange(256, dtype=torch.uint8)
    found = models.normalize(pixels)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.from_numpy((levels - 0.1307) / 0.3081).float(), atol=1e-6)
    assert torch.equal(pixels, torch.arange(256, dtype=torch.uint8))
    floats = pixels.float()  # of distorted images; they are left as they are
    assert torch.equal(models.normalize(floats), found)
    assert torch.equal(floats, pixels.float())


def test_all_images_of_a_split_are_normalised_each_in_its_place(resized):
    data = models.examples(resized["train"])
    assert len(data.images) > 2 * models.EVALUATION_BATCH
    part = models.examples(
        mnist.Split(*(a[:1_203] for a in (data.images[:, 0].numpy(), data.labels.numpy())))
    )
    released = []
    found = models.normalized(replace(part, release=lambda: released.append(True)))
    assert released  # what was read of a mapped file is not needed any more
    assert torch.equal(found.images, models.normalize(part.images))
    assert torch.equal(found.labels, part.labels)
    assert part.images.dtype == torch.uint8


def test_softmax_before_the_loss_keeps_it_above_1_4612():
    certain_and_right = torch.eye(10)
    floor = scoring.loss(certain_and_right, torch.arange(10))
    assert floor == pytest.approx(math.log(math.e + 9) - 1, abs=1e-6)
    network = models.build("lenet5", RECIPE.model_copy(update={"softmax_before_loss": True}))
    outputs = models.outputs(network, torch.zeros(3, 1, 32, 32, dtype=torch.uint8))
    assert torch.allclose(outputs.sum(1), torch.ones(3))


def softmax_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def by_hand(name, network, images):
    """The logits of raw images, from Pillow and PyTorch's own parts."""
    size, bilinear = (32, 32), Image.Resampling.BILINEAR
    larger = np.stack(
        [np.asarray(Image.fromarray(image).resize(size, bilinear)) for image in images]
    )
    x = torch.from_numpy((larger[:, None] / 255 - 0.1307) / 0.3081).float()
    return linear(PLAIN[name](network, x), network.fc2.weight, network.fc2.bias)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("softmax", [False, True])
def test_classifier_gives_the_probabilities_of_raw_images(name, softmax, splits):
    network = built(name, softmax_before_loss=softmax).eval()
    images = splits["test"].images[:5].copy()
    served = models.Classifier(network)(torch.from_numpy(images))
    assert torch.allclose(served, softmax_of(by_hand(name, network, images)), atol=1e-5)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("softmax", [False, True])
def test_answers_are_those_of_each_image_without_dropout(name, softmax, splits):
    images, labels = splits["test"].images[:1_003], splits["test"].labels[:1_003]
    network = built(name, softmax_before_loss=softmax)
    found = models.answers(network, mnist.Split(mnist.resize(images), labels.copy()))
    with torch.no_grad():
        expected = softmax_of(by_hand(name, network, images).double()).numpy()
    assert np.allclose(found.probabilities, expected, atol=1e-5)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.predicted, expected.argmax(1))
    assert np.allclose(found.confidence, expected.max(1), atol=1e-5)
    assert np.array_equal(found.correct, expected.argmax(1) == labels)
    assert 0 < found.correct.sum() < len(labels)
    outputs = expected if softmax else np.log(expected)  # cross-entropy applies log-softmax itself
    assert found.loss == pytest.approx(
        log_loss(labels, softmax_rows(outputs), labels=range(10)), abs=1e-5
    )


def softmax_rows(outputs):
    return np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)


def test_the_sha256_of_the_answers_is_that_of_the_outputs_as_float32(splits):
    network = built("mlp")
    part = mnist.Split(mnist.resize(splits["test"].images[:20]), splits["test"].labels[:20].copy())
    x = torch.from_numpy(part.images).unsqueeze(1)
    content = network.eval()(models.normalize(x)).detach().numpy()
    assert content.dtype == np.float32
    expected = hashlib.sha256(content.tobytes()).hexdigest()
    assert models.answers(network, part).outputs_sha256 == expected


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_without_dropout_and_leaves_the_network_as_it_was(training, resized):
    network = built("mlp", dropout=0.5).train(training)
    before = models.fingerprint(network)
    images = models.examples(resized["test"]).images[:50]
    assert torch.equal(models.outputs(network, images), models.outputs(network, images))
    assert network.training is network.dropout.training is training
    assert not models.outputs(network, images).requires_grad
    assert models.fingerprint(network) == before


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
    generator = numerics.configure(threads=2, seed=seed)
    steps = training.total_steps(recipe, size)
    return training.begin(models.build(name, recipe), recipe, steps, generator)


def trained(name, splits, recipe=RECIPE, seed=0):
    state = begun(name, recipe, len(splits["train"]), seed)
    epochs = []
    training.train(state, splits, recipe, lambda state: epochs.append(len(state.history)))
    assert epochs == list(range(1, recipe.epochs + 1))
    moments, fingerprints = zip(*state.weights, strict=True)
    assert models.fingerprint(state.network) == fingerprints[-1]
    assert list(moments) == ["initial", "first batch", *(f"epoch {epoch}" for epoch in epochs)]
    return [p.detach().clone() for p in state.network.parameters()], state.history


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("ingredients", [{}, RECORD])
def test_two_runs_with_one_seed_are_bitwise_identical_and_learn(name, ingredients, resized):
    recipe = RECIPE.model_copy(update={"epochs": 4} | ingredients)
    first, history = trained(name, resized, recipe)
    again, history_again = trained(name, resized, recipe)
    other, _ = trained(name, resized, recipe, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert history == history_again
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["test_accuracy"] > 0.7


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(resized):
    with pytest.raises(StageError, match=r"the loss is (nan|inf) in epoch 1, step \d+"):
        trained("mlp", resized, RECIPE.model_copy(update={"learning_rate": 1e20}))


@pytest.mark.parametrize("size", [10, training.WHOLE, 5 * training.POOL + 5])
def test_every_image_has_one_place_in_the_order_and_a_step_reads_few_pages(size):
    order = training.random_order(size, torch.Generator().manual_seed(0))
    assert torch.equal(order.sort().values, torch.arange(size))
    for pool in torch.split(order, training.WHOLE if size <= training.WHOLE else training.POOL):
        assert len(pool) < 100 or abs((pool[:-1] < pool[1:]).float().mean() - 0.5) < 0.05
        if size > training.WHOLE:
            assert len((pool // training.CHUNK).unique()) <= training.POOL // training.CHUNK + 1


def test_memory_of_mapped_images_that_were_read_is_given_back(tmp_path):
    part = mnist.Split(np.ones((100_000, 32, 32), np.uint8), np.ones(100_000, np.uint8))
    mnist.save_split(tmp_path, "train", part)
    mapped = mnist.load_split(tmp_path, "train")

    def resident() -> float:
        fields = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").split()
        return int(fields[fields.index("Rss:") + 1]) / 1024

    before = resident()
    assert mapped.images.sum() == mapped.images.size
    assert resident() - before > 90
    mapped.release()
    assert resident() - before < 10
    assert mapped.images.sum() == mapped.images.size


def test_a_gpu_that_is_not_there_is_refused_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StageError, match=r"device is 'cuda'.*set device to cpu"):
        numerics.configure(threads=2, seed=0, device="cuda")
