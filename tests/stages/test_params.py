"""params.yaml and recipes.yaml become frozen settings, read as DVC reads them."""

import pytest
from dvc.utils.serialize import load_yaml

from conftest import ROOT
from dvc_kit import strict
from dvc_kit.errors import InputError
from stages.base import params


@pytest.fixture(autouse=True)
def project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_recipe_that_leaves_settings_out_is_plain_sgd_at_a_constant_rate():
    settings = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "momentum": 0.0, "dropout": 0.0}
    recipe = params.Recipe(**settings, softmax_before_loss=False)
    assert (recipe.optimizer, recipe.schedule, recipe.weight_decay) == ("sgd", "constant", 0.0)
    assert (recipe.augmentation, recipe.averaging, recipe.distillation) == (None, 0.0, None)


def test_yaml_is_read_as_dvc_reads_it(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-3\nb: 010\nc: no\nd: 1_000\ne: 12:30\n", encoding="utf-8")
    assert strict.read(path) == load_yaml(path)
    assert (strict.read(path)["a"], strict.read(path)["c"]) == (0.001, "no")
    path.write_text("[" * 2_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"params\.yaml: [^\n]*$"):
        strict.read(path)


def test_the_recipes_are_read_as_dvc_reads_them():
    """With all that one recipe takes over from another."""
    recipes = params.load_recipes()
    given = {name: recipe.model_dump(exclude_unset=True) for name, recipe in recipes.items()}
    assert given == load_yaml("recipes.yaml")
    assert params.load().recipes == recipes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "not named"), (["resnet"], "resnet"), (["mlp", "mlp"], "mlp mlp"), (["MLP"], "MLP")],
)
def test_only_the_name_of_one_model_is_taken(arguments, said):
    assert [params.model_name([name]) for name in params.MODEL_NAMES] == ["lenet5", "mlp"]
    with pytest.raises(InputError, match=f"^model is {said}, expected one of: lenet5, mlp$"):
        params.model_name(arguments)
