"""The door of bits: what makes the trainings of the study stale, and what does not."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, Clone, make_clone
from stages.base import params
from study import bits, settings

COMMITTED = json.loads((ROOT / settings.BITS).read_text(encoding="utf-8"))
# Only what bits.json depends on: a copy is made for each planted mistake
# --- the file ---


def test_the_committed_hashes_are_those_of_this_machine(monkeypatch, settings_of_torch):
    """So each mistake in the arithmetic shows, and test_exact.py and its like need no cases."""
    monkeypatch.chdir(ROOT)
    found = bits.everything(params.load_recipes())
    assert found | {"code": ...} == COMMITTED | {"code": ...}  # `dvc status` compares the code


def test_each_recipe_model_and_ingredient_has_a_hash():
    recipes = params.load_recipes()
    names = {recipe: {*params.MODEL_NAMES} for recipe in recipes}
    assert {recipe: {*of_models} for recipe, of_models in COMMITTED["bits"].items()} == names
    choices = {
        value
        for field in ("optimizer", "schedule")
        for value in params.PlainRecipe.model_fields[field].annotation.__args__
    }
    assert {*COMMITTED["ingredients"]} >= {*params.MODEL_NAMES, *choices}
    for model in params.MODEL_NAMES:
        for kind in ("dropout in", "softmax after", "resume", "distillation of"):
            assert f"{kind} {model}" in COMMITTED["ingredients"]


def test_the_code_of_a_stage_is_hashed_without_comments_and_empty_lines(tmp_path):
    path = tmp_path / "code.py"
    path.write_text('a = "# no comment"  # a comment\n\n# another\nb = 1\n', encoding="utf-8")
    assert bits.plain(path) == 'a = "# no comment"\nb = 1'


# --- what is stale ---


def stale(clone: Clone) -> set[str]:
    """The stages of the study that `dvc status` names."""
    told = Clone(clone.path / "study").run("dvc", "status", "--json")
    return {*json.loads(told.stdout)}


def repro_bits(clone: Clone) -> None:
    Clone(clone.path / "study").run("dvc", "repro", "bits", env={"MIRROR": "off"})


@pytest.fixture
def whole(raw, tmp_path) -> Clone:
    """A clone in which nothing of the study is stale."""
    clone = make_clone(tmp_path / "a clone")
    shutil.copytree(ROOT / "data/prepared", clone.path / "data/prepared")
    assert stale(clone) == set()
    return clone


@pytest.mark.slow
def test_a_comment_in_any_python_file_makes_only_bits_stale(whole):
    listed = whole.run("git", "ls-files", "*.py").stdout.splitlines()
    assert len(listed) > 100
    for house in sorted({Path(name).parts[0] for name in listed}):
        for name in (name for name in listed if Path(name).parts[0] == house):
            with (whole.path / name).open("a", encoding="utf-8") as file:
                file.write("# a comment\n")
        assert stale(whole) <= {"bits"}, house
    assert stale(whole) == {"bits"}
    repro_bits(whole)
    assert stale(whole) == set()


def cells(recipe: str, model: str) -> set[str]:
    """The cells of a recipe and a model, as dvc.yaml names them."""
    lock = YAML(typ="safe").load(ROOT / "study/dvc.lock")["stages"]
    items = {name: name.partition("@")[2].split("-")[:2] for name in lock}
    return {name for name, item in items.items() if item == [recipe, model]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "uses"),
    [
        ("stages/learn/average.py", "FORGET = 9", "FORGET = 8", lambda recipe: recipe.averaging),
        (
            "stages/learn/training.py",
            "(recipe.momentum, 0.999)",
            "(recipe.momentum, 0.998)",
            lambda recipe: recipe.optimizer == "adamw",
        ),
    ],
)
def test_changed_arithmetic_makes_exactly_the_trainings_stale_that_use_it(
    whole, file, old, new, uses
):
    whole.edit(file, old, new)
    repro_bits(whole)
    expected = {
        stage
        for name, of_models in params.load_recipes().items()
        for model in params.MODEL_NAMES
        if uses(getattr(of_models, model))
        for stage in cells(name, model)
    }
    searched = {f"rung@{model}-{rung}" for model in params.MODEL_NAMES for rung in (1, 2, 3, 4)}
    assert len(expected) > 5
    assert stale(whole) == expected | searched
