"""Where the UI is: real ports, real processes and a real store."""

import contextlib
import json
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from tiny import make_code

from conftest import free_port, wait_for
from dvc_kit.errors import InputError
from dvc_mlflow import addresses, projects, upkeep, view
from dvc_mlflow.pages import CHARTS

STUDY = Path("study")


@contextlib.contextmanager
def taken(port: int):
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        held.listen()
        yield


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "5000.0", " 5000", "TAKEN"])
def test_what_is_no_port_or_is_taken_is_told(port):
    with taken(int(number := free_port())):
        port = port.replace("TAKEN", number)
        is_taken = rf"port {number} is taken: `dvc-mlflow view PORT`"
        no_number = f"PORT is {port}, expected a number from 1 to 65535"
        with pytest.raises(InputError, match=f"^({is_taken if port == number else no_number})$"):
            view._free(port)
    assert view._free(number) == int(number) and view._free("65535") == 65535


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_who_can_reach_the_pages_is_told_unless_it_is_this_machine_alone(
    standing_in, tmp_path, monkeypatch, capsys, host
):
    started, number = [], free_port()
    with standing_in(make_code(tmp_path / "project")):
        monkeypatch.setattr(view.upkeep, "settle", lambda: None)
        monkeypatch.setattr(view.upkeep, "ignore", lambda: None)
        monkeypatch.setattr(view, "links", lambda ui: ui)
        monkeypatch.setattr(view.subprocess, "Popen", lambda command, **_: started.append(command))
        with pytest.raises(AttributeError):  # nothing was started
            view.show(number, host)
    assert started[0][-4:] == ["--host", host, "--port", number]
    told = f"warning: it listens on {host}: who reaches port {number} there can read, change and "
    assert (told in capsys.readouterr().err) == (host != "127.0.0.1")


def test_without_a_port_the_first_free_one_is_taken(monkeypatch):
    first = int(free_port())
    monkeypatch.setattr(view, "PORT", first)
    with taken(first):
        assert first < view._free("") < first + 100


def links(ui: str = addresses.UI) -> dict[str, str]:
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
            pipeline, study = upkeep.open_store(), upkeep.open_store(Path("study"))
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
        experiment = upkeep.open_store()
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


def test_the_first_curves_get_a_link_and_an_address(standing_in, tmp_path, monkeypatch, capsys):
    project = make_code(tmp_path / "project")
    monkeypatch.setattr(sys, "executable", f"{project.path}/some env/bin/python")
    with standing_in(project) as client:
        experiment = upkeep.open_store()
        runs, charts = addresses.overview(experiment), addresses.overview(experiment, view=CHARTS)
        opens = "when `'some env/bin/mlflow' ui` runs in this folder:"
        addresses.print_pages(experiment)
        assert capsys.readouterr().out == f"Runs, {opens}\n{runs}\n"
        client.set_experiment_tag(experiment, "mlflow.note.content", "ours")
        upkeep.show_views(projects.MAIN, experiment, curves=["loss"])
        addresses.print_pages(experiment)
        assert capsys.readouterr().out == f"Runs and charts, {opens}\n{runs}\n{charts}\n"
        text = client.get_experiment(experiment).tags["mlflow.note.content"]
        page_of_charts = charts.removeprefix(addresses.UI + "/")
        assert text.startswith("[Open the runs](#")
        assert text.endswith(f"). [Open the charts]({page_of_charts}). ours")
        monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")
        addresses.print_pages(experiment)
        assert "when `mlflow ui` runs" in capsys.readouterr().out
        # What somebody wrote before the links stays there
        client.set_experiment_tag(experiment, "mlflow.note.content", f"mine {text}")
        upkeep.open_store()
        assert client.get_experiment(experiment).tags["mlflow.note.content"] == f"mine {text}"


def test_the_views_of_an_older_store_become_those_of_the_settings(standing_in, tmp_path):
    with standing_in(make_code(tmp_path / "project")) as client:
        experiment = upkeep.open_store(STUDY)
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
    view.show("not even looked at")
    said, warned = capsys.readouterr()
    assert said == "The tracking server has the UI: http://127.0.0.1:9\n"
    assert warned.startswith("warning: MLflow: ")
    assert "nothing answers at http://127.0.0.1:9: start it" in warned and "secret" not in warned


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP, None])
def test_the_server_is_mlflow_s_and_ends_with_all_that_it_started(tmp_path, sent):
    project, port = make_code(tmp_path / "project"), free_port()
    env = {"MLFLOW_WORKERS": "1" if sent else "many"}
    process = project.start("python", "-m", "dvc_mlflow", "view", port, env=env)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if sent:
        health = f"http://127.0.0.1:{port}/health"
        wait_for(lambda: direct.open(health, timeout=2).status == 200, 300)
    family = psutil.Process(process.pid).children(recursive=True)
    assert not [member for member in family if "mlflow.db" in " ".join(member.cmdline())]
    if sent:
        told = [process.stdout.readline()[:14].rstrip() for _ in range(2)]  # when they open
        assert told == ["runs", "study runs"]
        process.send_signal(sent)
    said, errors = process.communicate(timeout=120)
    assert said == ""
    assert (process.returncode, "`mlflow ui` ended" in errors) == (
        (0, False) if sent else (1, True)
    )
    assert not [member for member in family if member.is_running()]
