"""Which store is meant, how it is named to people, and what is said when it cannot be used."""

import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tiny import make_code

from conftest import forget_the_folder
from dvc_mlflow import hooks, reasons, runs, store
from dvc_mlflow.errors import InputError, StageError
from dvc_mlflow.results import Result

STUDY = Path("study")


@pytest.fixture
def uri(monkeypatch, tmp_path):
    """Sets the address of the store and gives what ours make of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    def set_and_get(given: str | None = None) -> str:
        if given is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        forget_the_folder()
        return store.uri()

    return set_and_get


def test_the_store_lies_in_the_main_checkout_also_for_a_copy_that_dvc_made(
    uri, tmp_path, monkeypatch
):
    assert uri() == uri("") == f"sqlite:///{tmp_path}/mlflow.db"
    assert uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"
    main = tmp_path / "main"
    (main / ".dvc").mkdir(parents=True)
    (main / "study").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(main))
    assert uri("") == f"sqlite:///{main}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", str(main / "study"))  # a DVC project of its own
    assert uri("") == f"sqlite:///{main}/mlflow.db"
    assert store.location() == f"file://{main}/mlartifacts"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:////absolute/a.db", None),
        ("sqlite:///file:/a.db?mode=ro&uri=true", None),
        ("http://host:5000", None),
        ("postgresql://bob:plain@host/db", None),
        ("http://bob:p@ss#w?@host:1/path", "http://bob:p%40ss%23w%3F@host:1/path"),
        ("http://bob:p%40ss@host", None),  # quoted already
        ("http://bob:a:b@host", "http://bob:a%3Ab@host"),
        ("http://bob@host", None),
        ("https://host/a@b", None),
    ],
)
def test_an_address_is_taken_as_it_is_but_for_signs_that_a_password_has_to_quote(
    uri, given, expected
):
    assert uri(given) == (expected or given)


def test_a_registry_of_its_own_is_quoted_too_and_what_the_environment_sets_wins(monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://bob:p@ss@host")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    store.apply_settings()
    assert os.environ["MLFLOW_REGISTRY_URI"] == "http://bob:p%40ss@host"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_server_keeps_the_artifacts_and_has_the_ui(uri):
    uri("https://host:1/")
    assert store.is_remote(store.uri()) and store.is_remote("http://host")
    assert not store.is_remote("postgresql://host") and not store.is_remote("sqlite:///http://")
    assert store.is_local("sqlite:////a/b") and store.is_local("/a") and store.is_local("file:///a")
    assert not store.is_local("postgresql://host") and not store.is_local("http://host")
    assert store.location() is None
    view = "viewStateShareKey=stages&workflowType=machine_learning"
    assert store.overview("3", "http://ours") == f"https://host:1/#/experiments/3/runs?{view}"
    uri("postgresql://bob:secret@host/db")
    assert store.name() == "postgresql://host/db"
    assert store.location().endswith("/mlartifacts")
    assert store.overview("3", "http://ours") == f"http://ours/#/experiments/3/runs?{view}"
    assert store.overview("3") == f"http://127.0.0.1:5000/#/experiments/3/runs?{view}"


def test_an_experiment_is_made_once_with_its_description_columns_and_place(
    standing_in, tmp_path, monkeypatch
):
    project = make_code(tmp_path / "project")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with standing_in(project) as client:
        assert store.find_experiment() is None
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "4"  # what a dead server may take
        assert store.find_experiment(STUDY) is None
        ids = [store.open_store(), store.open_store(STUDY)]
        assert [store.find_experiment(), store.find_experiment(STUDY)] == ids
        assert [store.open_store(), store.open_store(STUDY)] == ids
        pages = hooks.settings()["pages"]
        for experiment_id, name, page in zip(
            ids, ("mnist", "mnist-study"), (pages["main"], pages["study"]), strict=True
        ):
            found = client.get_experiment(experiment_id)
            assert found.name == name
            assert found.artifact_location == f"file://{project.path}/mlartifacts"
            assert found.tags["mlflow.note.content"] == page["description"]
            view = json.loads(found.tags["mlflow.sharedViewState.stages"])
            assert view["orderByAsc"] is False and view["selectedColumns"] == page["columns"]
            assert view["orderByKey"] == page.get("order_by", "attributes.start_time")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        other = store.open_store(STUDY)
        assert client.get_experiment(other).name == "mine-study"
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
        client.delete_experiment(ids[0])
        with pytest.raises(
            StageError, match=f"is deleted: `mlflow experiments restore --experiment-id {ids[0]}`"
        ):
            store.open_store()
        assert store.open_store(STUDY) == ids[1]


def test_the_pages_of_runs_and_models_have_their_ids(standing_in, tmp_path):
    with standing_in(make_code(tmp_path / "project")) as client:
        experiment = store.open_store()
        run = client.create_run(experiment)
        model = client.create_logged_model(experiment, name="a")
        page = f"http://127.0.0.1:5000/#/experiments/{experiment}"
        run_page, side = f"{page}/runs/{run.info.run_id}", "workflowType=machine_learning"
        assert store.address(run=run) == f"{run_page}?{side}"
        assert store.address(model=model) == f"{page}/models/{model.model_id}?{side}"
        for key, step in (("system/memory", 3), ("score", 0)):
            client.log_metric(run.info.run_id, key, 1.0, step=step)
            assert store.address(run=client.get_run(run.info.run_id)) == f"{run_page}?{side}"
        client.log_metric(run.info.run_id, "loss", 1.0, step=1)
        run = client.get_run(run.info.run_id)
        assert store.address(run=run) == f"{run_page}/model-metrics?{side}"  # its curves


def test_a_file_that_is_not_there_and_cannot_be_made_is_told_before_mlflow_tries(uri, tmp_path):
    nowhere = tmp_path / "no such folder" / "mlflow.db"
    uri(f"sqlite:///{nowhere}")
    with pytest.raises(StageError, match=f"^sqlite:///{nowhere} is not there and .* cannot be wri"):
        reasons.require_file()
    (tmp_path / "no such folder").mkdir()
    reasons.require_file()
    for other in ("sqlite:///file:/no/such?mode=ro", "http://127.0.0.1:9"):
        uri(other)
        reasons.require_file()


# --- what is said ---


def test_whatever_goes_wrong_in_a_store_is_one_line_without_a_password():
    with pytest.raises(StageError, match=r"^ValueError: http://host b$"), reasons.explained():
        raise ValueError("http://bob:secret@host\n  b")
    with pytest.raises(InputError, match=r"^not http://host$") as told, reasons.explained():
        raise InputError("not http://bob:secret@host")
    assert told.value.exit_code == 2
    with pytest.raises(BrokenPipeError), reasons.explained():
        raise BrokenPipeError
    with reasons.explained():
        pass


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("attempt to write a readonly database", "can only be read"),
        ("cannot execute INSERT in a read-only transaction", "can only be read"),
        ("permission denied for table runs", "can only be read"),
        ("Can't locate revision identified by 'fff'", "another version of MLflow"),
        ("Detected out-of-date database schema", "another version of MLflow"),
    ],
)
def test_a_store_that_refuses_is_named_with_what_to_do(uri, said, expected):
    name = "postgresql://host/db"
    uri(name)
    told = reasons.explain(RuntimeError(said))
    assert told.startswith(f"MLflow: RuntimeError: {name} ")
    assert expected in told and told.endswith(said)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_a_server_that_is_not_there_or_does_not_answer_is_named_with_what_to_do(
    uri, monkeypatch, variable
):
    def told(port: int) -> str:
        server = f"http://127.0.0.1:{port}"
        uri("http://127.0.0.1:9")
        monkeypatch.setenv(variable, server.replace("//", "//bob:secret@"))
        store.apply_settings()
        client = MlflowClient(store.uri(), os.environ.get("MLFLOW_REGISTRY_URI"))
        ask = client.get_run if variable == "MLFLOW_TRACKING_URI" else client.get_registered_model
        with pytest.raises(StageError) as failed, reasons.explained():
            ask("0" * 32)
        return str(failed.value).replace(server, "SERVER")

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hanging = told(listener.getsockname()[1])
    assert hanging == (
        "MLflow: MlflowException: SERVER did not answer in 1 s: "
        "MLFLOW_HTTP_REQUEST_TIMEOUT=60 gives it longer"
    )
    assert told(8) == (
        "MLflow: MlflowException: nothing answers at SERVER: start it, or name another in "
        f"{variable}"
    )


SELF_SIGNED = """the certificate of ADDRESS is not trusted (self-signed certificate): \
MLFLOW_TRACKING_SERVER_CERT_PATH=FILE names the certificate to trust"""
MISMATCH = """the certificate of ADDRESS is not trusted (IP address mismatch, certificate is not \
valid for '127.0.0.1'): write the name that its certificate has in MLFLOW_TRACKING_URI"""
ENDED = "ADDRESS ended the connection without an answer: is it up, or is it https://?"


def test_a_certificate_that_is_not_trusted_is_named_with_the_cure(uri, monkeypatch, tmp_path):
    made = "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost"
    command = ["openssl", *made.split(), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    kind = http.server.SimpleHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host, trusted, expected in (
            ("https://localhost", "", SELF_SIGNED),
            ("http://localhost", "", ENDED),
            ("https://127.0.0.1", str(tmp_path / "cert"), MISMATCH),
        ):
            address = f"{host}:{server.server_address[1]}"
            if trusted:
                monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", trusted)
            with pytest.raises(StageError) as failed, reasons.explained():
                MlflowClient(uri(address)).get_run("0" * 32)
            assert str(failed.value) == expected.replace("ADDRESS", address)
        server.shutdown()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (
            "cut short",
            "is damaged (database disk image is malformed): move it away, and the next `",
        ),
        (
            "garbage",
            "is damaged (file is not a database): move it away, and the next `dvc-mlflow s",
        ),
        (
            "a folder",
            "is a folder, and the store would be a file: move it away, and the next `dvc-",
        ),
        ("emptied", "was deleted or replaced while it was in use: the next `dvc-mlflow sync` wr"),
        ("deleted", "was deleted or replaced while it was in use: the next `dvc-mlflow sync` wr"),
    ],
)
def test_a_file_of_the_store_that_is_no_database_is_named_with_the_cure(
    standing_in, tmp_path, how, expected
):
    project = make_code(tmp_path / "project")
    with standing_in(project) as client:
        run, file = client.create_run(store.open_store()), project.path / "mlflow.db"
        new = {"cut short": file.read_bytes()[:20_000], "garbage": b"none " * 99, "emptied": b""}
        if how in new:
            file.write_bytes(new[how])
        else:
            file.unlink()
            file.mkdir() if how == "a folder" else None
        with pytest.raises(StageError) as failed, reasons.explained():
            if how in ("cut short", "emptied", "deleted"):  # while it is in use
                client.set_tag(run.info.run_id, "a", "b")
            store.settle()
            store.find_experiment()
    assert str(failed.value).startswith(f"{file} {expected}") and "SQL" not in str(failed.value)


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (lambda: Path("no/such").read_text(), "no/such: No such file or directory"),
        (lambda: Repo("/"), "DVC: NotDvcRepoError: you are not inside of a DVC repository.*"),
        (lambda: MlflowClient().get_run("0" * 32), "MLflow: MlflowException: Run .* not found"),
        (lambda: runs.log_epoch("", {"epoch": None}), "dvc-mlflow: TypeError: .*"),
    ],
)
def test_the_one_that_failed_is_blamed(mlflow_store, fail, expected):
    with mlflow_store(), pytest.raises(StageError) as failed, reasons.explained():
        fail()
    assert re.fullmatch(expected, str(failed.value))


@pytest.mark.parametrize(
    ("place", "cure"),
    [("s3://bucket/x", "`pip install boto3`"), ("/dev/null/x", "Not a directory")],
)
def test_a_place_of_artifacts_that_cannot_be_used_is_named_with_the_cure(
    mlflow_store, tmp_path, monkeypatch, place, cure
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "boto3", None)  # its import fails, as where it is missing
    Path("a.json").write_text("1")
    made = Result(Path(), "a", "", {}, {"a.json": "md5"}, {}, metrics=("a.json",))
    with mlflow_store(), pytest.raises(reasons.StoreError) as refused:
        runs.write(MlflowClient().create_experiment(place, place), made, {})
    assert place in str(refused.value) and cure in str(refused.value)


def test_an_address_names_the_workspace_of_the_server(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team a")
    uri("https://host")
    assert "/#/experiments/3/runs?workspace=team%20a&viewState" in store.overview("3")
    uri("sqlite:///a.db")
    assert "workspace" not in store.overview("3")


def test_a_long_reason_is_cut_and_another_one_is_left_as_it_is():
    assert reasons.explain(RuntimeError("a  b")) == "RuntimeError: a b"
    assert reasons.explain(RuntimeError("a" * 1000 + "why")).endswith("a" * 100 + "why")
    assert reasons.explain(StageError("a\nhttp://b:c@d")) == "a http://d"


def test_a_store_that_can_only_be_read_says_so_itself(standing_in, tmp_path, monkeypatch):
    project = make_code(tmp_path / "project")
    with standing_in(project):
        store.open_store()
        read_only = f"sqlite:///file:{project.path}/mlflow.db?mode=ro&uri=true"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", read_only)
        assert store.find_experiment() == "1"
        with pytest.raises(MlflowException) as refused:
            store.open_store(STUDY)
        assert "can only be read" in reasons.explain(refused.value)
        assert Path.cwd() == project.path
