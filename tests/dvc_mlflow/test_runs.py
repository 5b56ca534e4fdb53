"""One run in a real MLflow store, of a project without hooks."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlparse

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dvc_mlflow import files, models, pipeline, runs
from dvc_mlflow.results import Result


@pytest.fixture(scope="module")
def experiment(mlflow_store, tmp_path_factory):
    """An experiment, and around the test an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        with mlflow_store() as experiment_id:
            yield experiment_id


def result(stage: str, outs=(), deps=(), params=(), **more) -> Result:
    described = f"the description of {stage}"
    return Result(Path(), stage, described, dict(params), dict(outs), dict(deps), **more)


def write(path: str, text: str) -> str:
    """Write a file; its md5."""
    files.write_text(Path(path), text)
    return hashlib.md5(text.encode()).hexdigest()


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
    assert (tags["stage"], tags["dep:a.csv"]) == ("plot", "md5 of a")
    assert tags["commit"] == tags["mlflow.source.git.commit"] == "c0ffee"
    assert not [tag for tag in tags if tag.startswith("out:")]
    write("reports/b.csv", "x\n1\n")
    runs.log_result(run_id, result("plot", outs={"reports/b.csv": "md5 of b"}, deps=begun.deps))
    assert client.get_run(run_id).data.tags["out:reports/b.csv"] == "md5 of b"
    assert [file.path for file in client.list_artifacts(run_id)] == ["b.csv"]


def test_a_curve_is_logged_step_by_step_under_the_names_of_its_columns(experiment):
    columns = {"epoch": [1.0, 2.0, 3.0], "test_loss": [0.3, 0.2, 0.1], "train_loss": [3, 2, 1]}
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    md5 = write("reports/curve.csv", "\n".join([",".join(columns), *rows, ""]))
    write("reports/no curve.csv", "epoch,other\n1,2\n")
    outs = {"reports/curve.csv": md5, "reports/no curve.csv": "any"}
    made = result("fit", outs, curves={"reports/curve.csv": "epoch"})
    whole, single = (runs.start(experiment, made, {}) for _ in range(2))
    runs.log_curves(whole, made)
    for values in zip(*columns.values(), strict=True):
        runs.log_epoch(single, dict(zip(columns, values, strict=True)))
    client = MlflowClient()
    for run_id in (whole, single):
        assert set(client.get_run(run_id).data.metrics) == {"test_loss", "train_loss"}
        for key in ("test_loss", "train_loss"):
            history = client.get_metric_history(run_id, key)
            assert [metric.step for metric in history] == [1, 2, 3]
            assert [metric.value for metric in history] == columns[key]


def test_a_curve_may_have_columns_without_numbers_and_another_x(experiment):
    md5 = write("a.csv", "step,kind,loss\n10,a,0.5\n20,b,0.25\n")
    made = result("fit", {"a.csv": md5}, curves={"a.csv": "step"})
    run_id = runs.start(experiment, made, {})
    runs.log_curves(run_id, made)
    client = MlflowClient()
    assert client.get_run(run_id).data.metrics == {"loss": 0.25}
    history = client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 0.5), (20, 0.25)]


def test_a_curve_longer_than_one_call_is_logged_whole(experiment, monkeypatch):
    monkeypatch.setattr(runs, "LARGEST_BATCH", 4)
    rows = "".join(f"{at + 1},{at},0.5\n" for at in range(7))
    made = result("fit", {"a.csv": write("a.csv", f"n,a,b\n{rows}")}, curves={"a.csv": "n"})
    run_id = runs.start(experiment, made, {})
    runs.log_curves(run_id, made)
    history = MlflowClient().get_metric_history(run_id, "a")
    assert [(metric.step, metric.value) for metric in history] == [(s + 1, s) for s in range(7)]
    assert len(MlflowClient().get_metric_history(run_id, "b")) == 7


@pytest.mark.parametrize("name", ["m.json", "m.yaml"])
def test_the_numbers_of_a_metrics_file_become_metrics_and_nothing_else_does(experiment, name):
    content = {"a": {"accuracy": 0.9, "b": {"n": 3}}, "list": [1, 2], "text": "x", "none": None}
    outs = {name: write(name, json.dumps(content)), "other.json": write("other.json", '{"c": 1}')}
    made = result("evaluate", outs, metrics=(name,))
    run_id = runs.start(experiment, made, {})
    runs.log_result(run_id, made)
    run = MlflowClient().get_run(run_id)
    assert run.data.metrics == {"a.accuracy": 0.9, "a.b.n": 3}
    assert run.inputs.dataset_inputs == []
    kept = {file.path for file in MlflowClient().list_artifacts(run_id)}
    assert kept == {name, "other.json"}


