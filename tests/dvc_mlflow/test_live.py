"""A run shows its stage while it runs, never holds it up, and is made whole by sync."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import (
    BUSY,
    STAGES,
    Clone,
    client_of,
    free_port,
    lenet5_first,
    make_clone,
    missing,
    mlflow_server,
    wait_for,
)
from dvc_kit.files import md5
from stages.base import files
from stages.mnist import idx

TRAIN = ("python", "-m", "stages.train", "lenet5")


@pytest.fixture(autouse=True)
def with_runs(monkeypatch):
    monkeypatch.setenv("MIRROR", "on")


def runs_of(client: MlflowClient) -> list:
    return client.search_runs([found.experiment_id for found in client.search_experiments()])


def stages_of(client: MlflowClient, status: str = "FINISHED") -> list[str]:
    """The stages of the finished runs, in the order in which they were written."""
    found = [run for run in runs_of(client) if run.info.status == status]
    return lenet5_first([run.data.tags["stage"] for run in reversed(found)])


def sync(clone: Clone, *arguments: str, **options):
    return clone.run("python", "-m", "dvc_mlflow", "sync", *arguments, **options)


def find(clone: Clone, what: str, **options) -> str:
    return clone.run("python", "-m", "dvc_mlflow", "find", what, **options).stdout


def make_long(clone: Clone) -> None:
    """60 epochs instead of 2: long enough to look at it while it trains."""
    clone.edit("recipes.yaml", "epochs: 2\n", "epochs: 60\n", count=-1)


# --- while a stage runs ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status"),
    [(None, "FINISHED"), (signal.SIGINT, "KILLED"), (signal.SIGKILL, "KILLED")],
)
def test_each_epoch_shows_at_once_and_the_run_ends_as_the_stage_did(copy, sent, status):
    make_long(copy)
    client = client_of(copy)
    process = copy.start(*TRAIN)

    def two_epochs():
        (run,) = runs_of(client)
        return len(client.get_metric_history(run.info.run_id, "test_loss")) >= 2

    wait_for(two_epochs)
    assert process.poll() is None, "the run showed its epochs only after the stage had ended"
    assert stages_of(client, "RUNNING") == ["train_lenet5"]
    if sent:
        process.send_signal(sent)
    process.communicate()
    wait_for(lambda: stages_of(client, status) == ["train_lenet5"])
    (run,) = runs_of(client)
    epochs = len(client.get_metric_history(run.info.run_id, "test_loss"))
    if status == "FINISHED":
        assert epochs == 60
        assert "system/cpu_utilization_percentage" in run.data.metrics
    else:
        assert epochs < 60


# --- a server that is down ---


@contextlib.contextmanager
def refusing(copy: Clone) -> Iterator[str]:
    yield "http://127.0.0.1:9"


@contextlib.contextmanager
def hanging(copy: Clone) -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def failing(copy: Clone) -> Iterator[str]:
    """Answers 500 to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(500)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextlib.contextmanager
def dying(copy: Clone) -> Iterator[str]:
    """A real server that is killed after the second epoch."""
    with mlflow_server(f"sqlite:///{copy.path}/server.db", copy.path) as (uri, process):
        client = client_of(copy, "server.db")

        def kill_after_two_epochs():
            wait_for(
                lambda: [
                    run
                    for run in runs_of(client)
                    if len(client.get_metric_history(run.info.run_id, "test_loss")) >= 2
                ]
            )
            os.killpg(process.pid, signal.SIGKILL)

        watcher = threading.Thread(target=kill_after_two_epochs)
        watcher.start()
        yield uri
        watcher.join()
        assert [run.info.status for run in runs_of(client)] == ["RUNNING"]


