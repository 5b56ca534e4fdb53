"""An interrupted training resumes after its last finished epoch, and comes to the same bytes."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_models import RECIPE, RECORD
from torch.utils._pytree import tree_map

import stages
from conftest import flip_bit
from dvc_mlflow import alone
from stages.base import numerics, params
from stages.base.params import Distillation, PlainRecipe
from stages.base.splits import Split, load_split, save_split
from stages.learn import checkpoint, resume, training
from stages.learn.resume import Training
from stages.networks import models

EPOCHS = 3
RECIPES = {
    "sgd with dropout": RECIPE.model_copy(update={"epochs": EPOCHS, "batch_size": 32}),
    "record": RECIPE.model_copy(
        update={"epochs": EPOCHS, "batch_size": 32, "dropout": 0.1} | RECORD
    ),
}
OF_TEACHER = PlainRecipe(**{k: v for k, v in RECIPE if k != "distillation"} | {"epochs": 1})
TAUGHT = Distillation(teachers=2, recipe=OF_TEACHER, temperature=2.0, weight=0.5)
TAUGHT_RECIPE = RECIPES["record"].model_copy(update={"distillation": TAUGHT, "averaging": 0.9})


class Stop(Exception):
    pass


def fit(name, splits, recipe, stop_after=None, seed=0, threads=1):
    """The state that a training ends with, and the epochs that it showed."""
    shown = []
    generator = numerics.configure(threads, seed)
    begun = Training("a stage", name, splits, recipe, "cpu", generator)
    for row in begun.epochs():
        shown.append(row)
        if row["epoch"] == stop_after:
            raise Stop
    state = begun.state
    begun.finish()
    return state.history, state.weights, models.fingerprint(state.network), shown


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone.FOLDER.mkdir(parents=True)


@pytest.mark.parametrize("name", params.MODEL_NAMES)
@pytest.mark.parametrize(
    "recipe",
    [*RECIPES.values(), pytest.param(TAUGHT_RECIPE, marks=pytest.mark.slow)],
    ids=[*RECIPES, "taught"],
)
def test_stopped_after_each_epoch_it_comes_to_the_same_bytes(name, recipe, small, capsys):
    expected = fit(name, small, recipe)
    assert not list(alone.FOLDER.glob("*.pt"))  # it cleans up behind itself
    capsys.readouterr()
    for epoch in range(1, EPOCHS + 1):
        with pytest.raises(Stop):
            fit(name, small, recipe, stop_after=epoch)
        # Each continues the one before: no epoch is computed twice
        assert ("resumes after" in capsys.readouterr().out) == (epoch > 1)
    assert fit(name, small, recipe) == expected
    assert "a stage resumes after epoch 3 of 3" in capsys.readouterr().out
    assert not list(alone.FOLDER.glob("*.pt"))


def test_a_teacher_that_is_trained_is_not_trained_again(small, capsys):
    resume.teach("a stage", small["train"], TAUGHT, "cpu", of_student=0)
    assert "teacher 2 of 2: epoch 1/1 " in capsys.readouterr().out
    fit("mlp", small, TAUGHT_RECIPE)
    said = capsys.readouterr().out
    for number in (1, 2):
        line = f"teacher {number} of 2: a stage.teacher-{number} resumes after epoch 1 of 1\n"
        assert line in said
    assert "of 2: epoch" not in said
    assert not list(alone.FOLDER.iterdir())


def test_the_checkpoint_stays_until_the_results_are_written(small, capsys):
    """All epochs are shown again to whoever writes them then, and none is trained again."""
    recipe = RECIPES["record"]
    first = Training("a stage", "mlp", small, recipe, "cpu", numerics.configure(1, 0))
    rows = list(first.epochs())
    assert (alone.FOLDER / "a stage.pt").is_file()
    capsys.readouterr()
    again = Training("a stage", "mlp", small, recipe, "cpu", numerics.configure(1, 0))
    again.state.optimizer.register_step_pre_hook(lambda *_: pytest.fail("a step was repeated"))
    assert list(again.epochs()) == rows
    assert models.fingerprint(again.state.network) == models.fingerprint(first.state.network)
    assert capsys.readouterr().out == "a stage resumes after epoch 3 of 3\n"
    again.finish()
    assert not list(alone.FOLDER.iterdir())
    again.finish()  # also where there is none


def test_each_epoch_is_printed_and_saved_before_its_row_is_yielded(small, capsys):
    def begun():
        generator = numerics.configure(1, 0)
        return Training("a stage", "mlp", small, RECIPES["sgd with dropout"], "cpu", generator)

    first = begun()
    for epoch, row in enumerate(first.epochs(), start=1):
        assert row["epoch"] == epoch
        assert capsys.readouterr().out.startswith(f"epoch {epoch}/3  train loss ")
        assert begun().state.history == first.state.history
        assert capsys.readouterr().out == f"a stage resumes after epoch {epoch} of 3\n"


def test_another_setting_or_label_starts_again(small, capsys):
    recipe = RECIPES["record"]
    other_labels = {**small, "test": replace(small["test"], labels=9 - small["test"].labels)}
    for change in (
        {"recipe": recipe.model_copy(update={"weight_decay": 0.02})},
        {"splits": other_labels},
    ):
        with pytest.raises(Stop):
            fit("mlp", small, recipe, stop_after=1)
        capsys.readouterr()
        history, *_ = fit("mlp", **{"splits": small, "recipe": recipe} | change)
        assert len(history) == EPOCHS
        said = capsys.readouterr()
        assert said.err == ""
        assert "resumes" not in said.out


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_number_of_the_optimizer_and_the_schedule_comes_back(recipe, small):
    """And of the same type, or a step would not be the same."""
    states = []
    for seed in (0, 1):
        generator = numerics.configure(1, seed)
        states.append(training.begin(models.build("mlp", recipe), recipe, 40, generator))
    saved, fresh = states
    one_epoch = recipe.model_copy(update={"epochs": 1})
    list(training.epochs(saved, {"train": small["train"]}, one_epoch))
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
        assert found["powers"] == pytest.approx((0.9**5, 0.999**5), rel=1e-12)
        assert isinstance(found["powers"], tuple)


def test_with_another_number_of_threads_it_resumes_to_the_same_bytes(small, capsys):
    recipe = RECIPES["record"]
    expected = fit("lenet5", small, recipe)
    with pytest.raises(Stop):
        fit("lenet5", small, recipe, stop_after=2, threads=2)
    assert fit("lenet5", small, recipe, threads=3) == expected
    assert "a stage resumes after epoch 2 of 3" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_ignored(small, capsys):
    recipe = RECIPES["sgd with dropout"]
    expected = fit("mlp", small, recipe)
    path = alone.FOLDER / "a stage.pt"
    for damage in (flip_bit, lambda path: path.write_bytes(path.read_bytes()[:-1]),
                   lambda path: path.write_bytes(b"")):  # fmt: skip
        with pytest.raises(Stop):
            fit("mlp", small, recipe, stop_after=2)
        damage(path)
        capsys.readouterr()
        assert fit("mlp", small, recipe) == expected
        said = capsys.readouterr()
        assert said.err == f"warning: {path} is damaged, so the training starts again\n"
        assert "resumes" not in said.out


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


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def changed(part: Split, **arrays: np.ndarray) -> Split:
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


class Noted(Split):
    """Notes that its memory was to be freed."""

    def release(self) -> None:
        released.append(len(self))
        super().release()


released: list[int] = []


def test_the_key_is_of_the_images_however_they_lie_in_memory_and_frees_it(threads, tmp_path):
    for name, part in PARTS.items():
        save_split(tmp_path, name, part)
    mapped = {name: load_split(tmp_path, name) for name in PARTS}
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
