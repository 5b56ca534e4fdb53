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
from stages.arithmetic import numerics
from stages.base import params
from stages.base.params import Augmentation, Distillation, PlainRecipe
from stages.base.splits import Split
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
    return checkpoint.key(checkpoint.digests(state, splits, recipe))


def with_another(name: str, part: str) -> dict[str, Split]:
    """The splits, with the last number of an array raised by 1."""
    array = getattr(PARTS[name], part).copy()
    array.flat[-1] += 1
    return PARTS | {name: replace(PARTS[name], **{part: array})}


OTHER = [
    *({"recipe": RECIPE.model_copy(update={name: RECORD[name]})} for name in RECORD),
    {"recipe": RECIPE.model_copy(update={"learning_rate": 0.051})},
    {"seed": 1},
    {"name": "lenet5"},
    *({"splits": with_another(name, part)} for name in PARTS for part in ("images", "labels")),
    {"splits": {"train": PARTS["train"], "validation": PARTS["test"]}},
    {"splits": {"train": PARTS["train"]}},
]


def test_the_key_is_another_for_each_setting_seed_image_label_and_library(monkeypatch):
    keys = [key(), *(key(**other) for other in OTHER)]
    for library, name in ((torch, "__version__"), (np, "__version__"), (sys, "version")):
        with monkeypatch.context() as patch:
            patch.setattr(library, name, "0.0")
            keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == key(threads=2) == keys[0]


def test_the_key_is_another_for_each_generators_state_and_each_weight():
    generator = numerics.configure(threads=1, seed=0)
    state = training.begin(models.build("mlp", RECIPE), RECIPE, steps=9, generator=generator)
    keys = [checkpoint.key(checkpoint.digests(state, PARTS, RECIPE))]
    changes = [lambda of=of: torch.rand(1, generator=of) for of in (generator, None)]
    changes += [lambda weight=weight: weight.add_(1) for weight in state.network.parameters()]
    with torch.no_grad():
        for change in changes:
            change()
            keys.append(checkpoint.key(checkpoint.digests(state, PARTS, RECIPE)))
    assert len(set(keys)) == 3 + 4


def test_the_key_is_another_for_other_code_of_ours_alone(tmp_path, monkeypatch):
    assert Path(stages.__file__).parent == checkpoint.CODE
    monkeypatch.setattr(checkpoint, "CODE", tmp_path / "stages")
    theirs, ours = tmp_path / "library.py", tmp_path / "stages/learn/loop.py"
    ours.parent.mkdir(parents=True)
    keys = []
    for path in (theirs, ours):
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, path.stem, module)
        for text in ("rate = 1", "rate = 2"):
            path.write_text(text, encoding="utf-8")
            keys.append(key())
    assert keys[0] == keys[1] and len(set(keys)) == 3