@pytest.mark.alone
@pytest.mark.weekly
@pytest.mark.slow
@pytest.mark.parametrize("server", [refusing, hanging, failing, dying], ids=lambda f: f.__name__)
def test_a_bad_server_costs_a_warning_and_sync_makes_up_for_it(copy, server):
    with contextlib.ExitStack() as stack:
        uri = f"sqlite:///{copy.path}/clean.db"
        if server is dying:  # a living one takes its share of the processor, too
            make_long(copy)
            uri, _ = stack.enter_context(mlflow_server(uri, copy.path))
        started = time.monotonic()
        copy.run(*TRAIN, env={"MLFLOW_TRACKING_URI": uri})
        clean = time.monotonic() - started
    expected = copy.outs()

    with server(copy) as uri:
        started = time.monotonic()
        result = copy.run(*TRAIN, env={"MLFLOW_TRACKING_URI": uri})
        seconds = time.monotonic() - started
    assert seconds < 1.2 * clean + 5  # a fifth for the noise of a shared machine
    assert copy.outs() == expected
    note, *warnings = [line for line in result.stderr.splitlines() if "epoch" not in line]
    assert note.startswith("note: DVC did not start this")
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: the MLflow run of train_lenet5 is not complete")
    assert "`dvc-mlflow sync`" in warnings[0]

    copy.run("dvc", "commit", "--force", "train_lenet5")
    with contextlib.ExitStack() as stack:
        uri = f"sqlite:///{copy.path}/server.db"
        if server is dying:  # it is back, with the run that it lost
            uri, _ = stack.enter_context(mlflow_server(uri, copy.path))
        sync(copy, env={"MLFLOW_TRACKING_URI": uri})
    client = client_of(copy, "server.db")
    assert [stage for stage in stages_of(client) if stage != "pipeline"] == STAGES
    assert stages_of(client, "RUNNING") == []
    assert stages_of(client, "KILLED") == (["train_lenet5"] if server is dying else [])


# --- one place ---


@pytest.mark.weekly
@pytest.mark.slow
def test_copies_that_dvc_makes_leave_their_runs_in_the_main_store(copy):
    copy.commit("the small results")
    momentum = "recipes.yaml:documented.mlp.momentum"
    copy.run("dvc", "exp", "run", "--temp", "--name", "warm", "-S", f"{momentum}=0.8")
    copy.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", f"{momentum}=0.7")
    copy.run("dvc", "queue", "start")
    wait_for(lambda: "Success" in copy.run("dvc", "queue", "status").stdout, 120)
    found = {
        (run.data.tags["stage"], run.data.tags.get("dvc_experiment"), run.info.status)
        for run in runs_of(client_of(copy))
    }
    for name in ("warm", "queued"):
        for stage in ("train_mlp", "evaluate", "plot"):
            assert (stage, name, "FINISHED") in found
    # The commits of both experiments are found from their runs
    for run in runs_of(client_of(copy)):
        if run.data.tags["stage"] == "train_mlp":
            assert re.search(r"^  commit [0-9a-f]{7}", find(copy, run.info.run_id), re.M)


@pytest.mark.slow
def test_processes_that_start_together_create_one_store(copy):
    modules = ["train lenet5", "train mlp", "evaluate", "plot"]
    started = [copy.start("python", "-m", *f"stages.{name}".split()) for name in modules]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    sync(copy)  # on a slow machine, a run may not be complete in time
    assert sorted(stages_of(client_of(copy))) == sorted([*STAGES, "pipeline"])


# --- a real server with a real database ---


