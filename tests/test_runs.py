"""What a run says of the data and the scores, with a real MLflow store and small files."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tiny import make_project

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


# --- files ---


def folder_of(place: str) -> Path:
    return Path(urlparse(place).path)


def test_a_run_keeps_what_people_open_of_a_folder_and_every_other_out_but_weights(
    experiment, tmp_path
):
    for name in ("b.csv", "a.json", "c.md", "d.png", "e.safetensors", "f.txt"):
        (tmp_path / name).write_text(name)
    kept = [path.name for path in runs.artifacts_of(str(tmp_path))]
    assert kept == ["a.json", "b.csv", "c.md", "d.png"]
    assert runs.artifacts_of("reports/any.txt") == [Path("reports/any.txt")]
    assert runs.artifacts_of("models/mlp.safetensors") == []


def test_links_are_logged_as_the_files_behind_them(experiment, tmp_path):
    (tmp_path / "cached").write_text("content")
    (tmp_path / "a.csv").symlink_to(tmp_path / "cached")
    run_id = runs.start(experiment, result("plot"), {})
    said: list[str] = []
    runs.log_files(run_id, [tmp_path / "a.csv", tmp_path / "cached"], said.append)
    folder = folder_of(MlflowClient().get_run(run_id).info.artifact_uri)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "a.csv": "content",
        "cached": "content",
    }
    assert not (folder / "a.csv").is_symlink()
    assert said == ["ready", "ready"]  # who waits for it sees that it goes on


def test_a_run_has_lost_a_file_that_is_not_there_or_has_another_size(experiment, tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(name)
    folder, file = str(tmp_path), str(tmp_path / "a.csv")
    md5, md5_of_file = files.md5(tmp_path), hashlib.md5(b"a.csv").hexdigest()
    run_id = runs.start(experiment, result("plot"), {})
    kept = folder_of(MlflowClient().get_run(run_id).info.artifact_uri)
    assert runs.lost_files(run_id, file, md5_of_file)
    assert runs.lost_files(run_id, "gone.csv", "any") and runs.lost_files(run_id, "gone", "any")
    runs.log_files(run_id, [tmp_path / "a.csv"])
    assert not runs.lost_files(run_id, file, md5_of_file)
    assert runs.lost_files(run_id, folder, md5)
    assert not runs.lost_files(run_id, folder, "md5 of what is not here")  # nothing to tell it by
    runs.log_files(run_id, [tmp_path / "b.csv"])
    assert not runs.lost_files(run_id, folder, md5)
    (kept / "a.csv").write_text("")
    assert runs.lost_files(run_id, file, md5_of_file) and runs.lost_files(run_id, folder, md5)
    # Of outs that are not in the folder, the name has to do; of a folder, that there is something
    assert not runs.lost_files(run_id, "elsewhere/a.csv", "any")
    assert runs.lost_files(run_id, "elsewhere/c.csv", "any")
    assert not runs.lost_files(run_id, "elsewhere/figures", "any")
    assert not runs.lost_files(run_id, "models/mlp.safetensors", "any")  # it is in a model


def test_a_run_that_was_copied_is_finished_and_claims_no_end(experiment):
    run_id = runs.start(experiment, result("plot"), {})
    runs.end_copy(run_id)
    info = MlflowClient().get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", None)


def test_a_run_says_who_made_it_and_how(experiment, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    run_id = runs.start(experiment, result("plot"), {"stage": "given tags win"})
    tags = MlflowClient().get_run(run_id).data.tags
    assert tags["mlflow.user"] == "somebody"
    assert tags["mlflow.source.name"] == "dvc repro plot"
    assert tags["mlflow.note.content"] == "what plot does"
    assert tags["process"] == runs.this_process()
    assert tags["stage"] == "given tags win"
    assert "mlflow.source.git.commit" not in tags
    without = runs.start(experiment, runs.Result("plot", "", {}, None, {}, {}), {})
    assert "recipe" not in MlflowClient().get_run(without).data.tags


def test_metrics_of_the_report_lie_in_its_folder_and_lists_are_none(experiment):
    content = {"fast": {"mlp": 0.5}, "fingerprints": ["a", "b"]}
    files.write_json(Path("study/report/metrics.json"), content)
    run_id = runs.start(experiment, result("report"), {})
    runs.log_result(run_id, result("report", outs={"study/report": "md5"}))
    assert MlflowClient().get_run(run_id).data.metrics == {"fast.mlp": 0.5}


# --- processes ---


def test_a_process_is_over_when_it_ended_or_another_one_has_its_number():
    process = subprocess.Popen(["sleep", "60"])
    started = psutil.Process(process.pid).create_time()
    said = f"{runs.machine()} {process.pid} {started:.0f}"
    assert not runs.is_over(said)
    for off, over in {-60: True, -2.5: True, -1.5: False, 1.5: False, 2.5: True, 60: True}.items():
        assert runs.is_over(f"{runs.machine()} {process.pid} {started + off}") is over
    process.kill()
    process.wait()
    assert runs.is_over(said)
    assert not runs.is_over(f"elsewhere {process.pid} {started:.0f}")  # nobody here can tell
    assert not runs.is_over("")
    assert runs.is_over(f"{runs.machine()} nothing readable")


def test_a_process_names_its_machine_its_number_and_its_start():
    host, pid, started = runs.this_process().split(" ")
    assert host == runs.machine() and host.startswith(f"{os.uname().nodename}-")
    assert int(pid) == os.getpid()
    assert 0 <= time.time() - float(started) < 24 * 3600
    assert not runs.is_over(runs.this_process())


# --- logged models ---


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    """A project with weights of both models."""
    return make_project(tmp_path_factory.mktemp("made") / "project", seed=3)


def trained(project, name: str) -> runs.Result:
    path = f"models/{name}.safetensors"
    return result(f"train_{name}", outs={path: project.md5(path)}, params={f"{name}.epochs": 20})


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_logged_model_names_its_weights_run_and_settings_and_is_whole(
    experiment, made, name, monkeypatch
):
    monkeypatch.chdir(made.path)
    client = MlflowClient()
    said: list[str] = []
    of, path = trained(made, name), files.model_path(name)
    run_id = runs.start(experiment, of, {})
    runs.log_model(run_id, of, path, said.append)
    (model,) = runs.find_models(made.md5(path.as_posix()))
    assert (model.name, model.source_run_id, model.model_type) == (name, run_id, "classifier")
    assert model.tags["file"] == path.as_posix()
    assert model.params == {f"{name}.epochs": "20"}
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 20)
    assert said == ["local", "ready"]
    assert runs.lost_model_files(model) == []
    folder = folder_of(model.artifact_location)
    weights = folder / "extra_files" / path.name
    assert weights.read_bytes() == path.read_bytes()
    program = torch.export.load(folder / "data/model.pt2")
    assert all(tensor.is_contiguous() for tensor in program.state_dict.values())
    needed = (folder / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in needed) == ["mlflow", "numpy", "torch"]
    described = (folder / "MLmodel").read_text()
    assert f"model_id: {model.model_id}" in described and f"run_id: {run_id}" in described
    for part in ("MLmodel", "data/model.pt2", "requirements.txt", f"extra_files/{path.name}"):
        kept = (folder / part).read_bytes()
        (folder / part).write_bytes(b"")
        assert runs.lost_model_files(model) == [part]
        (folder / part).unlink()
        assert runs.lost_model_files(model) == [part]
        (folder / part).write_bytes(kept)
    shutil.rmtree(folder)
    assert len(runs.lost_model_files(model)) == 4


def test_a_model_that_cannot_be_written_is_not_left_behind(experiment, made, monkeypatch):
    monkeypatch.chdir(made.path)
    of = result("train_mlp", outs={"reports/metrics.json": "no weights"}, params={"mlp.epochs": 1})
    run_id = runs.start(experiment, of, {})
    with pytest.raises(Exception, match=r"metrics\.json"):
        runs.log_model(run_id, of, Path("reports/metrics.json"))
    found = MlflowClient().search_logged_models([experiment], "tags.md5 = 'no weights'")
    assert found == []


def test_the_newest_whole_model_of_a_file_comes_first_and_unfinished_ones_do_not_count(experiment):
    client = MlflowClient()

    def model(status: str | None, run_id: str | None = None) -> str:
        tags = {"md5": "md5 of several"}
        made = client.create_logged_model(
            experiment, name="mlp", source_run_id=run_id, tags=tags
        ).model_id
        if status:
            client.finalize_logged_model(made, status)
        time.sleep(0.002)  # a millisecond is the store's clock
        return made

    whole = [model("READY"), model("READY")]
    begun = client.create_run(experiment).info.run_id
    ended = client.create_run(experiment).info.run_id
    client.set_terminated(ended, "FAILED")
    failed, alone, live, dead = (
        model("FAILED"),
        model(None),
        model(None, begun),
        model(None, ended),
    )
    lost = model(None, "0" * 32)
    assert [found.model_id for found in runs.find_models("md5 of several")] == whole[::-1]
    runs.drop_unfinished("md5 of another")
    for model_id in (failed, alone, live, dead, lost):
        assert client.get_logged_model(model_id)
    runs.drop_unfinished("md5 of several")
    for model_id in (*whole, live):  # one is being written
        assert client.get_logged_model(model_id)
    for model_id in (failed, alone, dead, lost):
        with pytest.raises(MlflowException):
            client.get_logged_model(model_id)
