"""A cell of the study lies where study/dvc.yaml declares it."""

import re

import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from study import settings

DECLARED = YAML(typ="safe").load(ROOT / "study/dvc.yaml")["stages"]


@pytest.mark.parametrize("stage", ["cell", "ablation", "validation"])
def test_a_cell_is_written_to_the_path_that_its_stage_declares(stage):
    values = {"recipe": "record", "model": "mlp"}
    seed = "validation" if stage == "validation" else 3
    [metric] = DECLARED[stage]["metrics"]
    [path] = metric
    filled = re.sub(
        r"\$\{item\.(\w+)\}", lambda found: str({**values, "seed": seed}[found[1]]), path
    )
    assert settings.cell_path(**values, seed=seed).as_posix() == f"study/{filled}"
