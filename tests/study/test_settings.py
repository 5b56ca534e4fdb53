"""The settings of the study name its recipes, and where its cells are."""

import re

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from conftest import ROOT
from stages.base import params
from study import settings

DECLARED = YAML(typ="safe").load(ROOT / "study/dvc.yaml")["stages"]


def test_each_recipe_of_the_study_is_in_recipes_yaml_and_ablations_are_last(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = settings.load()
    content = YAML(typ="safe").load(settings.PATH)
    assert study.every_recipe == [*content["recipes"], *content["ablations"]]
    assert set(study.every_recipe) <= set(params.load_recipes())
    assert study.seeds_of("record") == content["seeds"]
    assert study.seeds_of("record_without_decay") == content["ablation_seeds"]
    with pytest.raises(ValidationError, match="frozen"):
        study.seeds = [7]


@pytest.mark.parametrize(
    ("stage", "seed"), [("cell", 3), ("ablation", 3), ("validation", settings.VALIDATION)]
)
def test_a_cell_is_written_to_the_path_that_its_stage_declares(stage, seed):
    item = {"recipe": "record", "model": "mlp", "seed": seed}
    [[path]] = DECLARED[stage]["metrics"]
    filled = re.sub(r"\$\{item\.(\w+)\}", lambda name: str(item[name[1]]), path)
    assert settings.cell_path(**item) == settings.FOLDER / filled
    assert (ROOT / settings.cell_path(**item)).is_file()
