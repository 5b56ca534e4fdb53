"""A cell of the study: its arguments, the images that it is made from, and its scores."""

import json
import re
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from trainings import SGD, garbage, script, trained

import dvc_mlflow
from conftest import ROOT
from dvc_kit.errors import InputError, StageError
from dvc_kit.files import md5, write_bytes
from stages.base import files, params
from stages.base.splits import Split, hold_out
from stages.networks import models
from study import cell, settings


@pytest.fixture
def known(monkeypatch):
    """The settings, with all recipes."""
    monkeypatch.chdir(ROOT)
    return params.load()


@pytest.mark.parametrize("seed", ["0", "7", "4294967295", "validation"])
def test_a_recipe_a_model_and_a_seed_or_validation_is_a_cell(known, seed):
    assert cell.parse(["record", "mlp", seed], known) == ("record", "mlp", seed)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python -m study.cell RECIPE MODEL SEED|validation"),
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
def test_other_arguments_are_refused_with_the_expected_ones(known, arguments, line):
    with pytest.raises(InputError) as refused:
        cell.parse(arguments, known)
    assert str(refused.value).startswith(line)


# --- whether the images and the bits are those of the locks ---


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which `prepare` and `bits` ran last, as the locks say."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    content = YAML(typ="safe").load(Path("params.yaml"))
    write_bytes(Path("data/prepared/train.safetensors"), b"images")
    write_bytes(settings.BITS, b'{"format": 1}')
    prepare = {
        "params": {"params.yaml": {key: content[key] for key in ("seed", "data")}},
        "outs": [{"path": "data/prepared", "md5": md5(Path("data/prepared"))}],
    }
    bits = {"outs": [{"path": "bits.json", "md5": md5(settings.BITS)}]}
    for lock, stages in ("dvc.lock", {"prepare": prepare}), ("study/dvc.lock", {"bits": bits}):
        YAML(typ="safe").dump({"stages": stages}, Path(lock))


OF_PREPARE, OF_BITS = "`dvc repro prepare`", "`(cd study && dvc repro bits)`"


def refusal(cure: str) -> str:
    with pytest.raises(StageError) as refused:
        cell.check_inputs()
    line = str(refused.value)
    assert line.endswith(f": {cure}")
    return line.removesuffix(f": {cure}")


@pytest.mark.parametrize(
    ("path", "out", "stage", "cure"),
    [
        ("data/prepared/train.safetensors", "data/prepared", "prepare", OF_PREPARE),
        ("study/bits.json", "study/bits.json", "bits", OF_BITS),
    ],
)
def test_images_and_bits_are_refused_that_their_stage_did_not_write(
    project, path, out, stage, cure
):
    cell.check_inputs()
    Path(path).write_bytes(b"edited")
    assert refusal(cure) == f"{out} was changed since the stage {stage} wrote it"
    shutil.rmtree(out) if Path(out).is_dir() else Path(out).unlink()
    assert refusal(cure) == f"{out} is gone since the stage {stage} wrote it"


def test_bits_of_another_version_are_refused(project):
    settings.BITS.write_bytes(b'{"format": 0}')
    lock = Path("study/dvc.lock").read_text(encoding="utf-8")
    old = re.sub("[0-9a-f]{32}", md5(settings.BITS), lock)
    Path("study/dvc.lock").write_text(old, encoding="utf-8")
    assert refusal(OF_BITS) == "study/bits.json has format 0, expected 1"


def test_prepared_images_are_refused_after_a_change_of_a_setting_that_prepare_reads(project):
    text = Path("params.yaml").read_text(encoding="utf-8")
    for key, old in (("seed", "seed: 0 "), ("data", "validation_size: 0 ")):
        new = old.replace("0", "1")
        Path("params.yaml").write_text(text.replace(old, new), encoding="utf-8")
        assert refusal(OF_PREPARE) == f"params.yaml: {key} was changed since `prepare` ran"
    Path("params.yaml").write_text(text.replace("device: cpu ", "device: cuda "), encoding="utf-8")
    cell.check_inputs()


