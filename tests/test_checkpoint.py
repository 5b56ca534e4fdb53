"""A training that was stopped goes on from its last finished epoch, to the same bytes."""

from types import SimpleNamespace

import pytest
from test_models import RECIPE, RECORD

from conftest import flip_bit
from stages import alone, models, numerics, params, train

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


def test_another_setting_seed_image_or_thread_begins_anew(resized, capsys):
    recipe = RECIPES["record"]
    other_labels = {**resized, "test": type(resized["test"])(
        resized["test"].images, (resized["test"].labels + 1) % 10)}  # fmt: skip
    for change in (
        {"recipe": recipe.model_copy(update={"weight_decay": 0.02})},
        {"seed": 1},
        {"threads": 1},
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
