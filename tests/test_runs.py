"""What a run says of the data and the scores, with a real MLflow store and small files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from stages import files, mnist, runs
from stages.params import MODEL_NAMES
from stages.results import Result

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
def experiment(mlflow_store, tmp_path_factory):
    """An experiment, and around the test a folder with the prepared splits."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        images = generator.integers(0, 256, (size, 32, 32)).astype(np.uint8)
        labels = generator.integers(0, 10, size).astype(np.uint8)
        mnist.save_split(folder / "data/prepared", name, mnist.Split(images, labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with mlflow_store() as experiment_id:
            yield experiment_id


def md5_of(split: str) -> str:
    content = Path(f"data/prepared/{split}.safetensors").read_bytes()
    return hashlib.md5(content).hexdigest()


def result(stage: str, outs=(), deps=(), params=()) -> Result:
    return Result(stage, f"what {stage} does", dict(params), "fast", dict(outs), dict(deps))


@pytest.mark.parametrize("stage", INPUTS)
def test_a_runs_datasets_are_the_splits_that_its_stage_reads_each_with_its_own_digest(
    experiment, stage
):
    run_id = runs.start(experiment, result(stage), {})
    runs.log_result(run_id, result(stage))
    client = MlflowClient()
    found = client.get_run(run_id).inputs.dataset_inputs
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


def test_a_run_begins_with_the_settings_and_the_links_of_its_stage_and_ends_with_its_outs(
    experiment,
):
    begun = result("plot", deps={"a.csv": "md5 of a"}, params={"seed": 3, "lenet5.momentum": 0.9})
    run_id = runs.start(experiment, begun, {"commit": "c0ffee", "dirty": "false"})
    client = MlflowClient()
    run = client.get_run(run_id)
    assert run.info.run_name == "plot"
    assert run.data.params == {"seed": "3", "lenet5.momentum": "0.9"}
    tags = run.data.tags
    assert (tags["stage"], tags["recipe"], tags["dep:a.csv"]) == ("plot", "fast", "md5 of a")
    assert tags["commit"] == tags["mlflow.source.git.commit"] == "c0ffee"
    assert not [tag for tag in tags if tag.startswith("out:")]
    Path("reports").mkdir(exist_ok=True)
    Path("reports/b.csv").write_text("x\n1\n", encoding="utf-8")
    runs.log_result(run_id, result("plot", outs={"reports/b.csv": "md5 of b"}, deps=begun.deps))
    assert client.get_run(run_id).data.tags["out:reports/b.csv"] == "md5 of b"
    assert [file.path for file in client.list_artifacts(run_id)] == ["b.csv"]


def test_a_history_is_logged_epoch_by_epoch_under_the_names_of_its_columns(experiment):
    columns = {"epoch": [1.0, 2.0, 3.0], "test_loss": [0.3, 0.2, 0.1], "train_loss": [3, 2, 1]}
    whole, single = (runs.start(experiment, result("train_mlp"), {}) for _ in range(2))
    runs.log_history(whole, columns)
    for values in zip(*columns.values(), strict=True):
        runs.log_epoch(single, dict(zip(columns, values, strict=True)))
    client = MlflowClient()
    for run_id in (whole, single):
        assert set(client.get_run(run_id).data.metrics) == {"test_loss", "train_loss"}
        for key in ("test_loss", "train_loss"):
            history = client.get_metric_history(run_id, key)
            assert [metric.step for metric in history] == [1, 2, 3]
            assert [metric.value for metric in history] == columns[key]


def test_a_history_longer_than_one_call_is_logged_whole(experiment, monkeypatch):
    monkeypatch.setattr(runs, "LARGEST_BATCH", 4)
    run_id = runs.start(experiment, result("train_mlp"), {})
    runs.log_history(run_id, {"epoch": list(range(1, 8)), "a": list(range(7)), "b": [0.5] * 7})
    history = MlflowClient().get_metric_history(run_id, "a")
    assert [(metric.step, metric.value) for metric in history] == [(s + 1, s) for s in range(7)]
    assert len(MlflowClient().get_metric_history(run_id, "b")) == 7


def test_the_numbers_of_a_runs_outs_become_its_metrics(experiment):
    client = MlflowClient()
    content = {"mlp": {"accuracy": 0.9}, "lenet5": {"accuracy": 0.8}, "outputs": ["a  mlp"]}
    files.write_json(files.METRICS, content)
    cell = files.cell_path("fast", "mlp", 0)
    files.write_json(cell, {"scores": {"test_loss": [0.3], "test_accuracy": [0.7]}})
    (files.DATA_PREPARED / "counts.csv").write_text("split,0,1,images\ntrain,4,3,7\ntest,2,3,5\n")
    for at, name in enumerate(MODEL_NAMES):
        columns = {"epoch": [1, 2], "test_accuracy": [0.1, 0.2 + at], "test_loss": [9, 4 + at]}
        rows = list(zip(*columns.values(), strict=True))
        files.write_csv(files.history_path(name), list(columns), rows)
    files.FIGURES.mkdir(exist_ok=True)
    histories = {files.history_path(name).as_posix(): "md5" for name in MODEL_NAMES}
    for stage, out, deps, expected in (
        ("evaluate", files.METRICS, {}, {"mlp.accuracy": 0.9, "lenet5.accuracy": 0.8}),
        ("cell@fast-mlp-0", cell, {}, {"test_loss": 0.3, "test_accuracy": 0.7}),
        ("prepare", files.DATA_PREPARED, {}, {"train_images": 7, "test_images": 5}),
        (
            "plot",
            files.FIGURES,
            histories,
            {
                **{"lenet5.test_accuracy": 0.2, "lenet5.test_loss": 4},
                **{"mlp.test_accuracy": 1.2, "mlp.test_loss": 5},
            },
        ),
    ):
        run_id = runs.start(experiment, result(stage), {})
        runs.log_result(run_id, result(stage, outs={out.as_posix(): "md5"}, deps=deps))
        assert client.get_run(run_id).data.metrics == expected, stage


def test_each_logged_model_has_its_own_scores_on_the_test_split_and_only_the_newest(experiment):
    client = MlflowClient()
    names = ("accuracy", "loss")
    scores = {name: dict.fromkeys(names, at / 10) for at, name in enumerate(MODEL_NAMES, 3)}
    files.write_json(files.METRICS, {**scores, "difference": {"accuracy": 0.5}})
    deps, made = {}, {}
    for name in MODEL_NAMES:
        deps[f"models/{name}.safetensors"] = f"md5 of {name}"
        for _ in range(2):
            run_id = client.create_run(experiment).info.run_id
            tags = {"md5": f"md5 of {name}", "file": f"models/{name}.safetensors"}
            model = client.create_logged_model(
                experiment, name=name, source_run_id=run_id, tags=tags
            )
            client.finalize_logged_model(model.model_id, "READY")
            made.setdefault(name, []).append((model.model_id, run_id))
    for _ in range(2):  # and once is enough
        runs.score_models(result("evaluate", deps=deps))
    for name, [(older, _), (newer, run_id)] in made.items():
        assert not client.get_logged_model(older).metrics
        found = client.get_logged_model(newer).metrics
        assert sorted((metric.key, metric.value) for metric in found) == sorted(
            scores[name].items()
        )
        assert {(m.dataset_name, m.dataset_digest) for m in found} == {
            ("mnist-test", md5_of("test"))
        }
        assert client.get_run(run_id).data.metrics == scores[name]
        assert len(client.get_metric_history(run_id, "loss")) == 1