@pytest.mark.parametrize("content", ["", "stages: [", "stages: {}", "- a", "stages: {prepare: {"])
def test_a_lock_without_the_results_of_a_stage_is_refused(project, content):
    Path("study/dvc.lock").write_text(content, encoding="utf-8")
    assert refusal(OF_BITS) == "study/dvc.lock does not have the stage bits"
    Path("dvc.lock").write_text(content, encoding="utf-8")
    assert refusal(OF_PREPARE) == "dvc.lock does not have the stage prepare"
    Path("dvc.lock").unlink()
    assert refusal(OF_PREPARE) == "dvc.lock does not have the stage prepare"


# --- the training, and the scores ---


@pytest.fixture(autouse=True)
def one_thread(settings_of_torch):
    torch.set_num_threads(1)


def test_the_temperature_is_fitted_on_the_validation_images_alone(small):
    network = trained(small, SGD).network
    test, validation = small["test"], small["validation"]
    answers, scores = cell.score(network, test, validation, "cpu")
    _, of_garbage = cell.score(network, garbage(test), validation, "cpu")
    _, of_other = cell.score(network, test, garbage(validation), "cpu")
    own = [key for key in scores if key == "temperature" or key.startswith("validation_")]
    assert len(own) == 6
    assert [of_garbage[key] for key in own] == [scores[key] for key in own]
    assert of_garbage["test_accuracy"] != scores["test_accuracy"]
    assert of_other["temperature"] != scores["temperature"]
    assert of_other["test_accuracy"] == scores["test_accuracy"]
    # Logits divided by a temperature are powers of the probabilities
    powers = answers.probabilities ** (1 / scores["temperature"])
    scaled = (powers / powers.sum(1, keepdims=True))[range(60), test.labels]
    found = scores["test_scaled_negative_log_likelihood"]
    assert found == pytest.approx(-np.log(scaled).mean(), rel=1e-6)
    assert found != pytest.approx(scores["test_negative_log_likelihood"], rel=1e-3)
    assert scores["test_loss"] == answers.loss
    without, plain = cell.score(network, test, None, "cpu")
    assert not [
        key for key in plain if "temperature" in key or "validation" in key or "scaled" in key
    ]
    assert plain == {key: scores[key] for key in plain}
    assert without.outputs_sha256 == answers.outputs_sha256


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Runs cell's main() on given splits, in a folder with the declarations of the study only."""
    monkeypatch.chdir(ROOT)
    study = settings.load().model_copy(update={"validation_size": 50})
    start = script(monkeypatch, tmp_path)
    monkeypatch.setattr(settings, "load", lambda: study)
    monkeypatch.setattr(cell, "check_inputs", lambda: None)
    (tmp_path / "study/.dvc").mkdir(parents=True)
    (tmp_path / "study/.dvc/config").touch()
    shutil.copy(ROOT / "study/dvc.yaml", tmp_path / "study")
    return partial(start, cell)


def read_cell():
    return json.loads(settings.cell_path("documented", "mlp", "validation").read_text())


