"""One run in a real MLflow store, of a project without hooks."""

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
from mlflow.utils import validation
from test_shown import result, write

from dvc_kit import files
from dvc_kit.errors import StageError
from dvc_mlflow import models, pipeline, runs, state, values, writers
from dvc_mlflow.result import Result
from dvc_mlflow.store import search


@pytest.fixture(scope="module")
def experiment(mlflow_store, tmp_path_factory):
    """An experiment, and around the test an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        with mlflow_store() as experiment_id:
            yield experiment_id


def sizes_of(*paths: str) -> dict[str, int]:
    return {path: Path(path).stat().st_size for path in paths}


def kept_in(run_id: str, below: str | None = None) -> set[str]:
    """The artifacts of a run, or of one of its folders."""
    return {file.path for file in MlflowClient().list_artifacts(run_id, below)}


def test_a_run_is_written_whole_or_not_at_all(experiment):
    outs = {"m.toml": write("m.toml", "cut = ")}
    made = result("evaluate", outs, metrics=("m.toml",))
    link = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in made.tags.items())
    with pytest.raises(StageError, match=r"^m\.toml cannot be read"):
        runs.write(experiment, made, {})
    assert search(link) == search(link, deleted=True) == []
    write("m.toml", "a = 1\n")
    elsewhere = MlflowClient().create_experiment("blocked", Path("m.toml").absolute().as_uri())
    with pytest.raises(
        StageError, match=r"^the artifacts cannot be kept in .*m\.toml.* .Not a directory"
    ):
        runs.write(elsewhere, made, {})
    assert search(link) == []
    [gone] = search(link, deleted=True)
    assert gone.info.status == "FAILED"


def test_the_data_that_a_stage_reads_are_inputs_of_its_run_with_the_hashes_of_dvc(experiment):
    folder, etag = f"{'0' * 32}.dir", "e" * 64  # GitHub gives such a hash for a file
    deps = {"code.py": "0", "raw/images": folder, "https://x/y.csv": etag, "p" * 600: "1" * 32}
    names = {"raw/images": "images", "https://x/y.csv": "https://x/y.csv", "p" * 600: "p" * 600}
    made = result("fit", deps=deps, data=names)
    run_id = runs.write(experiment, made, {})
    inputs = [entry.dataset for entry in MlflowClient().get_run(run_id).inputs.dataset_inputs]
    found = {dataset.name: dataset.digest for dataset in inputs}
    long = {values.cut("p" * 600, 500): "1" * 32}  # MLflow takes no longer ones
    assert found == {"images": folder, "https://x/y.csv": values.cut(etag, 36)} | long
    sources = [json.loads(dataset.source)["tags"]["mlflow.source.name"] for dataset in inputs]
    assert sorted(sources) == sorted(names)


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    found = MlflowClient().get_metric_history(run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def test_a_curve_longer_than_one_call_is_logged_whole(experiment, monkeypatch):
    monkeypatch.setattr(runs, "LARGEST_BATCH", 4)
    rows = "".join(f"{at + 1},{at},0.5\n" for at in range(7))
    md5 = write("a.csv", f"n,a,b\n{rows}")
    made = result("fit", {"a.csv": md5}, plots={"a.csv": {"x": "n"}})
    run_id = runs.write(experiment, made, {})
    assert history(run_id, "a") == [(step + 1, step) for step in range(7)]
    assert len(history(run_id, "b")) == 7


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
        expected = {f"trained_model.{key}": value for key, value in scores[name].items()}
        assert values == sorted(expected.items())
        assert client.get_run(run_id).data.metrics == expected
        assert len(client.get_metric_history(run_id, "trained_model.loss")) == 1


# --- files ---


def folder_of(place: str) -> Path:
    return Path(urlparse(place).path)


def test_a_run_may_have_more_files_than_the_value_of_a_tag_can_name(experiment):
    paths = [f"{at:0100}.txt" for at in range(100)]
    made = result("plot", {path: write(path, "x") for path in paths}, sizes=dict.fromkeys(paths, 1))
    live = runs.start(experiment, made, {})
    runs.complete(live, made)
    for run_id in (live, runs.write(experiment, made, {})):
        run = MlflowClient().get_run(run_id)
        longest = max(run.data.tags.values(), key=len)
        assert len(longest) <= validation.MAX_TAG_VAL_LENGTH  # PostgreSQL refuses longer ones
        assert state.lost_files(run) == []
        (folder_of(run.info.artifact_uri) / paths[0]).unlink()  # those that are named
        assert state.lost_files(run) == [paths[0]]


# --- processes ---


def test_a_process_is_over_when_it_ended_or_another_one_has_its_number():
    process = subprocess.Popen(["sleep", "60"])
    started = psutil.Process(process.pid).create_time()
    assert not writers.is_over(writers.this_process())
    assert writers.this_process().startswith(f"{os.uname().nodename}-")
    said = f"{writers.machine()} {process.pid} {started:.0f}"
    assert not writers.is_over(said)
    for off, over in {-60: True, -2.5: True, -1.5: False, 1.5: False, 2.5: True, 60: True}.items():
        assert writers.is_over(f"{writers.machine()} {process.pid} {started + off}") is over
    process.kill()
    process.wait()
    assert writers.is_over(said)
    assert not writers.is_over(f"elsewhere {process.pid} {started:.0f}")  # nobody here can tell
    assert not writers.is_over("")
    assert writers.is_over(f"{writers.machine()} nothing readable")


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
    runs.complete(run_id, of)
    (model,) = models.find(md5)
    assert (model.name, model.source_run_id) == ("tree", run_id)
    assert (model.tags["file"], model.params) == (path, {"rate": "20"})
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 7)
    assert kept_in(run_id) == set()  # it is in the model
    folder = folder_of(model.artifact_location)
    assert (folder / "tree.bin").read_text() == "weights"
    described = (folder / "MLmodel").read_text()
    assert f"model_id: {model.model_id}" in described and f"run_id: {run_id}" in described
    assert models.lost_files(model) == []
    for lose in (lambda path: path.write_bytes(b""), Path.unlink):
        for name in ("MLmodel", "tree.bin"):
            models.log_files(model, of)
            lose(folder / name)
            assert models.lost_files(model) == [name]
    models.log_files(model, of)
    assert models.lost_files(model) == []
    shutil.rmtree(folder)
    assert models.lost_files(model)


def test_a_model_that_is_a_folder_is_copied_whole(experiment):
    for name in ("a", "b/c"):
        write(f"models/forest/{name}", name)
    path, md5 = "models/forest", files.md5(Path("models/forest"))
    of = result("fit", {path: md5}, models={path: "forest"})
    runs.write(experiment, of, {})
    (model,) = models.find(md5)
    folder = folder_of(model.artifact_location)
    assert (folder / "forest/a").read_text() == "a" and (folder / "forest/b/c").is_file()
    assert models.lost_files(model) == []
    (folder / "MLmodel").unlink()
    assert models.lost_files(model) == ["MLmodel"]


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
