"""The hooks: data sets, metrics, curves, models, and where two results first differ."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from tiny import make_project

from conftest import ROOT
from dvc_mlflow import models, pipeline, projects, results, runs
from dvc_mlflow.hooks import Hooks, hook
from dvc_mlflow.result import Result
from stages import hooks
from stages.base import files
from stages.base.params import MODEL_NAMES
from stages.base.splits import Split, save_split

TRAIN, TEST = ("mnist-train", "train", "training"), ("mnist-test", "test", "evaluation")
SIZES = {"train": 7, "validation": 3, "test": 5}
INPUTS = {
    "prepare": [],
    "train_lenet5": [TRAIN],
    "train_mlp": [TRAIN],
    "evaluate": [TEST],
    "plot": [],
    "cell@record-mlp-3": [TRAIN, TEST],
    "ablation@record_without_decay-lenet5-0": [TRAIN, TEST],
    "validation@fast-lenet5": [TRAIN, TEST],
    "report": [],
}


@pytest.fixture(scope="module")
def declared() -> dict[str, Result]:
    """The results of all stages of this repository, whose files need not be there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        found = results.all_projects().values()
        return {name: result for project in found for name, result in project.locked().items()}


@pytest.fixture(scope="module")
def experiment(mlflow_store, tmp_path_factory):
    """An experiment, and around the test a folder with the prepared splits and our settings."""
    folder = tmp_path_factory.mktemp("hooks")
    shutil.copy(ROOT / "pyproject.toml", folder)
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        images = generator.integers(0, 256, (size, 32, 32)).astype(np.uint8)
        labels = generator.integers(0, 10, size).astype(np.uint8)
        save_split(folder / files.DATA_PREPARED, name, Split(images, labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with mlflow_store() as experiment_id:
            yield experiment_id


def md5_of(split: str) -> str:
    content = Path(f"data/prepared/{split}.safetensors").read_bytes()
    return hashlib.md5(content).hexdigest()


def test_every_hook_is_one_that_dvc_mlflow_calls(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert hook("export") is hooks.export and hooks.downloads() == [files.DATA_RAW]
    names = {name for name in vars(Hooks) if not name.startswith("_")}
    ours = {name for name, value in vars(hooks).items() if not name.startswith("_")
            and getattr(value, "__module__", "") == hooks.__name__}  # fmt: skip
    assert ours - names == {"recipe_of"}  # stages/serve.py may need it
    assert names <= ours
    assert hooks.colors() == {"model": {"lenet5": "#0072B2", "mlp": "#D55E00"}}


@pytest.mark.parametrize("stage", INPUTS)
def test_a_runs_datasets_are_the_splits_that_its_stage_reads_each_with_its_own_digest(
    experiment, declared, stage
):
    assert hooks.reads(declared[stage]) == ([] if stage == "prepare" else ["data/prepared"])
    files_of_it = {"outs": {}, "metrics": (), "plots": {}}
    result = dataclasses.replace(declared[stage], **files_of_it)
    run_id = runs.start(experiment, result, {})
    runs.complete(run_id, result, missing=[*result.models])
    inputs = MlflowClient().get_run(run_id).inputs.dataset_inputs
    found = [entry for entry in inputs if entry.dataset.name.startswith("mnist-")]
    noted = {
        (entry.dataset.name, tag.value, entry.dataset.digest)
        for entry in found
        for tag in entry.tags
        if tag.key == "mlflow.data.context"
    }
    expected = {(name, context, md5_of(split)) for name, split, context in INPUTS[stage]}
    assert noted == expected
    assert len(found) == len(expected)
    for entry in found:
        split = entry.dataset.name.removeprefix("mnist-")
        assert json.loads(entry.dataset.profile) == {"num_rows": SIZES[split]}
        shape = f"uint8 ({SIZES[split]}, 32, 32)"
        assert json.loads(entry.dataset.schema)["images"] == shape
        source = json.loads(entry.dataset.source)["tags"]["mlflow.source.name"]
        assert source == f"data/prepared/{split}.safetensors"


def test_no_setting_of_a_run_has_the_name_of_a_recipe(declared):
    params = {stage: result.params for stage, result in declared.items()}
    assert params["train_mlp"]["epochs"] == params["evaluate"]["mlp.epochs"] == 20
    cell = params["cell@record-mlp-3"]
    assert (cell["recipe"], cell["model"], cell["seed"]) == ("record", "mlp", 3)
    assert (cell["epochs"], cell["augmentation.shift"]) == (100, 1.5)
    names = {key for found in params.values() for key in found}
    assert not [key for key in names if {"documented", "record", "fast"} & {*key.split(".")}]


def test_the_numbers_of_further_outs_become_metrics_and_a_cell_has_a_curve(experiment):
    cell = Path("study/cells/fast-mlp-0.json")
    history = {"epoch": [1, 2], "test_loss": [2.0, 1.5]}
    scores = {"test_loss": [0.3], "test_accuracy": [0.7]}
    files.write_json(cell, {"history": history, "scores": scores})
    counts = files.DATA_PREPARED / "counts.csv"
    counts.write_text("split,0,1,images\ntrain,4,3,7\ntest,2,3,5\n", encoding="utf-8")
    report = Path("study/report")
    files.write_json(report / "metrics.json", {"fast": {"mlp": 0.5}, "fingerprints": ["a", "b"]})
    files.write_json(files.METRICS, {"mlp": {"accuracy": 0.9}})
    details = {"mlp": {"errors": 7, "accuracy_interval": [0.1, 0.2]}, "outputs": ["a  mlp"]}
    files.write_json(files.EVALUATION, details)
    files.FIGURES.mkdir(exist_ok=True)
    for out, expected in (
        (cell, {"test_loss": 0.3, "test_accuracy": 0.7}),
        (files.DATA_PREPARED, {"train_images": 7, "test_images": 5}),
        (report, {"fast.mlp": 0.5}),
        (files.EVALUATION, {"mlp.errors": 7}),
        (files.METRICS, {}),  # DVC takes it for metrics, so no hook is needed
        (files.FIGURES, {}),
    ):
        assert hooks.metrics(out) == expected, out
        assert hooks.history(out) == (history if out == cell else {})


# --- models ---


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    """A project with weights of both models."""
    return make_project(tmp_path_factory.mktemp("made") / "project", seed=3)


def folder_of(place: str) -> Path:
    return Path(urlparse(place).path)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_logged_model_names_its_weights_run_and_settings_and_is_whole(
    experiment, made, name, monkeypatch
):
    monkeypatch.chdir(made.path)
    client = MlflowClient()
    of, path = results.all_projects()[projects.MAIN].here(f"train_{name}"), files.model_path(name)
    run_id = runs.start(experiment, of, {})
    runs.log_epoch(run_id, {"epoch": 20, "test_loss": 0.5})
    models.log(run_id, of, path.as_posix())
    (model,) = models.find(made.md5(path.as_posix()))
    assert (model.name, model.source_run_id) == (name, run_id)
    assert model.tags["file"] == path.as_posix()
    assert model.params == {key: str(value) for key, value in of.params.items()}
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 20)
    assert models.lost_files(model) == []
    folder = folder_of(model.artifact_location)
    weights = folder / "extra_files" / path.name
    assert weights.read_bytes() == path.read_bytes()
    program = torch.export.load(folder / "data/model.pt2")
    assert all(tensor.is_contiguous() for tensor in program.state_dict.values())
    needed = (folder / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in needed) == ["mlflow", "numpy", "torch"]
    described = (folder / "MLmodel").read_text()
    assert f"model_id: {model.model_id}" in described and f"run_id: {run_id}" in described
    assert "model_type: classifier" in described
    assert {*hooks.model_files(path)} == {
        *("MLmodel", "data/model.pt2", "requirements.txt"),
        f"extra_files/{path.name}",
    }
    (folder / "data/model.pt2").unlink()
    assert models.lost_files(model) == ["data/model.pt2"]


def test_a_network_is_built_from_the_settings_of_its_own_run(made, monkeypatch):
    monkeypatch.chdir(made.path)
    locked = results.all_projects()[projects.MAIN].locked()
    recipe = hooks.recipe_of(locked["train_mlp"], "mlp")
    assert (recipe.dropout, recipe.softmax_before_loss) == (0.5, False)
    settings = {**locked["train_lenet5"].params, "softmax_before_loss": True}
    of = dataclasses.replace(locked["train_lenet5"], params=settings)
    assert hooks.recipe_of(of, "lenet5").softmax_before_loss is True


def test_the_scores_of_a_logged_model_name_the_test_images(experiment, made, monkeypatch):
    monkeypatch.chdir(made.path)
    locked = results.all_projects()[projects.MAIN].locked()
    of = locked["train_mlp"]
    run_id = runs.start(experiment, of, {})
    models.log(run_id, of, "models/mlp.safetensors")
    pipeline.score_models(locked["evaluate"], locked)
    model = models.find(made.md5("models/mlp.safetensors"))[0]
    found = {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    assert found == {("mnist-test", md5_of("test"))}
    scores = {metric.key: metric.value for metric in model.metrics}
    expected = json.loads(files.METRICS.read_text())["mlp"]
    assert scores == {f"trained_model.{key}": value for key, value in expected.items()}


# --- the first difference ---


def test_the_first_difference_of_a_training_is_told_by_its_moment():
    def content(*hashes: str) -> str:
        moments = ("initial", "first batch", "epoch 1")
        return json.dumps({"weights": files.fingerprint_lines(zip(moments, hashes, strict=False))})

    path = files.training_path("mlp").as_posix()
    same = content("a", "b", "c")
    for computed, said in {
        content("a", "b", "d"): "the weights of mlp, epoch 1",
        content("a", "x", "y"): "the weights of mlp, first batch",
        content("a", "b"): "the weights of mlp, epoch 1",
        same: "",
    }.items():
        assert hooks.explain(path, same, computed) == said
    assert hooks.explain("reports/metrics.json", "{}", "[]") == ""
