"""After `dvc repro`, each stage has one finished run with its settings, metrics and model."""

import json
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from conftest import STAGES, assert_metrics_and_artifacts
from dvc_kit.files import md5
from stages.base import files, params
from stages.base.params import MODEL_NAMES
from stages.mnist import idx
from stages.networks import models

pytestmark = pytest.mark.slow  # the whole pipeline runs first


@pytest.fixture
def client(small_run, monkeypatch) -> MlflowClient:
    uri = f"sqlite:///{small_run.path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


@pytest.fixture
def runs(client):
    experiment = client.get_experiment_by_name("mnist")
    found = client.search_runs([experiment.experiment_id])
    stages = {run.data.tags["stage"]: run for run in found if run.info.status == "FINISHED"}
    stages.pop("pipeline")
    return stages


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_epochs_and_scores_are_those_of_the_files(small_run, client, runs, name):
    run = runs[f"train_{name}"]
    assert (run.data.params["model"], run.data.params["epochs"]) == (name, "2")
    history = files.read_csv(small_run.path / files.history_path(name))
    for key in set(history) - {"epoch"}:
        logged = client.get_metric_history(run.info.run_id, key)
        assert [(m.step, m.value) for m in logged] == list(
            zip(history["epoch"], history[key], strict=True)
        )
    metrics = json.loads((small_run.path / files.METRICS).read_text(encoding="utf-8"))
    (model_id,) = [output.model_id for output in run.outputs.model_outputs]
    model = client.get_logged_model(model_id)
    assert model.tags["md5"] == md5(small_run.path / files.model_path(name))
    told = {m.key.removeprefix("trained_model."): m for m in model.metrics}
    scores = {key: (told[key].value, told[key].dataset_digest) for key in metrics[name]}
    digest = md5(small_run.path / files.DATA_PREPARED / "test.safetensors")
    assert scores == {key: (value, digest) for key, value in metrics[name].items()}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_logged_model_takes_raw_images_and_is_free_of_pickle(
    small_run, client, runs, raw, name, monkeypatch
):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    (output,) = runs[f"train_{name}"].outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    images = idx.read(raw)["test"].images[:100]
    monkeypatch.chdir(small_run.path)
    recipe = params.load().of_model(name)
    network = models.load_model(name, recipe, files.model_path(name))
    expected = models.Classifier(network).eval()(torch.from_numpy(images)).detach().numpy()
    predicted = model.predict(images)
    assert np.allclose(predicted, expected, atol=1e-6)
    assert model.predict(images[:1]).shape == (1, 10)
    assert model.metadata.signature.inputs.inputs[0].type == np.dtype(np.uint8)
    location = client.get_logged_model(output.model_id).artifact_location
    requirements = Path(url2pathname(urlparse(location).path)) / "requirements.txt"
    assert "torch==2.13.0" in requirements.read_text(encoding="utf-8")


def test_sync_writes_the_missing_runs_from_the_results_and_then_nothing(
    small_run, client, runs, tmp_path
):
    fresh = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}
    sync = ("python", "-m", "dvc_mlflow", "sync")
    first = small_run.run(*sync, env=fresh).stdout
    assert [line.split()[4] for line in first.splitlines()] == STAGES
    assert small_run.run(*sync, env=fresh).stdout == ""
    assert small_run.run(*sync).stdout == ""
    status = small_run.run("python", "-m", "dvc_mlflow", "status", env=fresh).stdout
    assert status.startswith("5 of 5 results have their run\n")

    other = MlflowClient(fresh["MLFLOW_TRACKING_URI"])
    experiment = other.get_experiment_by_name("mnist")
    written = {run.data.tags["stage"]: run for run in other.search_runs([experiment.experiment_id])}
    assert_metrics_and_artifacts(other, {stage: written[stage] for stage in STAGES})
    for stage, live in runs.items():
        copied = written[stage]
        assert copied.data.tags["backfilled"] == "true"
        assert copied.data.params == live.data.params
        kept = {k: v for k, v in live.data.metrics.items() if not k.startswith("system/")}
        assert copied.data.metrics == kept
        for key in kept:
            histories = [
                [(m.step, m.value) for m in c.get_metric_history(run.info.run_id, key)]
                for c, run in ((client, live), (other, copied))
            ]
            assert histories[0] == histories[1]
