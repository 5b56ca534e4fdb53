"""A training that was stopped goes on from its last finished epoch, to the same bytes."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_models import RECIPE, RECORD
from torch.utils._pytree import tree_map

from conftest import flip_bit
from stages import alone, checkpoint, mnist, models, numerics, params, train, training

EPOCHS = 4
RECIPES = {
    "sgd with dropout": RECIPE.model_copy(update={"epochs": EPOCHS}),
    "record": RECIPE.model_copy(update={"epochs": EPOCHS, "dropout": 0.1} | RECORD),
}


class Stop(Exception):
    pass


def fit(name, splits, recipe, stop_after=None, seed=0, threads=2):
    """What a training ends with, and the epochs that it showed."""
    shown = []

    def log_epoch(row):
        shown.append(row)
        if row["epoch"] == stop_after:
            raise Stop

    generator = numerics.configure(threads, seed)
    run = SimpleNamespace(log_epoch=log_epoch)
    with train.fit("a stage", name, splits, recipe, "cpu", generator, run) as state:
        return state.history, state.weights, models.fingerprint(state.network), shown


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone.FOLDER.mkdir(parents=True)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_after_each_epoch_it_comes_to_the_same_bytes(name, recipe, resized, capsys):
    expected = fit(name, resized, RECIPES[recipe])
    assert not list(alone.FOLDER.glob("*.pt"))  # it cleans up behind itself
    capsys.readouterr()
    for epoch in range(1, EPOCHS + 1):
        with pytest.raises(Stop):
            fit(name, resized, RECIPES[recipe], stop_after=epoch)
        # Each continues the one before: no epoch is computed twice
        assert ("goes on after" in capsys.readouterr().out) == (epoch > 1)
    assert fit(name, resized, RECIPES[recipe]) == expected
    assert "a stage goes on after epoch 4 of 4" in capsys.readouterr().out
    assert not list(alone.FOLDER.glob("*.pt"))


def test_another_setting_seed_or_image_begins_anew(resized, capsys):
    recipe = RECIPES["record"]
    other_labels = {**resized, "test": type(resized["test"])(
        resized["test"].images, (resized["test"].labels + 1) % 10)}  # fmt: skip
    for change in (
        {"recipe": recipe.model_copy(update={"weight_decay": 0.02})},
        {"seed": 1},
        {"splits": other_labels},
        {"name": "lenet5"},
    ):
        with pytest.raises(Stop):
            fit("mlp", resized, recipe, stop_after=1)
        capsys.readouterr()
        values = {"name": "mlp", "splits": resized, "recipe": recipe, "seed": 0} | change
        history, *_ = fit(**values)
        assert len(history) == EPOCHS
        said = capsys.readouterr()
        assert said.err == ""
        assert "goes on" not in said.out


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_number_of_the_optimizer_and_the_schedule_comes_back(recipe, resized):
    """And of the same type, or a step would not be the same."""
    states = []
    for seed in (0, 1):
        generator = numerics.configure(1, seed)
        states.append(training.begin(models.build("mlp", recipe), recipe, 40, generator))
    saved, fresh = states
    training.train(saved, {"train": resized["train"]}, recipe.model_copy(update={"epochs": 1}), id)
    saved.optimizer.zero_grad()
    checkpoint.Checkpoint("a stage", b"k" * 32).save(saved)
    checkpoint.Checkpoint("a stage", b"k" * 32).restore(fresh)

    def by_bytes(value):
        return value.numpy().tobytes() if torch.is_tensor(value) else value

    def told(state):
        return tree_map(by_bytes, state.state_dict())

    assert told(fresh) == told(saved)
    found = fresh.optimizer.state[next(fresh.network.parameters())]
    if recipe.optimizer == "adamw":
        assert found["powers"] == pytest.approx((0.9**20, 0.999**20), rel=1e-12)
        assert isinstance(found["powers"], tuple)


def test_with_another_number_of_threads_it_goes_on_to_the_same_bytes(resized, capsys):
    recipe = RECIPES["record"]
    expected = fit("lenet5", resized, recipe)
    with pytest.raises(Stop):
        fit("lenet5", resized, recipe, stop_after=2, threads=1)
    assert fit("lenet5", resized, recipe, threads=3) == expected
    assert "a stage goes on after epoch 2 of 4" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_ignored(resized, capsys):
    recipe = RECIPES["sgd with dropout"]
    expected = fit("mlp", resized, recipe)
    path = alone.FOLDER / "a stage.pt"
    for damage in (flip_bit, lambda path: path.write_bytes(path.read_bytes()[:-1]),
                   lambda path: path.write_bytes(b"")):  # fmt: skip
        with pytest.raises(Stop):
            fit("mlp", resized, recipe, stop_after=2)
        damage(path)
        capsys.readouterr()
        assert fit("mlp", resized, recipe) == expected
        said = capsys.readouterr()
        assert f"warning: {path} is damaged" in said.err
        assert "goes on" not in said.out


# --- what a checkpoint counts for ---

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32)).astype(np.uint8)
PARTS = {
    "train": mnist.Split(IMAGES[:4], np.arange(4, dtype=np.uint8)),
    "test": mnist.Split(IMAGES[4:], np.arange(2, dtype=np.uint8)),
}


def key(splits=PARTS, recipe=RECIPE, name="mlp", seed=0, threads=1) -> bytes:
    """Of a training that has not begun."""
    generator = numerics.configure(threads, seed)
    state = training.begin(models.build(name, recipe), recipe, steps=9, generator=generator)
    return checkpoint.key(state, splits, recipe)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def changed(part: mnist.Split, **arrays: np.ndarray) -> mnist.Split:
    """With the last number of an array raised by 1."""
    found = {name: array.copy() for name, array in arrays.items()}
    for array in found.values():
        array.flat[-1] += 1
    return replace(part, **found)


def test_the_key_is_another_for_another_setting_seed_image_or_label(threads):
    train_part, test_part = PARTS["train"], PARTS["test"]
    other_settings = {
        "learning_rate": 0.051,
        "softmax_before_loss": True,
        "augmentation": RECORD["augmentation"],
    }
    keys = [
        key(),
        *(key(recipe=RECIPE.model_copy(update={name: v})) for name, v in other_settings.items()),
        key(seed=1),
        key(name="lenet5"),
        key(PARTS | {"train": changed(train_part, images=train_part.images)}),
        key(PARTS | {"train": changed(train_part, labels=train_part.labels)}),
        key(PARTS | {"test": changed(test_part, images=test_part.images)}),
        key(PARTS | {"test": changed(test_part, labels=test_part.labels)}),
        key({"train": train_part, "validation": test_part}),
        key({"train": train_part}),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(threads=2) == keys[0]


def test_the_key_is_another_for_each_generators_state_and_each_weight(threads):
    generator = numerics.configure(threads=1, seed=0)
    state = training.begin(models.build("mlp", RECIPE), RECIPE, steps=9, generator=generator)

    def key_now() -> bytes:
        return checkpoint.key(state, PARTS, RECIPE)

    keys = [key_now()]
    torch.rand(1, generator=generator)  # the order of the images
    keys.append(key_now())
    torch.rand(1)  # dropout
    keys.append(key_now())
    for parameter in state.network.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        keys.append(key_now())
    assert len(set(keys)) == 3 + 4


def test_the_key_is_another_for_another_library(threads, monkeypatch):
    before = key()
    for library, name in ((torch, "__version__"), (np, "__version__"), (sys, "version")):
        with monkeypatch.context() as patch:
            patch.setattr(library, name, "0.0")
            assert key() != before
    assert key() == before


def test_the_key_is_another_for_other_code_of_ours_and_the_same_for_other_code(
    threads, tmp_path, monkeypatch
):
    """Ours is what lies beside checkpoint.py; here that is an empty folder."""
    ours, theirs = tmp_path / "stages" / "loop.py", tmp_path / "library.py"
    ours.parent.mkdir()
    monkeypatch.setattr(checkpoint, "__file__", str(ours.parent / "checkpoint.py"))
    (ours.parent / "checkpoint.py").touch()
    without = key()
    for path in (ours, theirs):
        path.write_text("rate = 1", encoding="utf-8")
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, path.stem, module)
    before = key()
    assert before != without
    theirs.write_text("rate = 2", encoding="utf-8")
    assert key() == before
    ours.write_text("rate = 2", encoding="utf-8")
    assert key() != before


class Noted(mnist.Split):
    """Notes which of its images it was asked to let go of."""

    def release(self) -> None:
        released.append(len(self))
        super().release()


released: list[int] = []


def test_the_key_is_of_the_images_however_they_lie_in_memory_and_lets_go_of_them(threads, tmp_path):
    for name, part in PARTS.items():
        mnist.save_split(tmp_path, name, part)
    mapped = {name: mnist.load_split(tmp_path, name) for name in PARTS}
    otherwise = {
        name: Noted(np.asfortranarray(part.images), part.labels[::-1].copy()[::-1])
        for name, part in PARTS.items()
    }
    assert key(mapped) == key(otherwise) == key()
    assert released == [4, 2]


def test_a_checkpoint_of_another_key_is_neither_taken_nor_called_damaged(threads, capsys):
    state, other = (
        training.begin(models.build("mlp", RECIPE), RECIPE, 9, torch.Generator()) for _ in range(2)
    )
    state.history.append({"epoch": 1})
    checkpoint.Checkpoint("a stage", b"k" * 32).save(state)
    before = models.fingerprint(other.network)
    checkpoint.Checkpoint("a stage", b"o" * 32).restore(other)
    checkpoint.Checkpoint("another stage", b"k" * 32).restore(other)
    assert (models.fingerprint(other.network), other.history) == (before, [])
    assert capsys.readouterr().err == ""
    checkpoint.Checkpoint("a stage", b"k" * 32).restore(other)
    assert models.fingerprint(other.network) == models.fingerprint(state.network) != before
    assert other.history == [{"epoch": 1}]
    assert [path.name for path in Path(alone.FOLDER).iterdir()] == ["a stage.pt"]
