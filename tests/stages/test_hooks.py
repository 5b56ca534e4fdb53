"""The hooks: data sets, metrics, curves, models, and where two results first differ."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT
from dvc_kit.errors import InputError
from dvc_mlflow import results
from dvc_mlflow.hooks import Dataset, Hooks, hook
from dvc_mlflow.projects import MAIN
from dvc_mlflow.result import Result
from stages import hooks
from stages.base import files
from stages.base.params import MODEL_NAMES
from stages.base.splits import Split, save_split

TRAIN, TEST = ("train", "training"), ("test", "evaluation")
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


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder with prepared splits."""
    monkeypatch.chdir(tmp_path)
    for name, size in SIZES.items():
        images, labels = np.zeros((size, 32, 32), np.uint8), np.zeros(size, np.uint8)
        save_split(files.DATA_PREPARED, name, Split(images, labels))


def test_every_hook_is_one_that_dvc_mlflow_calls(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert hook("export") is hooks.export and hooks.downloads() == [files.DATA_RAW]
    names = {name for name in vars(Hooks) if not name.startswith("_")}
    ours = {name for name, value in vars(hooks).items() if not name.startswith("_")
            and getattr(value, "__module__", "") == hooks.__name__}  # fmt: skip
    assert ours - names == {"recipe_of"}  # stages/serve.py may need it
    assert names <= ours
    assert hooks.colors() == {"model": {"lenet5": "#0072B2", "mlp": "#D55E00"}}


def test_a_setting_of_a_model_in_params_yaml_is_told_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "recipes.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    hooks.check()
    with Path("params.yaml").open("a", encoding="utf-8") as file:
        file.write("\nlenet5:\n  epochs: 5\n")
    place = "recipes.yaml:documented.lenet5.epochs=5"
    with pytest.raises(InputError, match=rf"^params.yaml: lenet5.epochs is not .* -S '{place}'`$"):
        hooks.check()


@pytest.mark.parametrize("stage", INPUTS)
def test_a_runs_datasets_are_the_splits_that_its_stage_reads(prepared, declared, stage):
    assert hooks.reads(declared[stage]) == ([] if stage == "prepare" else ["data/prepared"])
    expected = []
    for split, context in INPUTS[stage]:
        path, size = files.DATA_PREPARED / f"{split}.safetensors", SIZES[split]
        schema = {"images": f"uint8 ({size}, 32, 32)", "labels": f"uint8 ({size},)"}
        expected.append(Dataset(f"mnist-{split}", path, context, json.dumps(schema), size))
    assert [*hooks.datasets(declared[stage])] == expected


def test_no_setting_of_a_run_has_the_name_of_a_recipe(declared):
    params = {stage: result.params for stage, result in declared.items()}
    assert params["train_mlp"]["epochs"] == params["evaluate"]["mlp.epochs"] == 20
    cell = params["cell@record-mlp-3"]
    assert (cell["recipe"], cell["model"], cell["seed"]) == ("record", "mlp", 3)
    assert (cell["epochs"], cell["augmentation.shift"]) == (100, 1.5)
    recipe = hooks.recipe_of(declared["train_mlp"], "mlp")
    assert (recipe.dropout, recipe.softmax_before_loss) == (0.5, False)
    settings = {**declared["train_lenet5"].params, "softmax_before_loss": True}
    of = dataclasses.replace(declared["train_lenet5"], params=settings)
    assert hooks.recipe_of(of, "lenet5").softmax_before_loss is True
    names = {key for found in params.values() for key in found}
    assert not [key for key in names if {"documented", "record", "fast"} & {*key.split(".")}]


def test_the_numbers_of_further_outs_become_metrics_and_a_cell_has_a_curve(prepared):
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
    drawn = files.REPORTS / "plot.json"
    files.write_json(drawn, {"figures": 7, "mlp": {"accuracy": 0.9}})
    for out, expected in (
        (drawn, {"figures": 7}),  # its scores are those of evaluate, which MLflow has once
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


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_an_exported_model_is_whole_and_needs_none_of_our_code(
    standing, name, monkeypatch, tmp_path
):
    project, _ = standing
    monkeypatch.setattr(hooks, "ROOT", ROOT)
    result, path = results.all_projects()[MAIN].here(f"train_{name}"), files.model_path(name)
    hooks.export(result, path, tmp_path / "model")
    assert all((tmp_path / "model" / file).is_file() for file in hooks.model_files(path))
    weights = tmp_path / "model/extra_files" / path.name
    assert weights.read_bytes() == (project.path / path).read_bytes()
    program = torch.export.load(tmp_path / "model/data/model.pt2")
    assert all(tensor.is_contiguous() for tensor in program.state_dict.values())
    needed = (tmp_path / "model/requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in needed) == ["mlflow", "numpy", "torch"]
    assert "model_type: classifier" in (tmp_path / "model/MLmodel").read_text()


def test_a_logged_model_and_its_scores_name_its_run_its_settings_and_the_test_images(standing):
    project, client = standing
    runs = {run.data.tags["stage"]: run for run in client.search_runs(["1"])}
    of_run = {stage: run.inputs.dataset_inputs for stage, run in runs.items()}
    for stage, split in (("train_mlp", "train"), ("evaluate", "test")):
        [read] = [one.dataset for one in of_run[stage] if one.dataset.name == f"mnist-{split}"]
        assert read.digest == project.md5(f"data/prepared/{split}.safetensors")
    [model] = client.search_logged_models(["1"], filter_string="name = 'mlp'")
    assert model.source_run_id == runs["train_mlp"].info.run_id
    assert model.params == runs["train_mlp"].data.params
    assert model.tags["file"] == "models/mlp.safetensors"
    digest = project.md5("data/prepared/test.safetensors")
    named = {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    assert named == {("mnist-test", digest)}
    scores = {metric.key: metric.value for metric in model.metrics}
    expected = json.loads((project.path / files.METRICS).read_text())["mlp"]
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
