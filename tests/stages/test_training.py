"""A training follows its recipe: against plain loops, formulas by hand and the settings."""

import copy
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_models import PLAIN
from torch.nn.functional import cross_entropy, linear
from trainings import ADAMW, SGD, begun, garbage, script, trained

import dvc_mlflow
from dvc_mlflow.files import sha256
from stages import train
from stages.base import files, params
from stages.base.params import Augmentation
from stages.base.splits import Split
from stages.learn import augmentation, optimizers, resume, training
from stages.networks import models

ONE_CYCLE = {"schedule": "one_cycle"}


@pytest.fixture(autouse=True)
def one_thread(settings_of_torch):
    torch.set_num_threads(1)


def inputs(part):
    pixels = torch.from_numpy(part.images.copy()).float().unsqueeze(1)
    return pixels - 33, torch.from_numpy(part.labels.copy()).long()


# Optimizer and schedule


def the_group(state):
    [group] = state.optimizer.param_groups
    trained = {id(parameter) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in state.network.parameters()}
    return group


def test_sgd_has_the_settings_of_the_recipe():
    state = begun(SGD, 150)
    group = the_group(state)
    assert type(state.optimizer) is optimizers.SGD
    assert group["lr"] == 0.037
    assert group["momentum"] == 0.83
    assert group["weight_decay"] == 0.021


def test_adamw_has_the_settings_of_the_recipe():
    state = begun(ADAMW, 150)
    group = the_group(state)
    assert type(state.optimizer) is optimizers.AdamW
    assert group["lr"] == 0.037
    assert group["betas"] == (0.83, 0.999)
    assert group["weight_decay"] == 0.23