def test_each_logged_model_has_the_scores_under_its_name_and_only_the_newest(experiment):
    client = MlflowClient()
    scores = {name: {"accuracy": at / 10, "loss": at} for at, name in enumerate("ab", 3)}
    metrics = {**scores, "difference": {"accuracy": 0.5}, "unknown": 1}
    outs = {"m.json": write("m.json", json.dumps(metrics))}
    deps, locked, made = {}, {}, {}
    for name in scores:
        deps[f"{name}.bin"] = f"md5 of {name}"
        locked[name] = result(name, {f"{name}.bin": f"md5 of {name}"}, models={f"{name}.bin": name})
        for _ in range(2):
            run_id = client.create_run(experiment).info.run_id
            tags = {"md5": f"md5 of {name}", "file": f"{name}.bin"}
            model = client.create_logged_model(
                experiment, name=name, source_run_id=run_id, tags=tags
            )
            client.finalize_logged_model(model.model_id, "READY")
            made.setdefault(name, []).append((model.model_id, run_id))
            time.sleep(0.002)  # a millisecond is the store's clock
    evaluation = result("score", outs, {**deps, "data": "md5"}, metrics=("m.json",))
    locked["score"] = evaluation
    assert pipeline.evaluations(locked) == [evaluation]
    for _ in range(2):  # and once is enough
        pipeline.score_models(evaluation, locked)
    for name, [(older, _), (newer, run_id)] in made.items():
        assert not client.get_logged_model(older).metrics
        found = client.get_logged_model(newer).metrics
        values = sorted((metric.key, metric.value) for metric in found)
        assert values == sorted(scores[name].items())
        assert client.get_run(run_id).data.metrics == scores[name]
        assert len(client.get_metric_history(run_id, "loss")) == 1


# --- files ---


def folder_of(place: str) -> Path:
    return Path(urlparse(place).path)


def test_a_run_keeps_of_a_folder_what_can_be_shown_and_every_other_out(experiment, tmp_path):
    shown = ("a.json", "b.csv", "c.md", "d.png", "f.txt", "g.svg", "h.html", "i.yaml")
    for name in (*shown, "e.safetensors", "j.npz", "k"):
        (tmp_path / name).write_text(name)
    assert [path.name for path in runs.artifacts_of(str(tmp_path))] == list(shown)
    assert runs.artifacts_of("reports/any.npz") == [Path("reports/any.npz")]


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
    assert tags["mlflow.note.content"] == "the description of plot"
    assert tags["process"] == runs.this_process()
    assert tags["stage"] == "given tags win"
    assert "mlflow.source.git.commit" not in tags


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


def fitted(name: str, text: str = "weights") -> Result:
    """The result of a stage that made a model."""
    path = f"models/{name}.bin"
    return result("fit", {path: write(path, text)}, params={"rate": 20}, models={path: name})


def test_without_a_hook_a_logged_model_is_a_copy_of_its_file_that_names_its_run(experiment):
    client = MlflowClient()
    of = fitted("tree")
    [(path, md5)] = of.outs.items()
    run_id = runs.start(experiment, of, {})
    for step in (1, 2, 7):
        runs.log_epoch(run_id, {"epoch": step, "loss": 1.0})
    said: list[str] = []
    runs.log_result(run_id, of, said.append)
    (model,) = models.find(md5)
    assert (model.name, model.source_run_id) == ("tree", run_id)
    assert (model.tags["file"], model.params) == (path, {"rate": "20"})
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 7)
    assert [file.path for file in client.list_artifacts(run_id)] == []  # it is in the model
    assert said.count("local") == 1 and said[-1] == "ready"
    folder = folder_of(model.artifact_location)
    assert (folder / "tree.bin").read_text() == "weights"
    described = (folder / "MLmodel").read_text()
    assert f"model_id: {model.model_id}" in described and f"run_id: {run_id}" in described
    assert models.lost_files(model) == []
    for lose in (lambda path: path.write_bytes(b""), Path.unlink):
        for name in ("MLmodel", "tree.bin"):
            models.log_files(model, of, runs.silent)
            lose(folder / name)
            assert models.lost_files(model) == [name]
    models.log_files(model, of, runs.silent)
    assert models.lost_files(model) == []
    shutil.rmtree(folder)
    assert models.lost_files(model)


def test_a_model_that_is_a_folder_is_copied_whole(experiment):
    for name in ("a", "b/c"):
        write(f"models/forest/{name}", name)
    path, md5 = "models/forest", files.md5(Path("models/forest"))
    of = result("fit", {path: md5}, models={path: "forest"})
    run_id = runs.start(experiment, of, {})
    runs.log_result(run_id, of)
    (model,) = models.find(md5)
    folder = folder_of(model.artifact_location)
    assert (folder / "forest/a").read_text() == "a" and (folder / "forest/b/c").is_file()
    assert models.lost_files(model) == []
    (folder / "MLmodel").unlink()
    assert models.lost_files(model) == ["MLmodel"]


def test_a_model_that_cannot_be_written_is_not_left_behind(experiment):
    of = fitted("gone", "these weights are lost")
    [(path, md5)] = of.outs.items()
    run_id = runs.start(experiment, of, {})
    Path(path).unlink()
    with pytest.raises(OSError, match=r"gone\.bin"):
        models.log(run_id, of, path, runs.silent)
    assert MlflowClient().search_logged_models([experiment], f"tags.md5 = '{md5}'") == []


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
    assert [found.model_id for found in models.find("md5 of several")] == whole[::-1]
    models.drop_unfinished("md5 of another")
    for model_id in (failed, alone, live, dead, lost):
        assert client.get_logged_model(model_id)
    models.drop_unfinished("md5 of several")
    for model_id in (*whole, live):  # one is being written
        assert client.get_logged_model(model_id)
    for model_id in (failed, alone, dead, lost):
        with pytest.raises(MlflowException):
            client.get_logged_model(model_id)
