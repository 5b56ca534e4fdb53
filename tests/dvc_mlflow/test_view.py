"""Where the UI is: real ports, real processes and a real store."""

import contextlib
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from tiny import make_code

from conftest import free_port, wait_for
from dvc_mlflow import store, view
from dvc_mlflow.errors import InputError, StageError

STUDY = Path("study")


@contextlib.contextmanager
def taken(port: int):
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        held.listen()
        yield


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "5000.0", " 5000"])
def test_what_is_no_port_is_told(port):
    with pytest.raises(InputError, match=f"^PORT is {port}, expected a number from 1 to 65535$"):
        view._free(port)


def test_the_port_that_is_asked_for_is_taken_or_told_to_be_in_use():
    port = free_port()
    assert view._free(port) == int(port)
    assert view._free("65535") == 65535
    with (
        taken(int(port)),
        pytest.raises(InputError, match=rf"^port {port} is taken: `dvc-mlflow view PORT`$"),
    ):
        view._free(port)


def test_a_port_is_free_although_the_last_connections_to_it_are_being_closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # the first to close has to remember it
            assert client.recv(1) == b""
    with socket.socket() as plain, pytest.raises(OSError):
        plain.bind(("127.0.0.1", port))
    assert view._free(str(port)) == port


def test_without_a_port_the_first_free_one_is_taken(monkeypatch):
    def are_free(first: int) -> bool:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 100):
                stack.enter_context(taken(port))
            return True
        return False

    first = next(port for port in range(20_000, 60_000, 100) if are_free(port))
    monkeypatch.setattr(view, "PORT", first)
    assert view._free("") == first
    with contextlib.ExitStack() as stack:
        for at in range(100):
            assert view._free("") == first + at
            stack.enter_context(taken(first + at))
        with pytest.raises(InputError, match=f"^port {first} and the 99 after it is taken"):
            view._free("")


def links(ui: str = store.UI) -> dict[str, str]:
    lines = [line.rsplit("  ", 1) for line in view.links(ui).splitlines()]
    return {name.strip(): address.strip() for name, address in lines}


def test_links_name_the_experiments_that_have_runs_and_what_writes_those_that_have_none(
    standing_in, tmp_path
):
    project = make_code(tmp_path / "project")
    with standing_in(project):
        none = f"no runs in sqlite:///{project.path}/mlflow.db yet: `dvc-mlflow sync` writes them"
        for _ in range(2):  # without the experiments, and with empty ones
            assert links() == {"runs": none, "study runs": none}
            pipeline, study = store.open_store(), store.open_store(Path("study"))
        MlflowClient().create_run(study)
        side = "workflowType=machine_learning"
        page = f"http://here/#/experiments/{study}/runs?viewStateShareKey="
        assert links("http://here") == {
            "runs": none,
            "study runs": f"{page}stages&{side}",
            "study charts": f"{page}charts&compareRunsMode=CHART&{side}",  # of pyproject.toml
        }
        MlflowClient().create_run(pipeline)
        found = links()
        assert list(found) == ["runs", "study runs", "study charts"]  # without curves no charts
        page = f"http://127.0.0.1:5000/#/experiments/{pipeline}/runs?viewStateShareKey="
        assert found["runs"] == f"{page}stages&{side}"


def test_links_lead_to_the_curves_and_to_the_newest_trainings_side_by_side(standing_in, tmp_path):
    def train(parent: str) -> str:
        run_id = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
        for key in ("test_loss", "train_loss", "train_accuracy"):
            client.log_metric(run_id, key, 0.5, step=2)
        client.log_metric(run_id, "score", 0.5)
        return run_id

    with standing_in(make_code(tmp_path / "project")) as client:
        experiment = store.open_store()
        older = [train("old"), train("old")]
        alone = links()
        newer = [train("new")]
        assert "compared" in alone and "compared" not in links()  # one is nothing to compare
        newer.append(train("new"))
        client.delete_tag(train("none"), "mlflow.parentRunId")  # a later one that was killed
        found = links()["compared"]
        assert [run_id for run_id in newer + older if run_id in found] == newer
        assert found.index(newer[0]) < found.index(newer[1])
        tags = client.get_experiment(experiment).tags
        assert "viewStateShareKey=charts" in links()["charts"]
        shown = json.loads(tags["mlflow.sharedViewState.charts"])
        drawn = [chart["selectedMetricKeys"] for chart in shown["compareRunCharts"]]
        assert drawn == [["test_loss", "train_loss"], ["train_accuracy"]]
        chosen = client.search_runs([experiment], shown["searchFilter"])
        assert {run.info.run_id for run in chosen} > {*older, *newer}


