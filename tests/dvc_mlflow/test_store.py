"""What a store can lose or refuse, and two that write to it at the same moment."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from test_live import STAGES, runs_of, stages_of, sync

from conftest import BUSY, Clone, client_of, mlflow_server, wait_for, weekly
from dvc_mlflow import store

COMMAND = ("python", "-m", "dvc_mlflow")
SECRETS = ("p@ss#w/0rd".replace("/", "?"), "p%40ss", "s3cret")


@pytest.fixture(autouse=True)
def with_runs(monkeypatch):
    monkeypatch.setenv("MIRROR", "on")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(f"sqlite:///{folder}/server.db", folder) as (uri, _):
        yield uri


def with_user(uri: str, password: str = SECRETS[0]) -> str:
    return uri.replace("://", f"://bob:{password}@")


def call(clone: Clone, *arguments: str, **options):
    return clone.run(*COMMAND, *arguments, **options)


def one_line(result) -> str:
    assert result.returncode in (1, 2)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def models_of(client: MlflowClient) -> list:
    experiments = client.search_experiments(view_type=ViewType.ALL)
    return client.search_logged_models([found.experiment_id for found in experiments])


def assert_whole(client: MlflowClient) -> None:
    """Five stages, the pipeline over them, two models in two versions, nothing besides."""
    experiment = client.get_experiment_by_name("mnist").experiment_id
    found = client.search_runs([experiment])
    assert sorted(run.data.tags["stage"] for run in found) == sorted([*STAGES, "pipeline"])
    assert {run.info.status for run in found} == {"FINISHED"}
    (parent,) = [run for run in found if run.data.tags["stage"] == "pipeline"]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len(children) == 5
    assert [str(model.status) for model in models_of(client)] == ["READY", "READY"]
    assert len(client.search_model_versions("name = 'mnist'")) == 2
    names = [found.name for found in client.search_experiments()]
    assert not [name for name in names if "claim" in name]


# --- passwords ---


@pytest.mark.parametrize("password", SECRETS)
def test_user_and_password_are_cut_out_of_every_text(password, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_user("http://host:5000", password))
    text = f"(url='{store.uri()}/api') or {with_user('postgresql://host/db', password)}"
    assert store.without_user(text) == "(url='http://host:5000/api') or postgresql://host/db"
    assert store.name() == "http://host:5000"
    kept = "models:/mnist@champion of sqlite:////a/b@c in {'a': 'http://host', 'b': 'c@d'}"
    assert store.without_user(kept) == kept


@pytest.mark.slow
def test_a_password_in_the_address_is_shown_and_stored_nowhere(copy, server):
    copy.commit("the small results")
    said = []
    uri, nowhere = with_user(server), with_user("http://127.0.0.1:9")
    uris = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri, **BUSY}
    ours = " ".join(COMMAND)
    for command, env, code in [
        (f"{ours} sync", uris, 0),
        (f"{ours} view", uris, 0),
        (f"{ours} find HEAD", uris, 0),
        (f"{ours} find models:/mnist@champion", uris, 1),
        (f"{ours} status", uris, 0),
        ("python -m stages.serve", uris, 1),
        ("python -m stages.train mlp", uris, 0),
        (f"{ours} sync", {"MLFLOW_TRACKING_URI": nowhere}, 1),
        (f"{ours} view", {"MLFLOW_TRACKING_URI": nowhere}, 0),
        ("python -m stages.plot", {"MLFLOW_TRACKING_URI": nowhere}, 0),
        (f"{ours} sync", {"MLFLOW_TRACKING_URI": with_user("htp://nowhere")}, 1),
        (f"{ours} status", {"MLFLOW_TRACKING_URI": with_user("postgresql://127.0.0.1:9/x")}, 1),
    ]:
        result = copy.run(*command.split(), env=env, check=False)
        assert result.returncode == code, result.stderr
        said.append(result.stdout + result.stderr)
        if code:
            one_line(result)
    assert server in said[1] and server in said[2]
    assert "warning: " in said[9]
    client = MlflowClient(server)
    said += [repr(it.to_dictionary()) for it in (*runs_of(client), *models_of(client))]
    said += [repr(dict(v)) for v in client.search_model_versions("name = 'mnist'")]
    for path in Path(copy.path.parent, "server").rglob("*"):
        said.append(path.read_bytes().decode("latin-1") if path.is_file() else "")
    # Quoted, a part of it too, because a bad parser may cut it
    for secret in ("bob", "p@ss", "p%40ss", "#w?0rd", "w%3F0rd"):
        assert not [text for text in said if re.search(rf"\b{secret}\b", text)][:1]


# --- what is kept, killed or written twice ---


@pytest.mark.slow
@pytest.mark.parametrize("link", ["symlink", *weekly("hardlink", "shared symlink"), "reflink"])
def test_results_that_are_links_into_the_cache_are_logged_as_files(copy, link):
    if link == "shared symlink":
        folder = copy.path.parent / "shared cache"
        (copy.path / ".dvc/cache").rename(folder)
        copy.run("dvc", "config", "--local", "cache.dir", str(folder))
    kind = link.split()[-1]
    copy.run("dvc", "config", "--local", "cache.type", kind)
    result = copy.run("dvc", "checkout", "--relink", "--force", check=False)
    if link == "reflink" and result.returncode:
        pytest.skip(f"this file system has no reflinks: {' '.join(result.stderr.split())[:200]}")
    assert result.returncode == 0, result.stderr
    assert (copy.path / "models/mlp.safetensors").is_symlink() == (kind == "symlink")
    sync(copy)
    assert sync(copy).stdout == ""
    assert_whole(client_of(copy))
    kept = list((copy.path / "mlartifacts").rglob("*"))
    assert [path for path in kept if path.is_symlink()] == []


@pytest.mark.slow
def test_a_sync_that_fails_leaves_nothing_and_one_that_was_killed_is_made_up_for(copy):
    client = client_of(copy)
    sheet = copy.path / "mlartifacts"
    sheet.write_text("in the way of the artifacts")
    for _ in range(3):
        one_line(sync(copy, check=False))
    assert runs_of(client) == []
    sheet.unlink()
    process = copy.start(*COMMAND, "sync")
    wait_for(lambda: models_of(client))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert client.search_experiments(filter_string="name = 'mnist-claim'")
    started = time.monotonic()
    sync(copy)
    assert time.monotonic() - started < 60
    assert sync(copy).stdout == ""
    assert_whole(client)


@pytest.fixture
def other(copy) -> Clone:
    """A second clone with the same results."""
    shutil.copytree(copy.path, copy.path.with_name("the other"), symlinks=True)
    return Clone(copy.path.with_name("the other"))


@pytest.mark.slow
@pytest.mark.parametrize("time", [0, *weekly(1, 2)])
def test_two_clones_that_sync_together_write_everything_once(copy, other, server, time):
    env = {"MLFLOW_TRACKING_URI": server, **BUSY}
    both = [clone.start(*COMMAND, "sync", env=env) for clone in (copy, other)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(output.count("logged the run of ") for output, _ in said) == 5
    assert_whole(MlflowClient(server))


@pytest.mark.slow
def test_make_repro_without_the_mirror_writes_no_run_and_sync_does(copy):
    make = ("make", "INSTALLED=params.yaml")
    copy.run(*make, "repro", env={"MIRROR": "off"})
    assert not (copy.path / "mlflow.db").exists()
    copy.run(*make, "sync", "REV=", env={"MIRROR": "off"})
    assert [stage for stage in stages_of(client_of(copy)) if stage in STAGES] == STAGES
