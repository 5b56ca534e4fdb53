"""The process that writes a run, and what the stage sees of it: real sockets and a real store."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_store import assert_whole
from tiny import PIPELINE, make_project

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


def follow(stage: str, *messages: dict) -> list[str]:
    said: list[str] = []
    process.follow(stage, iter(messages), said.append)
    return said


def newest(client, experiment: str = "mnist"):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], "tags.stage != 'pipeline'", max_results=1)[0]


FINISHED = {"end": "FINISHED", "reason": ""}


def test_a_stage_that_ends_has_a_finished_run_with_its_epochs_and_outs(fresh):
    project, client = fresh
    epochs = [{"epoch": {"epoch": at, "test_loss": 1 / at}} for at in (1, 2, 3)]
    said = follow("train_mlp", *epochs, FINISHED, {"epoch": {"epoch": 4, "test_loss": 9.0}})
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
    # It asks no server while it hashes the outs, reads their files, makes the model for MLflow,
    # reads dvc.lock, and lays the files of the pipeline's run
    assert said.count("local") == 5 and len(said) > 8


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


def test_a_cell_is_a_run_of_the_study_and_connects_nothing(fresh):
    _, client = fresh
    follow("cell@fast-mlp-1", FINISHED)
    run = newest(client, "mnist-study")
    assert run.info.status == "FINISHED"
    assert run.data.tags["stage"] == "cell@fast-mlp-1"
    assert run.data.metrics["test_accuracy"] == 0.7
    assert client.get_experiment_by_name("mnist") is None


def test_a_run_beside_files_that_differ_from_the_commit_is_dirty(fresh):
    project, client = fresh
    project.edit("params.yaml", "device: cpu", "device: cuda")
    follow("prepare")
    assert newest(client).data.tags["dirty"] == "true"


def test_what_a_stage_sent_before_it_was_killed_is_read_to_the_end():
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"epoch": 1}\n{"epoch": 2}\n')
    ours.sendall(b"ready\n")  # unread: the connection is reset, not closed
    theirs.close()
    assert list(process.messages(ours.makefile("r"))) == [{"epoch": 1}, {"epoch": 2}]
    ours.close()


def test_answers_that_no_stage_reads_do_not_hold_the_process_up():
    ours, theirs = socket.socketpair()
    say = process.answering(ours)

    def work() -> None:
        for _ in range(3000):  # a socket holds 278
            say("ready")

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(30)
    assert not worker.is_alive()
    threading.Thread(target=say, args=["failed: why"], daemon=True).start()
    time.sleep(0.3)
    theirs.settimeout(30)
    with ours, theirs, theirs.makefile() as answers:
        assert next(line for line in answers if line != "local\n") == "failed: why\n"


# --- the stage's side ---


@pytest.fixture
def run(monkeypatch):
    """A stage's run and the other end of its socket."""
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    ours, theirs = socket.socketpair()
    made = dvc_mlflow.Run("plot")
    made._ours, made._writer = ours, subprocess.Popen(["sleep", "60"])
    with ours, theirs, made._writer:
        yield made, theirs
        made._writer.kill()


def test_without_the_mirror_a_stage_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.chdir(tmp_path)
    with dvc_mlflow.run("plot") as current:
        current.log_epoch({"epoch": 1})
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("said", "printed", "expected"),
    [
        (b"local\nready\ndone\n", "", ""),
        (b"ready\nnote: a: b\ndone\n", "a: b\n", ""),
        (b"failed: MLflow: it is down\n", "", "MLflow: it is down"),
        (b"failed: http://bob:secret@host\n", "", "http://host"),
        (b"ready\n", "", "its process ended"),
        (b"", "", "its process ended"),
        (b"not done\nundone", "", "its process ended"),
    ],
)
def test_a_stage_waits_for_the_end_and_warns_of_all_else(run, capsys, said, printed, expected):
    current, other_end = run
    other_end.sendall(said)
    other_end.shutdown(socket.SHUT_WR)
    current.log_epoch({"epoch": 1, "loss": 0.5})
    current.close("FAILED", "the reason")
    assert other_end.recv(4096).decode().splitlines() == [
        '{"epoch": {"epoch": 1, "loss": 0.5}}',
        '{"end": "FAILED", "reason": "the reason"}',
    ]
    start = f"warning: the MLflow run of plot is not complete ({expected}). The results are; "
    warning = f"{start}`dvc-mlflow sync` logs them\n" if expected else ""
    assert capsys.readouterr() == (printed, warning)


def test_a_process_without_progress_is_ended_and_one_that_works_alone_waited_for(run, monkeypatch):
    current, other_end = run
    monkeypatch.setattr(dvc_mlflow, "PATIENCE", 0.2)
    monkeypatch.setattr(dvc_mlflow, "LOCAL_PATIENCE", 30.0)
    other_end.sendall(b"local\n")
    threading.Timer(0.6, other_end.sendall, [b"ready\n"]).start()
    started = time.monotonic()
    assert current._wait(current._ours) == "no answer for 0 s"
    assert 0.7 <= time.monotonic() - started < 25
    assert current._writer.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("given", "patience"),
    [("", 5), ("3", 5), ("60", 61), ("9" * 30, 86_400), ("-1", 5), ("soon", 5)],
)
def test_a_stage_waits_as_long_as_a_request_may_take(run, monkeypatch, given, patience):
    current, other_end = run
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
    other_end.sendall(b"ready\n")
    threading.Timer(0.3, other_end.sendall, [b"done\n"]).start()
    assert current._wait(current._ours) == ""
    assert current._ours.gettimeout() == patience


def test_a_process_that_reads_nothing_does_not_hold_a_stage_up(run):
    current, _ = run
    started = time.monotonic()
    for epoch in range(3000):
        current.log_epoch({"epoch": epoch, "text": "x" * 500})
    assert time.monotonic() - started < 5


# --- both sides ---


@pytest.fixture
def live(fresh, monkeypatch):
    """Stages of this project have a process beside them."""
    monkeypatch.setenv("MIRROR", "on")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for patience in ("PATIENCE", "LOCAL_PATIENCE"):
        monkeypatch.setattr(dvc_mlflow, patience, 300)  # this machine may be busy
    return fresh


def test_a_stage_is_shown_while_it_runs(live, capsys):
    project, client = live

    def shown() -> bool:
        return newest(client, "mnist-study").data.metrics["test_loss"] == 0.5

    with contextlib.chdir(project.path / "study"), dvc_mlflow.run("report") as current:
        current.log_epoch({"epoch": 1, "test_loss": 0.5})
        wait_for(shown, 300)
        # If a stage is killed with its process group, this process is left to end the run
        assert os.getsid(current._writer.pid) != os.getsid(0)
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
    ],
)
def test_a_command_that_is_none_is_told(call, arguments, said):
    code, _, told = call(*arguments)
    assert code == 2
    assert told.startswith(f"error: {said}") and told.count("\n") == 1


def test_each_command_does_what_its_name_says(fresh, call):
    project, client = fresh

    def done(*arguments: str) -> str:
        code, said, errors = call(*arguments)
        opens = "note: `make ui` opens the addresses at http://127.0.0.1:5000\n"
        assert (code, errors) == (0, opens if "/#/experiments/" in said else "")
        return said

    assert done("links").count("no runs in ") == 2
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
    assert done("links").count("viewStateShareKey=stages") == 2
    assert done("find", "HEAD").startswith("commit ")
    assert done("find", "models/mlp.safetensors").startswith("file models/mlp.safetensors: md5")


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