def test_the_views_of_an_older_store_become_those_of_the_settings(standing_in, tmp_path):
    with standing_in(make_code(tmp_path / "project")) as client:
        experiment = store.open_store(STUDY)
        client.create_run(experiment)
        tags = client.get_experiment(experiment).tags
        client.set_experiment_tag(experiment, "mlflow.sharedViewState.stages", "{}")
        client.delete_experiment_tag(experiment, "mlflow.sharedViewState.charts")
        view.links()
        assert client.get_experiment(experiment).tags == tags
        by_recipe, parallel = json.loads(tags["mlflow.sharedViewState.charts"])["compareRunCharts"]
        assert (by_recipe["type"], parallel["type"]) == ("SCATTER", "PARALLEL")
        assert by_recipe["xaxis"] == {"key": "recipe", "type": "PARAM"}
        assert by_recipe["yaxis"] == {"key": "test_accuracy", "type": "METRIC"}
        assert parallel["selectedParams"] == ["model", "recipe"]


def test_a_tracking_server_has_the_ui_itself(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:secret@127.0.0.1:9/")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    view.show("not even looked at")
    assert urllib.request.proxy_bypass_environment("127.0.0.1")  # whatever proxy is set
    assert not urllib.request.proxy_bypass_environment("example.org")
    said, warned = capsys.readouterr()
    assert said == "The tracking server has the UI: http://127.0.0.1:9\n"
    assert warned.startswith("warning: MLflow: ")
    assert "nothing answers at http://127.0.0.1:9: start it" in warned and "secret" not in warned


def test_nothing_is_started_on_a_port_that_is_taken(standing_in, tmp_path):
    port = free_port()
    with (
        standing_in(make_code(tmp_path / "project")),
        taken(int(port)),
        pytest.raises(InputError, match=f"port {port} is taken"),
    ):
        view.show(port)


# --- the server ---


@pytest.mark.slow
def test_a_server_that_ends_is_told(standing_in, tmp_path, monkeypatch, capfd):
    handled = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in handled]
    monkeypatch.setenv("MLFLOW_WORKERS", "many")
    try:
        with (
            standing_in(make_code(tmp_path / "project")),
            pytest.raises(StageError, match=r"^`mlflow ui` ended, see above$"),
        ):
            view.show(free_port())
        said = capfd.readouterr()
        assert "Usage: " in said.err and "many" in said.err and said.out == ""
        assert [signal.getsignal(number) for number in handled] == [view._interrupt] * 2
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


def sleeper() -> subprocess.Popen[bytes]:
    """A process with a child that has one too, in a group of their own."""
    code = "import subprocess; subprocess.run(['sh', '-c', 'sleep 60; true'])"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
    wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 2)
    return process


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers at /health only, and from the second request on."""

    asked = 0

    def do_GET(self):
        Healthy.asked += 1
        good = Healthy.asked > 1 and self.path == "/health"
        self.send_response(200 if good else 404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_server_is_waited_for_until_it_is_healthy_and_no_proxy_is_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(view, "PATIENCE", 20)
    process = sleeper()
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert view._answers(f"http://127.0.0.1:{server.server_port}", process)
        server.shutdown()
    assert Healthy.asked == 2
    view._end(process)


def test_a_server_that_ended_or_never_answers_is_not_waited_for(monkeypatch):
    process = sleeper()
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(view, "PATIENCE", 0.3)
    started = time.monotonic()
    assert not view._answers(address, process)
    assert 0.3 <= time.monotonic() - started < 5
    view._end(process)
    monkeypatch.setattr(view, "PATIENCE", 60)
    assert not view._answers(address, process)
    assert time.monotonic() - started < 30


def test_the_server_ends_with_all_that_it_started_and_once_is_enough():
    process = sleeper()
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) == 3
    view._end(process)
    assert process.returncode is not None
    wait_for(lambda: not [member for member in family if member.is_running()], 5)
    view._end(process)


def test_a_signal_ends_it_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt):
        view._interrupt(15, None)
