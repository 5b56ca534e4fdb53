"""A cell of the study: its arguments, the images that it is made from, and its scores."""

import json
import re
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["record", "mlp"], "usage: python -m study.cell RECIPE MODEL SEED|validation"),
        (["best", "mlp", "0"], "recipe is best, expected one of: published, "),
        (["record", "resnet", "0"], "model is resnet, expected one of: lenet5, mlp"),
        *(
            (["record", "mlp", seed], f"seed is {seed}, expected a number from 0 to 4294967295")
            for seed in ("-1", "4294967296", "1.0", "")
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


def edit(path: str, old: str = ".*", new: str = "") -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert re.search(old, text)
    Path(path).write_text(re.sub(old, new, text), encoding="utf-8")


IMAGES = "data/prepared/train.safetensors"
TO_PREPARE, TO_BITS = "`dvc repro prepare`", "`(cd study && dvc repro bits)`"
REFUSED = {  # what is done, and the line; without a line it is no reason
    "another thread": (lambda: edit("params.yaml", "threads: 0", "threads: 2"), ""),
    "edited images": (
        lambda: Path(IMAGES).write_bytes(b"edited"),
        f"data/prepared was changed since the stage prepare wrote it: {TO_PREPARE}",
    ),
    "no bits": (
        lambda: settings.BITS.unlink(),
        f"study/bits.json is gone since the stage bits wrote it: {TO_BITS}",
    ),
    "bits of another version": (
        lambda: (
            settings.BITS.write_bytes(b'{"format": 0}'),
            edit("study/dvc.lock", "[0-9a-f]{32}", md5(settings.BITS)),
        ),
        f"study/bits.json has format 0, expected 1: {TO_BITS}",
    ),
    "another seed": (
        lambda: edit("params.yaml", "\nseed: 0 ", "\nseed: 1 "),
        f"params.yaml: seed was changed since `prepare` ran: {TO_PREPARE}",
    ),
    "other data": (
        lambda: edit("params.yaml", "validation_size: 0 ", "validation_size: 50 "),
        f"params.yaml: data was changed since `prepare` ran: {TO_PREPARE}",
    ),
    "no lock": (
        lambda: Path("dvc.lock").unlink(),
        f"dvc.lock does not have the stage prepare: {TO_PREPARE}",
    ),
    "a torn lock": (
        lambda: edit("study/dvc.lock", "bits:", "bits: ["),
        f"study/dvc.lock does not have the stage bits: {TO_BITS}",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_and_bits_are_refused_that_are_not_those_of_their_stages(project, kind):
    cell.check_inputs()
    change, line = REFUSED[kind]
    change()
    if not line:
        cell.check_inputs()
        return
    with pytest.raises(StageError) as refused:
        cell.check_inputs()
    assert str(refused.value) == line


# --- the training, and the scores ---


@pytest.fixture(autouse=True)
def one_thread(settings_of_torch):
    torch.set_num_threads(1)


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
def test_each_epoch_of_a_cell_is_shown_in_the_run_of_its_stage(
    stage, small, monkeypatch, recipe, seed, name
):
    runs = {}

    @contextmanager
    def run(name):
        rows = runs[name] = []
        yield SimpleNamespace(log_epoch=lambda row: rows.append(dict(row)))

    monkeypatch.setattr(dvc_mlflow, "run", run)
    stage(small, recipe, "mlp", seed)
    assert [*runs] == [name]
    if seed == "7":
        assert runs[name] == trained({"train": small["train"]}, SGD, seed=7).history
