"""What a run is called, and its colour."""

import colorsys
from dataclasses import replace
from pathlib import Path

import pytest

from dvc_mlflow import run_names
from dvc_mlflow.result import Result

LENET5 = Result(Path(), "train_lenet5", "", {"recipe": "published", "model": "lenet5"}, {}, {})
BLUE = "#0072B2"


@pytest.fixture(autouse=True)
def project(monkeypatch):
    monkeypatch.setattr(run_names, "settings", lambda: {"run_name": ["recipe", "gone"]})
    colors = {"model": {"lenet5": BLUE}}
    monkeypatch.setattr(run_names, "hook", lambda name, otherwise: lambda: colors)


@pytest.mark.parametrize(
    ("stage", "recipe", "experiment", "name"),
    [
        ("train_lenet5", "published", "", "train_lenet5 published"),
        ("train_lenet5", "published", "fine-eyes", "train_lenet5 published fine-eyes"),
        ("sub/dvc.yaml:fit", 0.5, "", "fit 0.5"),
        ("cell@published-mlp-0", "published", "", "cell@published-mlp-0"),
        ("cell@published_too-mlp-0", "published", "", "cell@published_too-mlp-0 published"),
        ("x" * 300, "y", "", None),
    ],
)
def test_a_name_begins_with_the_stage_and_says_what_tells_the_run_apart(
    stage, recipe, experiment, name
):
    result = replace(LENET5, stage=stage, params={"recipe": recipe})
    found = run_names.name_of(result, {"dvc_experiment": experiment})
    assert found == name if name else len(found) == 250
    killed = run_names.unfinished(found, "KILLED")
    assert killed == run_names.unfinished(killed, "KILLED") and len(killed) <= 250
    assert killed.split(" ")[1] == "(killed)" and killed[:4] == found[:4]
    assert killed.replace(" (killed)", "")[:200] == found[:200]


def test_a_colour_has_the_hue_of_the_model_and_differs_by_recipe_and_experiment():
    recipes = ("published", "published_without_softmax", "documented", "fast", "record")
    asked = [*((recipe, "") for recipe in recipes), ("fast", "one-exp"), ("fast", "other-exp")]
    found = {
        run_names.color_of(replace(LENET5, params={"model": "lenet5", "recipe": recipe}), tags)
        for recipe, experiment in asked
        for tags in [{"dvc_experiment": experiment}]
    }
    assert len(found) == len(asked)
    for color in found:
        red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
        assert abs(colorsys.rgb_to_hls(red, green, blue)[0] - 0.56) < 0.05
    assert run_names.color_of(replace(LENET5, params={"model": "lenet5"}), {}) == BLUE
    assert run_names.color_of(replace(LENET5, params={"recipe": "fast"}), {}) == ""
