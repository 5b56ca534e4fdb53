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

import mlflow
import pytest
from dvc.repo import Repo
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tiny import make_code

from conftest import forget_the_folder
from dvc_kit.errors import StageError
from dvc_mlflow import addresses, database, hooks, reasons, runs, store, upkeep
from dvc_mlflow.result import Result

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


@pytest.mark.parametrize(
    ("given", "kind", "ui"),
    [
        ("https://host:1/", "remote", "https://host:1"),
        ("postgresql://bob:secret@host/db", "", "http://127.0.0.1:5000"),
        ("sqlite:////a/b", "local", "http://127.0.0.1:5000"),
        ("/a", "local", "http://127.0.0.1:5000"),
        ("file:///a", "local", "http://127.0.0.1:5000"),
    ],
)
def test_a_server_keeps_the_artifacts_and_has_the_ui(uri, given, kind, ui):
    is_remote = store.is_remote(uri(given))
    assert (is_remote, store.is_local(store.uri())) == (kind == "remote", kind == "local")
    assert (store.location() is None) == is_remote
    asked = "viewStateShareKey=stages&workflowType=machine_learning"
    assert addresses.overview("3") == f"{ui}/#/experiments/3/runs?{asked}"
    shown = ui if is_remote else "http://ours"
    assert addresses.overview("3", "http://ours") == f"{shown}/#/experiments/3/runs?{asked}"
    assert store.name() == given.replace("bob:secret@", "")


def test_an_experiment_is_made_once_with_its_description_columns_and_place(
    standing_in, tmp_path, monkeypatch
):
    project = make_code(tmp_path / "project")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with standing_in(project) as client:
        assert store.find_experiment() is None
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "4"  # what a dead server may take
        assert store.find_experiment(STUDY) is None
        ids = [upkeep.open_store(), upkeep.open_store(STUDY)]
        assert [store.find_experiment(), store.find_experiment(STUDY)] == ids
        assert [upkeep.open_store(), upkeep.open_store(STUDY)] == ids
        pages = hooks.settings()["pages"]
        for experiment_id, name, page in zip(
            ids, ("mnist", "mnist-study"), (pages["main"], pages["study"]), strict=True
        ):
            found = client.get_experiment(experiment_id)
            assert found.name == name
            assert found.artifact_location == f"file://{project.path}/mlartifacts"
            page_of_runs = f"#/experiments/{experiment_id}/runs?viewStateShareKey="
            side, charts = "workflowType=machine_learning", "compareRunsMode=CHART"
            links = f"[Open the runs]({page_of_runs}stages&{side}). "
            if "charts" in page:
                links += f"[Open the charts]({page_of_runs}charts&{charts}&{side}). "
            assert found.tags["mlflow.note.content"] == links + page["description"].strip()
            view = json.loads(found.tags["mlflow.sharedViewState.stages"])
            assert view["orderByAsc"] is False and view["selectedColumns"] == page["columns"]
            assert view["orderByKey"] == page.get("order_by", "attributes.start_time")
        client.set_experiment_tag(ids[0], "mlflow.note.content", "somebody's own text")
        upkeep.open_store()
        text = client.get_experiment(ids[0]).tags["mlflow.note.content"]
        assert text.startswith("[Open the runs](#") and text.endswith("). somebody's own text")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        other = upkeep.open_store(STUDY)
        assert client.get_experiment(other).name == "mine-study"
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
        client.delete_experiment(ids[0])
        with pytest.raises(StageError, match="is deleted: `mlflow experiments restore") as deleted:
            upkeep.open_store()
        project.run("sh", "-c", str(deleted.value).split("`")[1])
        assert upkeep.open_store() == ids[0]
        assert upkeep.open_store(STUDY) == ids[1]


# --- what is said ---


READ_ONLY = "NAME can only be read: write to another store, or as its owner. SAID"
REFUSED = (
    "MLflow: NAME does not let this user in: MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD name the user and the password"
)
NEWER = "NAME has the tables of another version of MLflow than this one. SAID"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("attempt to write a readonly database", f"MLflow: {READ_ONLY}"),
        ("cannot execute INSERT in a read-only transaction", f"MLflow: {READ_ONLY}"),
        ("permission denied for table runs", f"MLflow: {READ_ONLY}"),
        ("Can't locate revision identified by 'fff'", f"MLflow: {NEWER}"),
        ("Detected out-of-date database schema", f"MLflow: {NEWER}"),
        ("API request to endpoint /api/2.0/a failed with error code 401 != 200.", REFUSED),
        ("a  \n b", "RuntimeError: a b"),
        ("not http://bob:secret@host", "RuntimeError: not http://host"),
        (f"{'a' * 1000}why", f"RuntimeError: {'a' * 297} ... {'a' * 295}why"),
        ("no [SQL: INSERT INTO a] [parameters: (1)]", "RuntimeError: no"),
    ],
)
def test_what_a_store_says_is_one_line_with_what_to_do(uri, said, expected):
    uri("postgresql://bob:secret@host/db")
    with pytest.raises(StageError) as told, reasons.explained():
        raise RuntimeError(said)
    named = re.sub(r"\bNAME\b", store.name(), expected)  # not the one in a variable
    assert str(told.value) == named.replace("SAID", said)


