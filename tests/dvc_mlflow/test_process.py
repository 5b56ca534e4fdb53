"""The process that writes a run, and what the stage sees of it: real sockets and a real store."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_store import assert_whole
from tiny import CELLS, PIPELINE, make_project

import dvc_mlflow
from conftest import ROOT, forget_the_history, wait_for
from dvc_kit import cli
from dvc_mlflow import __main__ as commands
from dvc_mlflow import hooks, process, projects, sync


@pytest.fixture
def fresh(standing_in, tmp_path):
    """This process stands in a project of which nothing is logged."""
    project = make_project(tmp_path / "project", seed=5)
    with standing_in(project) as client:
        yield project, client


def follow(stage: str, *messages: dict) -> None:
    process.follow(stage, messages)


def runs_of(client) -> list:
    return client.search_runs([one.experiment_id for one in client.search_experiments()])


def newest(client, experiment: str = "mnist"):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], "tags.stage != 'pipeline'", max_results=1)[0]


FINISHED = {"end": "FINISHED", "reason": ""}


def test_a_stage_that_ends_has_a_finished_run_with_its_epochs_and_outs(fresh):
    project, client = fresh
    epochs = [{"epoch": {"epoch": at, "test_loss": 1 / at}} for at in (1, 2, 3)]
    follow("train_mlp", *epochs, FINISHED, {"epoch": {"epoch": 4, "test_loss": 9.0}})
    run = newest(client)
    assert run.info.status == "FINISHED" and run.info.end_time
    history = client.get_metric_history(run.info.run_id, "test_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1), (2, 0.5), (3, 1 / 3)]
    tags = run.data.tags
    outs = {tag[4:]: md5 for tag, md5 in tags.items() if tag.startswith("out:")}
    assert outs == project.outs("train_mlp")
    commit = project.git("rev-parse", "HEAD")
    assert (tags["commit"], tags["dirty"]) == (commit, "false")
    assert "backfilled" not in tags


def test_the_last_stage_connects_the_pipeline_once_all_results_agree(fresh):
    project, client = fresh
    (project.path / "dvc.lock").unlink()
    stages = list(PIPELINE)
    for at, stage in enumerate(stages, 1):
        assert not client.search_registered_models()
        follow(stage, FINISHED)
        project.lock(*stages[:at])  # DVC does that when the stage has ended
    assert_whole(client)
    assert len(client.search_registered_models()) == 1
    written = [run.info.run_id for run in client.search_runs(["1"])]
    sync.sync()
    assert [run.info.run_id for run in client.search_runs(["1"])] == written


def test_a_stage_whose_results_do_not_agree_with_the_others_connects_nothing(fresh):
    project, client = fresh
    project.lock(*list(PIPELINE)[:-1])
    follow("train_mlp", FINISHED)
    follow("evaluate", FINISHED)
    metrics = project.path / "reports/metrics.json"
    scores = metrics.read_text()
    metrics.write_text("{}")  # which evaluate has not made
    follow("plot", FINISHED)
    metrics.write_text(scores)
    project.lock()
    metrics.write_text("{}")  # nor has what the lock says of all stages
    follow("prepare", FINISHED)
    assert len(client.search_runs(["1"], "attributes.status = 'FINISHED'")) == 4
    assert not client.search_registered_models()
    assert not client.search_runs(["1"], "tags.stage = 'pipeline'")


@pytest.mark.parametrize(
    ("messages", "status", "reason"),
    [
        ([], "KILLED", "its process ended"),
        ([{"end": "KILLED", "reason": "interrupted"}], "KILLED", "interrupted"),
        ([{"end": "FAILED", "reason": "the loss is nan"}], "FAILED", "the loss is nan"),
    ],
)
def test_a_stage_that_does_not_finish_has_a_run_that_says_why_and_no_outs(
    fresh, messages, status, reason
):
    _, client = fresh
    follow("plot", *messages)
    run = newest(client)
    assert (run.info.status, run.data.tags["reason"]) == (status, reason)
    assert not [tag for tag in run.data.tags if tag.startswith("out:")]
    assert run.data.params["recipe"] == "documented"
    assert run.info.run_name == f"plot ({status.lower()}) documented"
    said = f"**{status.lower()}**: {reason}\n\nDraw the curves"
    assert run.data.tags["mlflow.note.content"] == said
    follow("plot", FINISHED)
    [twin] = client.search_runs(["1"], "attributes.status = 'FINISHED'")
    assert twin.info.run_name == "plot documented"
    note = client.get_run(run.info.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("resumed by [plot documented](#/experiments/1/runs/")
    assert twin.info.run_id in note and note.endswith(f"\n\n{said}")
    follow("plot", FINISHED)  # and a third one changes nothing
    assert client.get_run(run.info.run_id).data.tags["mlflow.note.content"] == note


# --- the stage's side ---


def test_without_the_mirror_a_stage_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.chdir(tmp_path)
    with dvc_mlflow.run("plot") as current:
        current.log_epoch({"epoch": 1})
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


READ = "import json, os, sys; sent = sys.stdin.read().splitlines(); "


@pytest.mark.parametrize(
    ("script", "printed", "expected"),
    [
        (f"{READ}print('a: b')", "a: b\n", ""),
        (f"{READ}print('note\\nhttp://bob:secret@host'); sys.exit(1)", "note\n", "http://host"),
        (f"{READ}sys.exit(1)", "", "its process ended"),
        ("import os; print('note', flush=True); os.kill(os.getpid(), 9)", "note\n",
         "its process ended"),
        ("import time; time.sleep(60)", "", "no answer for 1 s"),
        (f"{READ}print(*sent, sep='\\n')", '{"epoch": {"epoch": 1, "loss": 0.5}}\n'
         '{"end": "FAILED", "reason": "the reason"}\n', ""),
    ],
)  # fmt: skip
def test_a_stage_waits_for_the_end_and_warns_of_all_else(
    monkeypatch, capsys, script, printed, expected
):
    monkeypatch.setenv("MIRROR", "on")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setattr(dvc_mlflow, "PATIENCE", 1.2 if "sleep" in script else 60)
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: real(
        [sys.executable, "-c", script], **how
    ))  # fmt: skip
    current = dvc_mlflow.Run("plot")
    current.log_epoch({"epoch": 1, "loss": 0.5})
    current.close("FAILED", "the reason")
    start = f"warning: the MLflow run of plot is not complete ({expected}). The results are; "
    warning = f"{start}`dvc-mlflow sync` logs them\n" if expected else ""
    assert capsys.readouterr() == (printed, warning)
    assert current._process.wait(30) is not None  # it is not left behind


@pytest.mark.parametrize(
    ("given", "patience"),
    [("", 60), ("3", 60), ("60", 600), ("9" * 30, 9_999_990), ("-1", 60), ("soon", 60)],
)
def test_a_stage_waits_for_ten_requests(monkeypatch, given, patience):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
    assert dvc_mlflow._patience() == patience


def test_a_process_that_reads_nothing_does_not_hold_a_stage_up(monkeypatch):
    monkeypatch.setenv("MIRROR", "on")
    current = dvc_mlflow.Run("plot")
    os.kill(current._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    for epoch in range(3000):
        current.log_epoch({"epoch": epoch, "text": "x" * 500})
    assert time.monotonic() - started < 5
    current._process.kill()


# --- both sides ---


@pytest.fixture
def live(fresh, monkeypatch):
    """Stages of this project have a process beside them."""
    monkeypatch.setenv("MIRROR", "on")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(dvc_mlflow, "PATIENCE", 300)  # this machine may be busy
    return fresh


def test_a_stage_is_shown_while_it_runs(live, capsys):
    project, client = live

    def shown() -> bool:
        return newest(client, "mnist-study").data.metrics["test_loss"] == 0.5

    with contextlib.chdir(project.path / "study"), dvc_mlflow.run("report") as current:
        current.log_epoch({"epoch": 1, "test_loss": 0.5})
        wait_for(shown, 300)
        # If a stage is killed with its process group, this process is left to end the run
        assert os.getsid(current._process.pid) != os.getsid(0)
    run = newest(client, "mnist-study")
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "report")
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_fails_has_a_run_that_says_why(live):
    _, client = live
    with pytest.raises(ValueError), dvc_mlflow.run("plot"):
        raise ValueError("of http://bob:secret@host\n" + "x" * 600)
    run = newest(client)
    assert run.info.status == "FAILED" and len(run.data.tags["reason"]) == 500
    assert run.data.tags["reason"].startswith("of http://host xxx")


@pytest.mark.parametrize(
    ("variable", "settings", "reason"),
    [
        ("http://bob:secret@127.0.0.1:9", "", r"MLflow: nothing answers at http://127\.0.*"),
        ("", "[tool", r"pyproject.toml: .*"),
        ("no python", "", r"/no/python: No such file or directory"),
    ],
)
def test_a_mirror_that_cannot_work_costs_a_warning(
    live, capsys, monkeypatch, variable, settings, reason
):
    project, _ = live
    if settings:
        project.write("pyproject.toml", settings)
        hooks.settings.cache_clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    if variable == "no python":
        monkeypatch.setattr(sys, "executable", "/no/python")
    with dvc_mlflow.run("prepare"):
        pass
    out, told = capsys.readouterr()
    start = r"warning: the MLflow run of prepare is not complete \("
    assert out == "" and "secret" not in told
    assert re.fullmatch(rf"{start}{reason}\)\. The results are; [^\n]*\n", told)


# --- the command line ---


@pytest.fixture
def call(fresh, monkeypatch, capsys):
    """Calls the command line in a folder of the project; the exit code, the output, and the error
    output."""
    project, _ = fresh
    monkeypatch.chdir(project.path)  # and back
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("dvc_kit.commands.started", Path())

    def called(*arguments: str, below: str = "") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(cli, "STARTED", project.path / below)
        monkeypatch.setenv("PWD", str(project.path / below))
        monkeypatch.setattr("sys.argv", ["dvc-mlflow", *arguments])
        forget_the_history()
        code = 0
        try:
            commands.main()
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return called


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: command; `dvc-mlflow --help` shows what"),
        ([""], "argument command: invalid choice: ''"),
        (["fnd", "x"], "argument command: invalid choice: 'fnd'"),
        (["sync", "HEAD"], "unrecognized arguments: HEAD; "),
        (["sync", "--re", "HEAD"], "unrecognized arguments: --re HEAD; "),
        (["sync", "--rev", "no-such"], "no-such is not a commit of this repository"),
        (["status", "a"], "unrecognized arguments: a; "),
        (["find"], "the following arguments are required: what; `dvc-mlflow find --help` shows"),
        (["find", ""], "nothing to find: name a run, a model version"),
        (["view", "0"], "PORT is 0"),
        (
            ["view", "--host", "192.0.2.1"],
            "HOST is 192.0.2.1, expected an IPv4 address or a name of",
        ),
    ],
)
def test_a_command_that_is_none_is_told(call, arguments, said):
    code, _, told = call(*arguments)
    assert code == 2
    assert told.startswith(f"error: {said}") and told.count("\n") == 1


@pytest.mark.parametrize("command", ["sync", "status", "find", "view", "install"])
def test_each_command_shows_an_example(call, command):
    code, said, _ = call(command, "--help")
    assert code == 0 and f"\nexample: dvc-mlflow {command}" in said


def test_each_command_does_what_its_name_says(fresh, call):
    project, client = fresh

    def done(*arguments: str) -> str:
        code, said, errors = call(*arguments)
        opens = "note: `make ui` opens the addresses at http://127.0.0.1:5000\n"
        assert (code, errors) == (0, opens if "/#/experiments/" in said else "")
        return said

    project.lock("prepare")
    commit = project.commit("only data")
    assert done("sync", "--dry").count("would log the run of ") == 1 + 3
    assert not client.search_experiments(filter_string="name LIKE 'mnist%'")  # nothing is made
    assert done("sync").splitlines() == [
        "logged the run of prepare from its results",
        "logged 2 runs of study: cell from their results",
        "logged the run of study: report from its results",
    ]
    assert done("sync", "--rev", commit) == done("sync", "--rev") == ""
    project.lock("prepare", "plot")
    assert done("sync", "--rev", commit) == ""
    code, _, told = call("status")
    assert code == 1 and told.startswith("error: no complete run for plot in sqlite")
    assert told.endswith(": `dvc-mlflow sync` writes them, or says why it cannot\n")
    assert done("find", "HEAD").startswith("commit ")
    assert done("find", "models/mlp.safetensors").startswith("file models/mlp.safetensors: md5")


def test_one_project_is_synced_alone(fresh, call):
    _, client = fresh
    cells = [f"cell@{cell}" for cell in CELLS]
    for folder, expected in ((".", [*PIPELINE]), ("study", [*cells, "report"])):
        before = {run.info.run_id for run in runs_of(client)}
        assert call("sync", "--project", folder)[0] == 0
        new = [run for run in runs_of(client) if run.info.run_id not in before]
        assert {run.data.tags["stage"] for run in new} == {*expected, "pipeline"}
    said = call("sync", "--project", "studi")
    assert said == (2, "", "error: studi is not the folder of a DVC project; here are ., study\n")


@pytest.mark.parametrize("below", ["reports/figures", "study/cells"])
def test_a_command_works_in_each_folder_below_the_main_one(fresh, call, below):
    project, _ = fresh
    code, said, _ = call("status", below=below)
    assert code == 1 and said.startswith("0 of 5 results have their run\nstudy: 0 of 3 ")
    assert Path.cwd() == project.path


def test_the_main_folder_is_that_of_git_or_without_it_the_highest_project(tmp_path):
    def main_folder(started: str) -> str | None:
        found = projects.root(tmp_path / started)
        return found and found.relative_to(tmp_path).as_posix()

    for folder in ("a/.dvc", "a/.git", "a/b/.dvc", "a/b/c", "d/e/.dvc", "d/e/f/.dvc", "g/h/.dvc"):
        (tmp_path / folder).mkdir(parents=True)
    assert main_folder("a/b/c") == main_folder("a/b") == main_folder("a") == "a"
    assert main_folder("d/e/f") == main_folder("d/e") == "d/e"
    assert main_folder("d") is main_folder(".") is None
    # A project that is not in the main folder of git
    (tmp_path / "g/h/.dvc/config").write_text("")
    assert main_folder("g/h") == "g/h"
    (tmp_path / "g/.git").mkdir()
    assert main_folder("g/h") == main_folder("g") == "g"
    (tmp_path / "d/.git").mkdir()
    assert main_folder("d") is None