@pytest.mark.parametrize("recipe", [SGD, ADAMW])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_optimizers_step_as_pytorchs_own_do(recipe, schedule):
    recipe = recipe.model_copy(update={"schedule": schedule, "epochs": 5})
    state = begun(recipe, 150, "lenet5")
    theirs = copy.deepcopy(state.network)
    if recipe.optimizer == "sgd":
        plain = torch.optim.SGD(theirs.parameters(), 0.037, momentum=0.83, weight_decay=0.021)
    else:
        plain = torch.optim.AdamW(theirs.parameters(), 0.037, (0.83, 0.999), weight_decay=0.23)
    for _ in range(10):
        [group] = plain.param_groups
        group["lr"] = the_group(state)["lr"]
        for ours, weight in zip(state.network.parameters(), theirs.parameters(), strict=True):
            weight.grad = torch.randn_like(weight) * 10 ** (4 * torch.rand(1) - 3)
            ours.grad = weight.grad.clone()
        state.optimizer.step()
        state.scheduler.step()
        plain.step()
        for ours, weight in zip(state.network.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(ours, weight, rtol=0, atol=1e-6)


def steps(recipe, gradients):
    """A weight of 1.0 after each of these gradients."""
    state = begun(recipe, 150)
    weight = state.network.fc2.bias
    values = []
    with torch.no_grad():
        weight.fill_(1.0)
    for gradient in gradients:
        for each in state.network.parameters():
            each.grad = torch.full_like(each, gradient)
        state.optimizer.step()
        values.append(float(weight.detach()[0]))
    return values


def test_steps_of_sgd_are_those_of_its_formula():
    weight, velocity, expected = 1.0, 0.0, []
    for gradient in (0.5, -0.25, 2.0):
        velocity = 0.83 * velocity + gradient + 0.021 * weight
        weight -= 0.037 * velocity
        expected.append(weight)
    assert steps(SGD, (0.5, -0.25, 2.0)) == pytest.approx(expected, rel=1e-6)


def test_steps_of_adamw_are_those_of_its_formula():
    weight, first, second, expected = 1.0, 0.0, 0.0, []
    for step, gradient in enumerate((0.5, -0.25, 2.0), start=1):
        first = 0.83 * first + 0.17 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight *= 1 - 0.037 * 0.23
        weight -= 0.037 * (first / (1 - 0.83**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
        expected.append(weight)
    assert steps(ADAMW, (0.5, -0.25, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_an_epochs_steps_are_its_batches_the_last_one_included():
    recipe = SGD.model_copy(update={"epochs": 7, "batch_size": 32})
    for images, batches in {31: 1, 32: 1, 33: 2, 64: 2, 150: 5}.items():
        assert training.total_steps(recipe, images) == 7 * batches


def used_rates(splits, recipe):
    """The learning rate and the first beta of each step of a training."""
    state = begun(recipe, len(splits["train"]))
    rates, momenta = [], []

    def note(optimizer, *_):
        [group] = optimizer.param_groups
        rates.append(group["lr"])
        momenta.append(group["betas"][0] if "betas" in group else group["momentum"])

    state.optimizer.register_step_pre_hook(note)
    list(training.epochs(state, splits, recipe))
    assert set(momenta) == {0.83}
    return rates


@pytest.mark.parametrize("recipe", [SGD, ADAMW])
def test_a_constant_schedule_is_constant(small, recipe):
    assert used_rates({"train": small["train"]}, recipe) == [0.037] * 10


@pytest.mark.parametrize("recipe", [SGD, ADAMW])
def test_one_cycle_rises_over_a_tenth_of_all_steps_and_falls_to_0_in_straight_lines(small, recipe):
    recipe = recipe.model_copy(update=ONE_CYCLE | {"epochs": 2, "batch_size": 4})
    part = {"train": Split(small["train"].images[:79], small["train"].labels[:79])}
    rates = used_rates(part, recipe)
    assert len(rates) == 40  # as many as the schedule was made for
    up, down = np.array(rates[:4]), np.array(rates[3:])
    assert max(rates) == rates[3] == pytest.approx(0.037)
    assert up[0] == pytest.approx(0.037 / 25)
    assert np.diff(up) == pytest.approx([(0.037 - 0.037 / 25) / 3] * 3)
    assert np.diff(down) == pytest.approx([np.diff(down).mean()] * 36)
    assert 0 < rates[-1] < 1e-5


# The order of the images


def orders(splits, recipe, seed):
    """The first pixel, which is its number, of each image in each epoch's order."""
    seen, batches = [[]], seen_batches()
    with batches as batch_list:
        trained(splits, recipe, seed=seed, on_epoch=lambda state: seen.append([]))
    flat = [number for batch in batch_list for number in batch]
    size = len(splits["train"])
    assert len(flat) == recipe.epochs * size
    return [flat[start : start + size] for start in range(0, len(flat), size)]


@contextmanager
def seen_batches():
    """The numbers of the images in each batch that a network was given in training mode."""
    batches = []

    def note(network, arguments):
        if network.training:
            batches.append((arguments[0][:, 0, 0, 0] + 33).int().tolist())

    built = models.build

    def build(*arguments):
        network = built(*arguments)
        network.register_forward_pre_hook(note)
        return network

    models.build = build
    try:
        yield batches
    finally:
        models.build = built


def numbered(size):
    images = np.zeros((size, 32, 32), np.uint8)
    images[:, 0, 0] = np.arange(size)
    return {"train": Split(images, np.arange(size, dtype=np.uint8) % 10)}


@pytest.mark.parametrize(("whole", "pool", "chunk"), [(2**16, 2**14, 2**7), (20, 16, 4)])
def test_each_epoch_has_every_image_once_in_a_new_order_that_the_seed_gives(
    monkeypatch, whole, pool, chunk
):
    for name, value in {"WHOLE": whole, "POOL": pool, "CHUNK": chunk}.items():
        monkeypatch.setattr(training, name, value)
    part, recipe = numbered(61), SGD.model_copy(update={"epochs": 3, "batch_size": 8})
    first = orders(part, recipe, seed=0)
    assert all(sorted(order) == list(range(61)) for order in first)
    assert len({tuple(order) for order in [*first, range(61)]}) == 4
    assert orders(part, recipe, seed=0) == first
    other = orders(part, recipe, seed=1)
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("size", [16, 17, 64, 65, 67, 200])
def test_a_large_order_mixes_whole_chunks_within_pools(monkeypatch, size):
    for name, value in {"WHOLE": 16, "POOL": 32, "CHUNK": 4}.items():
        monkeypatch.setattr(training, name, value)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([training.random_order(size, generator) for _ in range(400)])
    assert torch.equal(drawn.sort(1).values, torch.arange(size).expand(400, -1))
    if size > 16:
        for order in drawn[:20]:
            full = [pool // 4 for pool in torch.split(order, 32) if len(pool) == 32]
            assert all(len(chunks.unique()) <= 9 for chunks in full)
    # Any image may come first, and comes first about as often as another one
    assert float(drawn[:, 0].float().mean()) == pytest.approx((size - 1) / 2, abs=0.08 * size)
    assert drawn[:, 0].min() < 0.1 * size
    assert drawn[:, 0].max() > 0.9 * size - 1
    assert len(drawn[:, :2].unique(dim=0)) > 100  # neighbours are parted


# An epoch


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("softmax", [False, True])
def test_an_epoch_is_that_of_a_plain_loop(small, name, recipe, softmax):
    recipe = recipe.model_copy(update={"softmax_before_loss": softmax})
    state = begun(recipe, 150, name)
    network = copy.deepcopy(state.network).double()
    network.train()
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[recipe.optimizer]
    momentum = {"betas": (0.83, 0.999)} if recipe.optimizer == "adamw" else {"momentum": 0.83}
    weight_decay, rate = recipe.weight_decay, recipe.learning_rate
    optimizer = kind(network.parameters(), lr=rate, weight_decay=weight_decay, **momentum)

    images, labels = inputs(small["train"])
    images = images.double() / (255 * 0.3081)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(9))
    losses, right = [], 0
    for start in range(0, 150, 32):
        batch = order[start : start + 32]
        outputs = linear(PLAIN[name](network, images[batch]), *network.fc2.parameters())
        outputs = outputs.softmax(1) if softmax else outputs
        logs = outputs - outputs.exp().sum(1, keepdim=True).log()
        of_label = logs[torch.arange(len(batch)), labels[batch]]
        losses += (-of_label).tolist()
        right += int((outputs.argmax(1) == labels[batch]).sum())
        optimizer.zero_grad()
        (-of_label.mean()).backward()
        optimizer.step()

    before = [weight.detach().clone() for weight in state.network.parameters()]
    row = training.train_epoch(state, models.examples(small["train"]), order, recipe, 1)
    assert len(losses) == 150
    assert row["train_loss"] == pytest.approx(sum(losses) / 150, rel=0.01)
    assert row["train_accuracy"] == pytest.approx(right / 150, abs=0.03)
    pairs = zip(before, state.network.parameters(), network.parameters(), strict=True)
    for start, found, expected in pairs:  # Adam enlarges the rounding of small gradients
        moved = (expected - start).norm()
        assert moved > 0
        assert (found - expected).norm() < (0.15 if recipe.optimizer == "adamw" else 0.02) * moved


def test_an_epoch_takes_each_image_in_the_order_that_it_is_given(small):
    state = begun(SGD, 150)
    seen = []
    state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(9))[:70]
    state.optimizer.param_groups[0]["lr"] = (
        0.0  # the network stays as it is, so that its outputs are those afterwards
    )
    row = training.train_epoch(state, models.examples(small["train"]), order, SGD, 1)
    images, labels = inputs(small["train"])
    assert [len(batch) for batch in seen] == [32, 32, 6]
    assert torch.allclose(torch.cat(seen), images[order], atol=1e-6)
    with torch.no_grad():
        outputs = state.network(images[order])
    assert row["train_loss"] == pytest.approx(
        float(cross_entropy(outputs, labels[order])), rel=1e-5
    )
    assert row["train_accuracy"] == pytest.approx(models.accuracy(outputs, labels[order]))


def test_distorted_images_are_normalised_and_new_in_each_epoch(small):
    settings = Augmentation(rotation=9.0, shift=1.0, scale=0.1, shear=0.1, elastic=0.5)
    recipe = SGD.model_copy(update={"augmentation": settings, "batch_size": 150, "epochs": 2})
    state = begun(recipe, 150)
    seen = []
    state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    list(training.epochs(state, {"train": small["train"]}, recipe))
    images = torch.from_numpy(small["train"].images).unsqueeze(1)
    for batch in seen:
        order = torch.randperm(150, generator=generator)
        distorted = augmentation.distort(images[order], settings, generator)
        assert torch.equal(batch, distorted - 33)
    assert len(seen) == 2


def test_without_distortions_the_images_are_as_they_are(small):
    part = {"train": Split(small["train"].images[:1], small["train"].labels[:1])}
    state, seen = begun(SGD, 1), []
    state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    list(training.epochs(state, part, SGD))
    assert len(seen) == 2
    for batch in seen:
        assert torch.equal(batch, inputs(part["train"])[0])


@pytest.mark.parametrize(("whole", "expected"), [(150, []), (149, [3, 6, 9])])
def test_of_more_images_than_whole_the_memory_is_freed_once_a_pool(
    small, monkeypatch, whole, expected
):
    """150 images in 10 steps of 16; a pool of 48 is read in 3 steps."""
    monkeypatch.setattr(training, "WHOLE", whole)
    monkeypatch.setattr(training, "POOL", 48)
    recipe = SGD.model_copy(update={"batch_size": 16})
    state, steps, released = begun(recipe, 150), [], []
    state.optimizer.register_step_post_hook(lambda *_: steps.append(None))
    data = replace(models.examples(small["train"]), release=lambda: released.append(len(steps)))
    training.train_epoch(state, data, torch.arange(150), recipe, 1)
    assert released == expected
    # A batch that is larger than a pool is let go of at once
    released.clear()
    training.train_epoch(
        state, data, torch.arange(150), SGD.model_copy(update={"batch_size": 75}), 1
    )
    assert len(released) == (2 if expected else 0)


def test_dropout_is_on_in_every_epoch_of_a_training(small):
    recipe = SGD.model_copy(update={"dropout": 0.5, "epochs": 3, "batch_size": 150})
    state = begun(recipe, 150)
    modes = []
    state.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    list(training.epochs(state, small, recipe))
    assert modes == [True, False, False] * 3  # a batch, then the validation and the test images


# The records of a training


def test_each_column_of_the_history_holds_the_score_that_it_names(small):
    recipe = SGD.model_copy(update={"dropout": 0.4, "epochs": 3})
    nets, rows = [], []

    def on_epoch(state):
        nets.append(copy.deepcopy(state.network))
        rows.append(dict(state.history[-1]))

    state = trained(small, recipe, "lenet5", on_epoch=on_epoch)
    assert rows == state.history
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    columns = ["epoch", *(f"{split}_{score}" for split in ("train", "validation", "test")
                          for score in ("loss", "accuracy"))]  # fmt: skip
    for network, row in zip(nets, rows, strict=True):
        assert list(row) == columns
        network.eval()
        for split in ("validation", "test"):
            images, labels = inputs(small[split])
            with torch.no_grad():
                outputs = network(images)
            loss = float(cross_entropy(outputs, labels))
            share = float((outputs.argmax(1) == labels).double().mean())
            assert row[f"{split}_loss"] == pytest.approx(loss, rel=2e-5)
            assert row[f"{split}_accuracy"] == pytest.approx(share, rel=2e-6)


def test_an_epoch_is_trained_when_its_row_is_asked_for_and_not_before(small):
    recipe = SGD.model_copy(update={"epochs": 3})
    expected = trained(small, recipe)
    state, steps = begun(recipe, 150), []
    state.optimizer.register_step_post_hook(lambda *_: steps.append(None))
    rows = training.epochs(state, small, recipe)
    assert (len(steps), state.weights) == (0, [])
    for epoch in (1, 2):
        assert next(rows) is state.history[-1]
        assert (len(steps), len(state.history)) == (5 * epoch, epoch)
    rows.close()
    # Another iterator yields the epochs that the state lacks, and no other
    [last] = training.epochs(state, small, recipe)
    assert last == expected.history[-1]
    assert state.history == expected.history
    assert state.weights == expected.weights
    assert list(training.epochs(state, small, recipe)) == []


def test_a_split_that_is_empty_or_not_there_is_not_scored(small):
    empty = Split(np.empty((0, 32, 32), np.uint8), np.empty(0, np.uint8))
    for splits in (small | {"validation": empty}, {key: small[key] for key in ("train", "test")}):
        state = trained(splits, SGD)
        columns = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
        assert [list(row) for row in state.history] == [columns] * 2


def test_losses_of_training_are_those_before_each_update(small):
    recipe = SGD.model_copy(update={"epochs": 1, "batch_size": 150, "learning_rate": 5.0})
    state = begun(recipe, 150)
    images, labels = inputs(small["train"])
    with torch.no_grad():
        outputs = state.network(images)
    list(training.epochs(state, small, recipe))
    [row] = state.history
    assert row["train_loss"] == pytest.approx(float(cross_entropy(outputs, labels)), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(models.accuracy(outputs, labels), rel=1e-5)
    assert row["train_loss"] != pytest.approx(row["test_loss"], rel=0.1)


def test_fingerprints_are_those_of_the_weights_before_training_after_a_batch_and_each_epoch(small):
    recipe = SGD.model_copy(update={"batch_size": 50})
    state = begun(recipe, 150)
    moments = [models.fingerprint(state.network)]
    state.optimizer.register_step_post_hook(
        lambda *_: moments.append(models.fingerprint(state.network))
    )
    list(training.epochs(state, small, recipe))
    assert len(set(moments)) == 7
    assert state.weights == [
        ("initial", moments[0]),
        ("first batch", moments[1]),
        ("epoch 1", moments[3]),
        ("epoch 2", moments[6]),
    ]


def test_a_fingerprint_is_that_of_the_file_and_notices_the_last_bit(tmp_path):
    network = begun(SGD, 150).network
    models.save_model(network, tmp_path / "model")
    before = models.fingerprint(network)
    assert before == sha256((tmp_path / "model").read_bytes())
    with torch.no_grad():
        weight = network.fc2.bias[3]
        weight.copy_(torch.nextafter(weight, torch.tensor(9.0)))
    assert models.fingerprint(network) != before


def test_another_seed_is_another_training_and_the_same_is_the_same(small):
    for name in params.MODEL_NAMES:
        first, again, other = (trained(small, SGD, name, seed) for seed in (0, 0, 1))
        assert first.weights == again.weights
        assert first.history == again.history
        assert not {sha for _, sha in first.weights} & {sha for _, sha in other.weights}


# No leak


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5, "optimizer": "adamw"}])
def test_validation_and_test_images_cannot_reach_training(small, name, settings):
    recipe = SGD.model_copy(update=settings)
    expected = trained(small, recipe, name)
    ours = [f"train_{score}" for score in ("loss", "accuracy")]
    for other in (
        small | {"test": garbage(small["test"])},
        small | {"validation": garbage(small["validation"])},
        {"train": small["train"]},
    ):
        found = trained(other, recipe, name)
        assert found.weights == expected.weights
        assert all([a[key] for key in ours] == [b[key] for key in ours]
                   for a, b in zip(found.history, expected.history, strict=True))  # fmt: skip
    other = trained(small | {"train": garbage(small["train"])}, recipe, name)
    assert other.weights[-1] != expected.weights[-1]


@pytest.fixture
def stage(monkeypatch, tmp_path):
    return script(monkeypatch, tmp_path)


@pytest.mark.parametrize(("name", "recipe"), [("lenet5", ADAMW), ("mlp", SGD)])
def test_the_train_stage_trains_on_the_train_split_alone(stage, small, name, recipe, capsys):
    settings = stage(train, small, name)
    shown = capsys.readouterr()
    expected = files.model_path(name).read_bytes()
    plain = trained(small, recipe, name, settings.seed)
    assert sha256(expected) == plain.weights[-1][1]
    said = json.loads(files.training_path(name).read_text())
    assert said["train_loss"] == [plain.history[-1]["train_loss"]]
    assert said["train_accuracy"] == [plain.history[-1]["train_accuracy"]]
    assert files.read_fingerprints(said["weights"]) == dict(plain.weights)
    columns = files.read_csv(files.history_path(name))
    assert columns == {key: [row[key] for row in plain.history] for key in plain.history[0]}
    assert [line.split("  ")[0] for line in shown.out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert f"`dvc repro train_{name}`" in shown.err  # it was not started by DVC
    garbled = {key: garbage(small[key]) for key in ("validation", "test")}
    stage(train, small | garbled, name)
    assert files.model_path(name).read_bytes() == expected


class Noted:
    """A run in MLflow that notes the epochs that it is shown."""

    def __init__(self, stage):
        self.stage, self.rows = stage, []

    def log_epoch(self, row):
        self.rows.append(dict(row))


def test_the_train_stage_shows_each_epoch_in_the_run_of_its_name(stage, small, monkeypatch):
    runs = []

    @contextmanager
    def run(name):
        runs.append(Noted(name))
        yield runs[-1]

    monkeypatch.setattr(dvc_mlflow, "run", run)
    stage(train, small, "mlp")
    [noted] = runs
    assert noted.stage == "train_mlp"
    assert noted.rows == trained(small, SGD, seed=0).history


def test_a_line_has_an_epochs_known_scores_of_each_split():
    row = {"epoch": 7, "train_loss": 0.12345, "train_accuracy": 0.9876}
    assert resume.line(row, 8) == "epoch 7/8  train loss 0.1235 accuracy 98.76%"
    row |= {"test_loss": 1.0, "test_accuracy": 1.0, "validation_loss": 2.0}
    row |= {"validation_accuracy": 0.5}
    assert resume.line(row, 100) == (
        "epoch   7/100  train loss 0.1235 accuracy 98.76%,  validation loss 2.0000 accuracy "
        "50.00%,  test loss 1.0000 accuracy 100.00%"
    )
