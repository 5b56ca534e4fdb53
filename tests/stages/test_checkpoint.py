"""An interrupted training resumes after its last finished epoch, and comes to the same bytes."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_models import RECIPE
from torch.utils._pytree import tree_map

import stages
from conftest import flip_bit
from dvc_guard import alone
from stages.base import numerics, params
from stages.base.params import Augmentation, Distillation, PlainRecipe
from stages.base.splits import Split, load_split, save_split
from stages.learn import checkpoint, resume, training
from stages.learn.checkpoint import Checkpoint
from stages.learn.resume import Training
from stages.networks import models

EPOCHS = 3
RECORD = {
    "optimizer": "adamw",
    "schedule": "one_cycle",
    "weight_decay": 0.01,
    "augmentation": Augmentation(rotation=8.0, shift=1.0, scale=0.08, shear=0.1, elastic=0.5),
}
PLAIN = RECIPE.model_copy(update={"epochs": EPOCHS, "batch_size": 32})
RECIPES = {
    "sgd with dropout": PLAIN,
    "record": PLAIN.model_copy(update=RECORD | {"dropout": 0.1}),
}
OF_TEACHER = PlainRecipe(**{k: v for k, v in RECIPE if k != "distillation"} | {"epochs": 1})
TAUGHT = Distillation(teachers=2, recipe=OF_TEACHER, temperature=2.0, weight=0.5)
TAUGHT_RECIPE = RECIPES["record"].model_copy(update={"distillation": TAUGHT, "averaging": 0.9})


class Stop(Exception):
    pass


def begun(name, splits, recipe, seed=0, threads=1):
    return Training("a stage", name, splits, recipe, "cpu", numerics.configure(threads, seed))


def fit(name, splits, recipe, stop_after=None, **settings):
    """The state that a training ends with, and the epochs that it showed."""
    shown = []
    started = begun(name, splits, recipe, **settings)
    for row in started.epochs():
        shown.append(row)
        if row["epoch"] == stop_after:
            raise Stop
    state = started.state
    started.finish()
    return state.history, state.weights, models.fingerprint(state.network), shown


def kept():
    return [path.name for path in alone.FOLDER.iterdir()]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, settings_of_torch):
    monkeypatch.chdir(tmp_path)
    alone.FOLDER.mkdir(parents=True)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize(
    "recipe",
    [*RECIPES.values(), pytest.param(TAUGHT_RECIPE, marks=pytest.mark.slow)],
    ids=[*RECIPES, "taught"],
)
def test_stopped_after_each_epoch_it_comes_to_the_same_bytes(name, recipe, small, capsys):
    """With each number of threads."""
    expected = fit(name, small, recipe)
    assert kept() == []  # it cleans up behind itself
    capsys.readouterr()
    for epoch in range(1, EPOCHS + 1):
        with pytest.raises(Stop):
            fit(name, small, recipe, stop_after=epoch, threads=epoch)
        # Each continues the one before: no epoch is computed twice
        assert ("resumes after" in capsys.readouterr().out) == (epoch > 1)
    assert fit(name, small, recipe) == expected
    assert "a stage resumes after epoch 3 of 3" in capsys.readouterr().out
    assert kept() == []


def test_a_teacher_that_is_trained_is_not_trained_again(small, capsys):
    resume.teach("a stage", small["train"], TAUGHT, "cpu", of_student=0)
    assert "teacher 2 of 2: epoch 1/1 " in capsys.readouterr().out
    fit("mlp", small, TAUGHT_RECIPE)
    said = capsys.readouterr().out
    for number in (1, 2):
        line = f"teacher {number} of 2: a stage.teacher-{number} resumes after epoch 1 of 1\n"
        assert line in said
    assert "of 2: epoch" not in said
    assert kept() == []


def test_each_epoch_is_printed_and_saved_before_its_row_is_yielded(small, capsys):
    """And stays until the results are written: all epochs are shown again to whoever writes them
    then, and none is trained again."""
    first, rows = begun("mlp", small, PLAIN), []
    for epoch, row in enumerate(first.epochs(), start=1):
        rows.append(row)
        assert row["epoch"] == epoch
        assert capsys.readouterr().out.startswith(f"epoch {epoch}/3  train loss ")
        again = begun("mlp", small, PLAIN)
        assert again.state.history == first.state.history
        assert capsys.readouterr().out == f"a stage resumes after epoch {epoch} of 3\n"
    again.state.optimizer.register_step_pre_hook(lambda *_: pytest.fail("a step was repeated"))
    assert list(again.epochs()) == rows
    assert models.fingerprint(again.state.network) == models.fingerprint(first.state.network)
    again.finish()
    assert kept() == []
    again.finish()  # also where there is none


# --- the file ---


def state_of(recipe, seed, steps=40):
    generator = numerics.configure(1, seed)
    return training.begin(models.build("mlp", recipe), recipe, steps, generator)


def told(state):
    """Every number of a state, tensors by their bytes."""
    return tree_map(
        lambda value: value.numpy().tobytes() if torch.is_tensor(value) else value,
        state.state_dict(),
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_number_of_the_optimizer_and_the_schedule_comes_back(recipe, small):
    """And of the same type, or a step would not be the same."""
    saved, fresh = state_of(recipe, seed=0), state_of(recipe, seed=1)
    one_epoch = recipe.model_copy(update={"epochs": 1})
    list(training.epochs(saved, {"train": small["train"]}, one_epoch))
    saved.optimizer.zero_grad()
    Checkpoint("a stage", b"k" * 32).save(saved)
    Checkpoint("a stage", b"k" * 32).restore(fresh)
    assert told(fresh) == told(saved)
    if recipe.optimizer == "adamw":
        of_weight = fresh.optimizer.state[next(fresh.network.parameters())]
        assert of_weight["powers"] == pytest.approx((0.9**5, 0.999**5), rel=1e-12)
        assert isinstance(of_weight["powers"], tuple)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_bit, cut, emptied])
def test_a_damaged_checkpoint_is_named_and_one_of_another_key_ignored(damage, capsys):
    state, other = state_of(PLAIN, seed=0), state_of(PLAIN, seed=1)
    state.history.append({"epoch": 1})
    file = Checkpoint("a stage", b"k" * 32)
    file.save(state)
    before = told(other)
    Checkpoint("a stage", b"o" * 32).restore(other)
    Checkpoint("another stage", b"k" * 32).restore(other)
    assert told(other) == before
    assert capsys.readouterr().err == ""
    file.restore(other)
    assert told(other) == told(state) != before
    assert kept() == ["a stage.pt"]
    damage(file.path)
    fresh = state_of(PLAIN, seed=1)
    file.restore(fresh)
    assert told(fresh) == before
    line = f"warning: {file.path} is damaged, so the training starts again\n"
    assert capsys.readouterr().err == line


# --- for which training a checkpoint counts ---

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32)).astype(np.uint8)
PARTS = {
    "train": Split(IMAGES[:4], np.arange(4, dtype=np.uint8)),
    "test": Split(IMAGES[4:], np.arange(2, dtype=np.uint8)),
}


def key(splits=PARTS, recipe=RECIPE, name="mlp", seed=0, threads=1) -> bytes:
    """Of a training that has not begun."""
    generator = numerics.configure(threads, seed)
    state = training.begin(models.build(name, recipe), recipe, steps=9, generator=generator)
    return checkpoint.key(state, splits, recipe)


def with_another(name: str, part: str) -> dict[str, Split]:
    """The splits, with the last number of an array raised by 1."""
    array = getattr(PARTS[name], part).copy()
    array.flat[-1] += 1
    return PARTS | {name: replace(PARTS[name], **{part: array})}


def test_the_key_is_another_for_each_setting_seed_image_label_and_library(monkeypatch):
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
        *(key(with_another(name, part)) for name in PARTS for part in ("images", "labels")),
        key({"train": PARTS["train"], "validation": PARTS["test"]}),
        key({"train": PARTS["train"]}),
    ]
    for library, name in ((torch, "__version__"), (np, "__version__"), (sys, "version")):
        with monkeypatch.context() as patch:
            patch.setattr(library, name, "0.0")
            keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == key(threads=2) == keys[0]


def test_the_key_is_another_for_each_generators_state_and_each_weight():
    generator = numerics.configure(threads=1, seed=0)
    state = training.begin(models.build("mlp", RECIPE), RECIPE, steps=9, generator=generator)
    keys = [checkpoint.key(state, PARTS, RECIPE)]

    def draw(generator):
        torch.rand(1, generator=generator)

    def change(weight):
        weight.view(-1)[-1] += 1

    changes = [(draw, generator), (draw, None)]  # of the order of the images, and of dropout
    with torch.no_grad():
        for edit, what in [*changes, *((change, weight) for weight in state.network.parameters())]:
            edit(what)
            keys.append(checkpoint.key(state, PARTS, RECIPE))
    assert len(set(keys)) == 3 + 4


def test_the_key_is_another_for_other_code_of_ours_alone(tmp_path, monkeypatch):
    """Ours is the pipeline's folder with all folders in it; here that is an empty one."""
    assert Path(stages.__file__).parent == checkpoint.CODE
    code = tmp_path / "stages"
    monkeypatch.setattr(checkpoint, "CODE", code)
    theirs, ours = tmp_path / "library.py", [code / "script.py", code / "learn" / "loop.py"]
    (code / "learn").mkdir(parents=True)
    keys = [key()]
    for path in (theirs, *ours):
        path.write_text("rate = 1", encoding="utf-8")
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, path.stem, module)
        keys.append(key())
    assert keys[0] == keys[1]
    theirs.write_text("rate = 2", encoding="utf-8")
    assert key() == keys[-1]
    for path in ours:
        path.write_text("rate = 2", encoding="utf-8")
        keys.append(key())
    assert len(set(keys)) == 5


def test_the_key_is_of_the_images_however_they_lie_in_memory_and_frees_it(tmp_path):
    released = []

    class Noted(Split):
        def release(self) -> None:
            released.append(len(self))
            super().release()

    for name, part in PARTS.items():
        save_split(tmp_path, name, part)
    mapped = {name: load_split(tmp_path, name) for name in PARTS}
    otherwise = {
        name: Noted(np.asfortranarray(part.images), part.labels[::-1].copy()[::-1])
        for name, part in PARTS.items()
    }
    assert key(mapped) == key(otherwise) == key()
    assert released == [4, 2]