class Breaking(http.server.BaseHTTPRequestHandler):
    """Says a part of an answer, or nothing, and ends, as a server that is killed. It searches."""

    def do_GET(self) -> None:
        if "registered-models" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The address of a server of each kind."""
    folder = tmp_path_factory.mktemp("servers")
    made = "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost"
    subprocess.run(["openssl", *made.split()], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    kind = http.server.SimpleHTTPRequestHandler
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as tls,
        socket.create_server(("127.0.0.1", 0)) as hanging,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as breaking,
    ):
        tls.socket = context.wrap_socket(tls.socket, server_side=True)
        for server in (tls, breaking):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "TLS": f"https://localhost:{tls.server_address[1]}",
            "hanging": f"http://127.0.0.1:{hanging.getsockname()[1]}",
            "breaking off": f"http://127.0.0.1:{breaking.server_address[1]}",
            "none": "http://127.0.0.1:8",
        }
        tls.shutdown()
        breaking.shutdown()


SERVERS = [
    ("hanging", "MLflow: ADDRESS did not answer in 1 s: MLFLOW_HTTP_REQUEST_TIMEOUT=60 gives it "
     "longer"),
    ("breaking off", "MLflow: ADDRESS broke off in the middle, and its log says why: when it "
     "runs again, `dvc-mlflow sync` writes what is missing"),
    ("none", "MLflow: nothing answers at ADDRESS: start it, or name another in VARIABLE"),
    ("TLS", "the certificate of ADDRESS is not trusted (self-signed certificate): "
     "MLFLOW_TRACKING_SERVER_CERT_PATH=FILE names the certificate to trust"),
]  # fmt: skip


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
@pytest.mark.parametrize(("kind", "expected"), SERVERS)
def test_a_server_that_cannot_be_used_is_named_with_what_to_do(
    uri, servers, monkeypatch, variable, kind, expected
):
    address = servers[kind]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    uri("http://127.0.0.1:9")
    monkeypatch.setenv(variable, address.replace("//", "//bob:secret@"))
    store.apply_settings()
    client = MlflowClient(store.uri(), os.environ.get("MLFLOW_REGISTRY_URI"))
    ask = client.get_run if variable == "MLFLOW_TRACKING_URI" else client.get_registered_model
    with pytest.raises(StageError) as failed, reasons.explained():
        ask("0" * 32)
    assert str(failed.value) == expected.replace("ADDRESS", address).replace("VARIABLE", variable)


def test_a_request_that_a_server_drops_while_it_answers_others_concerns_one_run(servers):
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # and back at the end, because MLflow sets it
        mlflow.set_tracking_uri(servers["breaking off"])
        with pytest.raises(MlflowException) as dropped:
            MlflowClient().get_run("0" * 32)
        assert reasons.is_refusal(dropped.value)
        mlflow.set_tracking_uri(servers["none"])
        assert not reasons.is_refusal(dropped.value)
        mlflow.set_tracking_uri(before)


AGAIN = "move it away, and the next `dvc-mlflow sync` writes all runs anew from the results"
UNUSABLE = "FILE cannot be used (REASON): name another store in MLFLOW_TRACKING_URI, or "
DAMAGED = "NAME is damaged, or was replaced meanwhile (REASON): "


@pytest.mark.parametrize(
    ("how", "expected", "reason"),
    [
        ("cut short", DAMAGED, "disk image is malformed"),
        ("garbage", UNUSABLE, "file is not a database"),
        ("a folder", UNUSABLE, "unable to open database file"),
        ("emptied", DAMAGED, "no such table"),
    ],
)
def test_a_file_that_is_no_database_is_named_with_the_cure(
    standing_in, tmp_path, how, expected, reason
):
    project = make_code(tmp_path / "project")
    with standing_in(project) as client:
        run, file = client.create_run(upkeep.open_store()), project.path / "mlflow.db"
        new = {"cut short": file.read_bytes()[:20_000], "garbage": b"none " * 99, "emptied": b""}
        if how in new:
            file.write_bytes(new[how])
        else:
            file.unlink()
            file.mkdir()
        with pytest.raises(StageError) as failed, reasons.explained():
            if how in ("cut short", "emptied"):  # while it is in use
                client.set_tag(run.info.run_id, "a", "b")
            upkeep.settle()
    told = f"{expected.replace('REASON', reason)}{AGAIN}"
    assert str(failed.value) == told.replace("FILE", str(file)).replace("NAME", f"sqlite:///{file}")


def test_a_file_that_cannot_be_made_is_told_before_mlflow_tries(uri, tmp_path):
    nowhere = tmp_path / "no such folder" / "mlflow.db"
    with pytest.raises(StageError, match=f"^{nowhere} cannot be used .{nowhere.parent} cannot be"):
        database.revision(uri(f"sqlite:///{nowhere}"))
    nowhere.parent.mkdir()
    assert database.revision(store.uri()) is None


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


def test_a_store_that_can_only_be_read_says_so_itself(standing_in, tmp_path, monkeypatch):
    project = make_code(tmp_path / "project")
    with standing_in(project):
        upkeep.open_store()
        read_only = f"sqlite:///file:{project.path}/mlflow.db?mode=ro&uri=true"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", read_only)
        assert store.find_experiment() == "1"
        with pytest.raises(MlflowException) as refused:
            upkeep.open_store(STUDY)
        assert "can only be read" in reasons.explain(refused.value)
        assert Path.cwd() == project.path