def test_a_cell_is_neither_trained_on_its_validation_images_nor_scored_before_it_is(stage, small):
    seed = stage(small, "documented", "mlp", "validation").seed
    expected = read_cell()
    part = small["train"]
    stay, drawn = hold_out(part.labels, 50, seed)
    assert expected["scores"]["validation_images"] == [50]
    assert expected["scores"]["test_images"] == [60]
    assert [key for key in expected["history"] if key.startswith(("test", "validation"))] == []

    # It is trained on the other images with the seed of params.yaml, and on nothing else
    plain = trained({"train": Split(part.images[stay], part.labels[stay])}, SGD, seed=seed)
    assert files.read_fingerprints(expected["sha256"])["weights"] == plain.weights[-1][1]

    images = part.images.copy()
    images[drawn] = garbage(part).images[drawn]
    stage(small | {"train": Split(images, part.labels)}, "documented", "mlp", "validation")
    found = read_cell()
    assert found["sha256"] == expected["sha256"]
    assert found["errors"] == expected["errors"]
    assert found["scores"]["temperature"] != expected["scores"]["temperature"]

    stage(small | {"test": garbage(small["test"])}, "documented", "mlp", "validation")
    found = read_cell()
    weights = [
        files.read_fingerprints(content["sha256"])["weights"] for content in (found, expected)
    ]
    assert weights[0] == weights[1]
    assert found["scores"]["temperature"] == expected["scores"]["temperature"]
    assert found["errors"] != expected["errors"]


def test_a_cell_of_a_seed_is_trained_on_all_images_with_that_seed(stage, small, capsys):
    stage(small, "documented", "mlp", "7")
    said = capsys.readouterr()
    content = json.loads(settings.cell_path("documented", "mlp", "7").read_text())
    plain = trained({"train": small["train"]}, SGD, seed=7)
    assert files.read_fingerprints(content["sha256"])["weights"] == plain.weights[-1][1]
    assert not [key for key in content["scores"] if "validation" in key or "temperature" in key]
    # The tables are those of the network
    outputs = models.outputs(plain.network, torch.from_numpy(small["test"].images).unsqueeze(1))
    predicted, labels = outputs.argmax(1).tolist(), small["test"].labels.tolist()
    wrong = [index for index in range(60) if predicted[index] != labels[index]]
    assert 0 < len(wrong) < 60
    assert content["errors"] == {
        "index": wrong,
        "label": [labels[index] for index in wrong],
        "predicted": [predicted[index] for index in wrong],
    }
    assert content["test_accuracy"] == pytest.approx(1 - len(wrong) / 60, rel=1e-5)
    assert content["scores"]["test_accuracy"] == [content["test_accuracy"]]
    losses = [row["train_loss"] for row in plain.history]
    assert content["history"]["train_loss"] == losses
    assert content["history"]["epoch"] == [1, 2]
    *_, last = said.out.splitlines()
    assert last == f"documented-mlp-7: test accuracy {100 * content['test_accuracy']:.2f}%"


@pytest.mark.parametrize(
    ("recipe", "seed", "name"),
    [
        ("documented", "7", "cell@documented-mlp-7"),
        ("record_without_decay", "7", "ablation@record_without_decay-mlp-7"),
        ("documented", "validation", "validation@documented-mlp"),
    ],
)
def test_a_cell_is_named_as_the_studys_dvc_yaml_names_it(stage, small, recipe, seed, name, capsys):
    """One that DVC did not start says which command would have."""
    stage(small, recipe, "mlp", seed)
    assert f"`(cd study && dvc repro {name})`" in capsys.readouterr().err


def test_each_epoch_of_a_cell_is_shown_in_the_run_of_its_stage(stage, small, monkeypatch):
    runs = []

    @contextmanager
    def run(name):
        rows = []
        runs.append((name, rows))
        yield SimpleNamespace(log_epoch=lambda row: rows.append(dict(row)))

    monkeypatch.setattr(dvc_mlflow, "run", run)
    stage(small, "documented", "mlp", "7")
    history = trained({"train": small["train"]}, SGD, seed=7).history
    assert runs == [("cell@documented-mlp-7", history)]


def test_nothing_is_trained_where_prepare_has_to_run_first(stage, small, monkeypatch):
    def refuse():
        raise StageError("prepare is not up to date")

    monkeypatch.setattr(cell, "check_inputs", refuse)
    monkeypatch.setattr(cell, "Training", lambda *_: pytest.fail("it is trained"))
    with pytest.raises(SystemExit) as ended:
        stage(small, "documented", "mlp", "7")
    assert ended.value.code == 1
    assert not settings.CELLS.exists()
