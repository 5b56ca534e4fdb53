"""A training follows its recipe: against plain loops, formulas by hand and the settings."""

import copy
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_models import PLAIN
from torch.nn.functional import linear
from torch.optim.lr_scheduler import OneCycleLR
from trainings import ADAMW, SGD, begun, garbage, script, trained

import dvc_mlflow
from dvc_kit.files import sha256
from stages import train
from stages.base import files, params
from stages.base.splits import Split
from stages.learn import optimizers, resume, training
from stages.networks import models


@pytest.fixture(autouse=True)
def one_thread(settings_of_torch):
    torch.set_num_threads(1)


def inputs(part):
    pixels = torch.from_numpy(part.images.copy()).float().unsqueeze(1)
    return pixels - 33, torch.from_numpy(part.labels.copy()).long()


# Optimizer and schedule


@pytest.mark.parametrize("steps", [1, 9, 40, 2_360])
def test_the_rate_of_one_cycle_is_pytorchs_to_the_bit(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    cycle = OneCycleLR(
        optimizer, 0.037, steps, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    for step in range(steps):
        assert optimizers.one_cycle(0.037, steps, step) == cycle.get_last_lr()[0]
        optimizer.step()
        cycle.step()


# An epoch


@pytest.mark.parametrize("size", [16, 17, 67, 200])
def test_any_image_may_come_first_in_an_order_and_a_pool_reads_few_chunks(monkeypatch, size):
    for name, value in {"WHOLE": 16, "POOL": 32, "CHUNK": 4}.items():
        monkeypatch.setattr(training, name, value)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([training.random_order(size, generator) for _ in range(400)])
    assert torch.equal(drawn.sort(1).values, torch.arange(size).expand(400, -1))
    assert float(drawn[:, 0].float().mean()) == pytest.approx((size - 1) / 2, abs=0.08 * size)
    assert drawn[:, 0].min() < 0.1 * size
    assert drawn[:, 0].max() > 0.9 * size - 1
    assert len(drawn[:, :2].unique(dim=0)) > 100
    if size > 16:
        assert all(len((pool // 4).unique()) <= 32 // 4 + 1 for pool in drawn[0].split(32))


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


def test_a_split_that_is_empty_or_not_there_is_not_scored(small):
    empty = Split(np.empty((0, 32, 32), np.uint8), np.empty(0, np.uint8))
    for splits in (small | {"validation": empty}, {key: small[key] for key in ("train", "test")}):
        state = trained(splits, SGD)
        columns = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
        assert [list(row) for row in state.history] == [columns] * 2


# No leak


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
    assert said == {"weights": files.fingerprint_lines(plain.weights)}
    columns = files.read_csv(files.history_path(name))
    assert columns == {key: [row[key] for row in plain.history] for key in plain.history[0]}
    assert [line.split("  ")[0] for line in shown.out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert f"`dvc repro train_{name}`" in shown.err  # it was not started by DVC
    garbled = {key: garbage(small[key]) for key in ("validation", "test")}
    stage(train, small | garbled, name)
    assert files.model_path(name).read_bytes() == expected


def test_the_train_stage_shows_each_epoch_in_the_run_of_its_name(stage, small, monkeypatch):
    runs = {}

    @contextmanager
    def run(name):
        rows = runs[name] = []
        yield SimpleNamespace(log_epoch=lambda row: rows.append(dict(row)))

    monkeypatch.setattr(dvc_mlflow, "run", run)
    stage(train, small, "mlp")
    assert runs == {"train_mlp": trained(small, SGD, seed=0).history}


def test_a_line_has_an_epochs_known_scores_of_each_split():
    row = {"epoch": 7, "train_loss": 0.12345, "train_accuracy": 0.9876}
    assert resume.line(row, 8) == "epoch 7/8  train loss 0.1235 accuracy 98.76%"
    row |= {"test_loss": 1.0, "test_accuracy": 1.0, "validation_loss": 2.0}
    row |= {"validation_accuracy": 0.5}
    assert resume.line(row, 100) == (
        "epoch   7/100  train loss 0.1235 accuracy 98.76%,  validation loss 2.0000 accuracy "
        "50.00%,  test loss 1.0000 accuracy 100.00%"
    )