@pytest.fixture
def postgresql(tmp_path) -> Iterator[str]:
    """A PostgreSQL of the test's own, on a free port of the loopback."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        missing("PostgreSQL is not installed: Debian has it in postgresql")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        missing("psycopg is not installed: pip install -c constraints.txt -e '.[postgresql]'")
    folder = tmp_path / "postgresql"
    folder.mkdir()
    port = free_port()
    user = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        for path in (folder, *folder.parents):
            if path == Path("/tmp"):
                break
            path.chmod(0o755)
        subprocess.run(["chown", "postgres", str(folder)], check=True)
        user = ["runuser", "-u", "postgres", "--"]
    binaries = found[-1].parent
    data = str(folder / "data")
    initdb = [str(binaries / "initdb"), "--auth=trust", "--username=mlflow", data]
    subprocess.run([*user, *initdb], check=True, capture_output=True, cwd=folder)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [*user, str(binaries / "pg_ctl"), "--wait", f"--pgdata={data}"]
    log = ["--log", str(folder / "log")]
    subprocess.run(
        [*control, *log, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd=folder
    )
    yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    subprocess.run(
        [*control, "--mode=immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder
    )


@pytest.mark.slow
def test_the_pipeline_sync_and_find_work_against_a_server_with_postgresql(
    raw, postgresql, tmp_path
):
    clone = make_clone(tmp_path / "a clone")
    clone.make_small()
    server_folder = tmp_path / "server"
    server_folder.mkdir()
    with mlflow_server(postgresql, server_folder) as (uri, _):
        remote = {"MLFLOW_TRACKING_URI": uri, **BUSY}
        assert clone.repro(env=remote) == STAGES
        client = MlflowClient(uri)
        assert stages_of(client) == [*STAGES, "pipeline"]
        assert not (clone.path / "mlflow.db").exists()
        assert not (clone.path / "mlartifacts").exists()
        assert sync(clone, env=remote).stdout == ""
        evaluation = next(r for r in runs_of(client) if r.data.tags["stage"] == "evaluate")
        table = client.download_artifacts(evaluation.info.run_id, "comparison.csv", str(tmp_path))
        assert md5(Path(table)) == md5(clone.path / files.COMPARISON)

        clone.commit("the results")
        assert find(clone, "HEAD", env=remote).count(f"{uri}/#/experiments/") == 5
        assert "the results" in find(clone, evaluation.info.run_id, env=remote)
        assert "made by run" in find(clone, "models:/mnist/1", env=remote)

        for run in runs_of(client):
            client.delete_run(run.info.run_id)
        sync(clone, env=remote)
        assert stages_of(client) == [*STAGES, "pipeline"]


# --- the registry ---


JSON = "application/json"


def post(uri: str, body: object, content_type: str = JSON) -> tuple[int, str]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{uri}/invocations", content, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextlib.contextmanager
def running(clone: Clone, *command: str) -> Iterator[None]:
    """A server that runs in a clone, on its store, and is ended with all that it started."""
    process = clone.start(*command, env={"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_the_champion_passes_the_gate_and_answers_images_over_http(copy, raw):
    sync(copy)
    client = client_of(copy)
    for version in client.search_model_versions("name = 'mnist'"):
        assert "needed is 0.98" in version.description
    copy.edit("params.yaml", "min_accuracy: 0.98", "min_accuracy: 0.5")
    assert copy.repro() == ["evaluate"]
    champion = client.get_model_version_by_alias("mnist", "champion")
    assert champion.tags["model"] == "mlp"  # after 2 epochs on 600 images it is the better one
    copy.edit("recipes.yaml", "epochs: 2\n", "epochs: 8\n", count=-1)
    copy.repro()
    better = client.get_model_version_by_alias("mnist", "champion")
    assert int(better.version) > int(champion.version)
    assert f"against version {champion.version}, alone right on" in better.description
    copy.commit("a better champion")

    images = idx.read(raw)["test"].images[:1000].tolist()
    predicted = files.read_csv(copy.path / files.predictions_path(better.tags["model"]))
    with contextlib.ExitStack() as stack:
        ours, mlflows = free_port(), free_port()
        stack.enter_context(running(copy, "make", "serve", "INSTALLED=params.yaml", f"PORT={ours}"))
        model = ["--model-uri", "models:/mnist@champion", "--env-manager", "local"]
        stack.enter_context(running(copy, "mlflow", "models", "serve", *model, "--port", mlflows))
        for uri in (f"http://127.0.0.1:{ours}", f"http://127.0.0.1:{mlflows}"):
            wait_for(lambda uri=uri: post(uri, {"inputs": images[:1]})[0] == 200, 120)
            status, answer = post(uri, {"inputs": images})
            assert status == 200
            rows = json.loads(answer)["predictions"]
            assert [row.index(max(row)) for row in rows] == predicted["predicted"][:1000]
        uri = f"http://127.0.0.1:{ours}"
        for body, content_type, status, reason in [
            ({"inputs": images[0]}, JSON, 400, "the body is no images (inputs.0.0: "),
            ({"inputs": images[:1]}, "text/csv", 415, "the content type is text/csv"),
        ]:
            answered, said = post(uri, body, content_type)
            assert answered == status
            assert reason in said
        assert post(uri, {"inputs": images[:1]})[0] == 200
