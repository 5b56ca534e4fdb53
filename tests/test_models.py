"""The two networks are exactly the published ones, and what is served is what was trained."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from conftest import as_inputs
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


def test_the_matrix_product_of_lenet5_is_its_third_convolution():
    network = models.build("lenet5", RECIPE)
    x = torch.randn(7, 16, 5, 5).to(memory_format=torch.channels_last)
    product = models.rows(x) @ models.rows(network.conv3.weight).T + network.conv3.bias
    assert torch.allclose(product, network.conv3(x).flatten(1), atol=1e-5)


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


def test_normalized_training_images_have_mean_0_and_deviation_1(splits):
    # The published constants are those of the 28x28 images
    pixels = models.normalize(torch.from_numpy(splits["train"].images))
    assert abs(float(pixels.mean())) < 0.02
    assert abs(float(pixels.std()) - 1) < 0.02


def test_softmax_before_the_loss_keeps_it_above_1_4612():
    certain_and_right = torch.eye(10)
    floor = scoring.loss(certain_and_right, torch.arange(10))
    assert floor == pytest.approx(math.log(math.e + 9) - 1, abs=1e-6)
    network = models.build("lenet5", RECIPE.model_copy(update={"softmax_before_loss": True}))
    outputs = models.outputs(network, torch.zeros(3, 1, 32, 32, dtype=torch.uint8))
    assert torch.allclose(outputs.sum(1), torch.ones(3))


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("softmax", [False, True])
def test_classifier_gives_the_probabilities_of_raw_images(name, softmax, splits):
    network = models.build(name, RECIPE.model_copy(update={"softmax_before_loss": softmax})).eval()
    images = torch.tensor(splits["test"].images[:5])
    served = models.Classifier(network)(images)
    assert torch.allclose(served.sum(1), torch.ones(5))
    outputs = models.outputs(network, models.resize(images))
    assert torch.allclose(served, models.probabilities(network, outputs))


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


def test_the_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_to_0(resized):
    recipe = RECIPE.model_copy(update=RECORD)
    generator = numerics.configure(threads=2, seed=0)
    state = training.begin(models.build("mlp", recipe), recipe, 40, generator)
    data = models.examples(resized["train"])
    rates = []
    for step in range(40):
        order = torch.arange(100 * (step % 20), 100 * (step % 20) + 100)
        training.train_epoch(state, data, order, recipe, 2)
        rates.append(state.scheduler.get_last_lr()[0])
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates.index(max(rates)) == 2
    assert rates[-1] < 0.001 * recipe.learning_rate


def test_dropout_is_applied_in_training_and_never_in_scoring(resized):
    network = models.build("mlp", RECIPE)
    images = models.examples(resized["test"]).images[:50]
    batch = models.normalize(images)
    assert not torch.equal(network(batch), network(batch))
    assert torch.equal(models.outputs(network, images), models.outputs(network, images))
    assert network.training


def test_validation_is_scored_where_there_is_one(raw, resized):
    parts = mnist.split(raw, validation_size=500, train_limit=200, seed=0)
    _, history = trained("mlp", as_inputs(parts))
    assert "validation_loss" in history[0]
    _, history = trained("mlp", resized)
    assert "validation_loss" not in history[0]


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
