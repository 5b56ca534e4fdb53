"""What a cell of the study is asked for, and what it is made from."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from stages import cell, files, params
from stages.errors import InputError, StageError


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.chdir(ROOT)
    return params.load()


@pytest.mark.parametrize("seed", ["0", "7", "4294967295", "validation"])
def test_a_recipe_a_model_and_a_seed_or_validation_is_a_cell(settings, seed):
    assert cell.parse(["record", "mlp", seed], settings) == ("record", "mlp", seed)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python -m stages.cell RECIPE MODEL SEED|validation"),
        (["record", "mlp"], "usage: "),
        (["record", "mlp", "0", "1"], "usage: "),
        (["best", "mlp", "0"], "recipe is best, expected one of: published, "),
        (["record", "resnet", "0"], "model is resnet, expected one of: lenet5, mlp"),
        (["record", "", "0"], "model is not named, expected one of: lenet5, mlp"),
        *(
            (["record", "mlp", seed], f"seed is {seed}, expected a number from 0 to 4294967295")
            for seed in ("-1", "4294967296", "1.0", "x", "", "٣")  # the last is Arabic for 3
        ),
    ],
)
def test_what_is_no_cell_is_refused_with_what_was_expected(settings, arguments, line):
    with pytest.raises(InputError) as refused:
        cell.parse(arguments, settings)
    assert str(refused.value).startswith(line)


# --- whether `prepare` is up to date ---


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which `prepare` ran last, as its dvc.lock says."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    settings = YAML(typ="safe").load(Path("params.yaml"))
    files.write_bytes(Path("stages/prepare.py"), b"code")
    files.write_bytes(Path("data/prepared/train.safetensors"), b"images")
    entries = {
        "deps": [{"path": "stages/prepare.py", "md5": files.md5(Path("stages/prepare.py"))}],
        "params": {"params.yaml": {key: settings[key] for key in ("seed", "data")}},
        "outs": [{"path": "data/prepared", "md5": files.md5(Path("data/prepared"))}],
    }
    YAML(typ="safe").dump({"stages": {"prepare": entries}}, Path("dvc.lock"))


def test_prepared_images_are_used_where_all_that_they_were_made_from_is_as_it_was(project):
    cell.check_prepared()


def refusal() -> str:
    with pytest.raises(StageError) as refused:
        cell.check_prepared()
    line = str(refused.value)
    assert line.endswith(": run `dvc repro prepare` in the main folder first")
    return line


@pytest.mark.parametrize("path", ["stages/prepare.py", "data/prepared/train.safetensors"])
def test_prepared_images_are_refused_after_an_edit_of_the_code_or_of_themselves(project, path):
    Path(path).write_bytes(b"edited")
    named = "data/prepared" if path.startswith("data") else path
    assert refusal().startswith(f"{named} is not the one that `prepare` last ran with")
    Path(path).unlink()
    assert refusal().startswith(f"{named} is not the one that `prepare` last ran with")


def test_prepared_images_are_refused_after_a_change_of_a_setting_that_prepare_reads(project):
    text = Path("params.yaml").read_text(encoding="utf-8")
    for key, old in (("seed", "seed: 0 "), ("data", "validation_size: 0 ")):
        new = old.replace("0", "1")
        Path("params.yaml").write_text(text.replace(old, new), encoding="utf-8")
        assert refusal().startswith(f"params.yaml: {key} was changed since `prepare` ran")
    Path("params.yaml").write_text(text.replace("device: cpu ", "device: cuda "), encoding="utf-8")
    cell.check_prepared()


@pytest.mark.parametrize("content", ["", "stages: [", "stages: {}", "- a", "stages: {prepare: {"])
def test_a_lock_that_does_not_say_what_prepare_ran_with_is_refused(project, content):
    Path("dvc.lock").write_text(content, encoding="utf-8")
    assert refusal().startswith("dvc.lock does not have the stage prepare")
    Path("dvc.lock").unlink()
    assert refusal().startswith("dvc.lock does not have the stage prepare")
