"""The process that writes a run, and what the stage sees of it: real sockets and a real store."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from test_store import assert_whole
from tiny import PIPELINE, make_project

import dvc_mlflow
from conftest import ROOT, forget_the_history
from dvc_mlflow import __main__ as commands
from dvc_mlflow import alone, hooks, process, projects, sync
from dvc_mlflow.errors import StageError


@pytest.fixture
def fresh(standing_in, tmp_path):
    """This process stands in a project of which nothing is logged."""
    project = make_project(tmp_path / "project", seed=5)
    before = dict(os.environ)
    with standing_in(project) as client:
        yield project, client
    os.environ.clear()  # which following a stage replaces
    os.environ.update(before)


def follow(stage: str, *messages: dict, **environment: str) -> list[str]:
    said: list[str] = []
    first = {"stage": stage, "environment": {**os.environ, **environment}}
    process.follow(iter([first, *messages]), said.append)
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
    # It asks no server while it hashes the outs, makes the model for MLflow, reads dvc.lock, and
    # lays the files of the pipeline's run
    assert said.count("local") == 4 and len(said) > 8


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


def test_the_environment_is_the_stages_own_and_not_what_the_process_had(fresh):
    _, client = fresh
    os.environ["DVC_EXP_NAME"] = "of another stage"
    environment = {**os.environ, "MLFLOW_EXPERIMENT_NAME": "mine"}
    del environment["DVC_EXP_NAME"]
    process.follow(iter([{"stage": "prepare", "environment": environment}]), print)
    assert "dvc_experiment" not in newest(client, "mine").data.tags


def test_what_a_stage_sent_before_it_was_killed_is_read_to_the_end():
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"epoch": 1}\n{"epoch": 2}\n')
    ours.sendall(b"ready\n")  # unread: the connection is reset, not closed
    theirs.close()
    assert list(process.messages(ours.makefile("r"))) == [{"epoch": 1}, {"epoch": 2}]
    ours.close()


# --- the stage's side ---


@pytest.fixture
def run(monkeypatch):
    """A stage's run and the other end of its socket."""
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    ours, theirs = socket.socketpair()
    made = dvc_mlflow.Run("plot")
    made._process = ours
    with ours, theirs:
        yield made, theirs


def test_without_a_run_a_stage_only_takes_its_lock(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.chdir(tmp_path)
    with dvc_mlflow.run("plot") as current:
        current.log_epoch({"epoch": 1})
    kept = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert kept == [".dvc", ".dvc/tmp", ".dvc/tmp/stages", ".dvc/tmp/stages/.%2Fplot.lock"]
    assert warnings(capsys) == []


def warnings(capsys) -> list[str]:
    """What a stage has said, but for the note that DVC has not started it."""
    out, err = capsys.readouterr()
    assert out == ""
    return [line for line in err.splitlines() if not line.startswith("note: DVC did not start")]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"process 1\nlocal\nready\ndone\n", ""),
        (b"process 1\nfailed: MLflow: it is down\n", "MLflow: it is down"),
        (b"process 1\nready\n", "its process ended"),
        (b"", "its process ended"),
        (b"process 1\nnot done\nundone", "its process ended"),
    ],
)
def test_a_stage_waits_for_the_end_and_warns_of_all_else(run, capsys, said, expected):
    current, other_end = run
    other_end.sendall(said)
    other_end.shutdown(socket.SHUT_WR)
    current.log_epoch({"epoch": 1, "loss": 0.5})
    current.close("FAILED", "the reason")
    assert other_end.recv(4096).decode().splitlines() == [
        '{"epoch": {"epoch": 1, "loss": 0.5}}',
        '{"end": "FAILED", "reason": "the reason"}',
    ]
    told = capsys.readouterr().err
    assert bool(told) == bool(expected)
    if expected:
        start = f"warning: the MLflow run of plot is not complete ({expected}). "
        assert told.startswith(start) and "`dvc-mlflow sync`" in told


def test_a_process_that_shows_no_progress_is_ended_and_one_that_works_alone_is_waited_for(
    run, monkeypatch
):
    current, other_end = run
    monkeypatch.setattr(dvc_mlflow, "PATIENCE", 0.2)
    monkeypatch.setattr(dvc_mlflow, "LOCAL_PATIENCE", 5.0)
    writer = subprocess.Popen(["sleep", "60"])
    other_end.sendall(f"process {writer.pid}\nlocal\n".encode())
    later = threading.Timer(0.6, other_end.sendall, [b"ready\n"])
    later.start()
    started = time.monotonic()
    assert current._wait(current._process) == "no answer for 0 s"
    assert 0.7 <= time.monotonic() - started < 4
    assert writer.wait(5) == -signal.SIGKILL
    other_end.sendall(f"process {writer.pid}\nready\n".encode())
    assert current._wait(current._process) == "no answer for 0 s"  # and it is gone already


@pytest.mark.parametrize(
    ("given", "patience"),
    [("", 5), ("3", 5), ("60", 61), ("9" * 30, 86_400), ("-1", 5), ("soon", 5)],
)
def test_a_stage_waits_as_long_as_a_request_may_take(run, monkeypatch, given, patience):
    current, other_end = run
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
    other_end.sendall(b"process 1\nready\n")
    threading.Timer(0.3, other_end.sendall, [b"done\n"]).start()
    assert current._wait(current._process) == ""
    assert current._process.gettimeout() == patience


def test_a_process_that_reads_nothing_does_not_hold_a_stage_up(run):
    current, _ = run
    started = time.monotonic()
    for epoch in range(3000):
        current.log_epoch({"epoch": epoch, "text": "x" * 500})
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def written_live(standing_in, tmp_path_factory):
    """This process stands in a project in which a writer runs: the first stage starts it."""
    project = make_project(tmp_path_factory.mktemp("written_live") / "p", seed=6)
    with standing_in(project) as client, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIRROR", "on")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(dvc_mlflow, "PATIENCE", 60)  # this machine may be busy
        with dvc_mlflow.run("report"):
            pass
        yield project, client


def test_the_first_stage_starts_the_process_and_the_next_ones_are_written_by_the_same(
    written_live, capsys
):
    project, client = written_live
    sockets = list((project.path / ".dvc/tmp").glob("mirror-*.sock"))
    assert len(sockets) == 1 and newest(client, "mnist-study").info.status == "FINISHED"
    created = sockets[0].stat().st_ctime_ns
    with dvc_mlflow.run("report") as current:
        current.log_epoch({"epoch": 1, "test_loss": 0.5})
    run = newest(client, "mnist-study")
    assert run.info.status == "FINISHED" and run.data.metrics["test_loss"] == 0.5
    assert run.data.tags["stage"] == "report"
    with pytest.raises(ValueError), dvc_mlflow.run("plot"):
        raise ValueError("of http://bob:secret@host\n" + "x" * 600)
    reason = newest(client).data.tags["reason"]
    assert newest(client).info.status == "FAILED"
    assert reason.startswith("of http://host xxx") and len(reason) == 500
    with pytest.raises(KeyboardInterrupt), dvc_mlflow.run("plot"):
        raise KeyboardInterrupt
    assert newest(client).info.status == "KILLED"
    assert newest(client).data.tags["reason"] == "interrupted"
    assert warnings(capsys) == []
    writers = [
        found.pid
        for found in psutil.process_iter(["cmdline", "cwd"])
        if "dvc_mlflow.process" in (found.info["cmdline"] or [])
        and found.info["cwd"] == str(project.path)
    ]
    # If a stage is killed with its process group, this process is left to end the run
    assert writers and os.getsid(0) not in map(os.getsid, writers)
    assert sockets[0].stat().st_ctime_ns == created
    assert list((project.path / ".dvc/tmp").glob("mirror-*.sock")) == sockets


@pytest.mark.slow
def test_where_a_process_may_not_fork_each_stage_gets_a_process_of_its_own(
    fresh, monkeypatch, tmp_path
):
    _, client = fresh
    monkeypatch.setattr(process, "FORKS", False)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as stage:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        stage.connect(str(tmp_path / "socket"))
        process.answer(listener)
        first = {"stage": "train_mlp", "environment": dict(os.environ)}
        for message in (first, {"epoch": {"epoch": 1, "test_loss": 0.5}}, FINISHED):
            stage.sendall(f"{json.dumps(message)}\n".encode())
        _, *steps, last = stage.makefile(encoding="utf-8")
    assert last == "done\n"
    assert {*steps} == {"local\n"}  # the store is a file, so the stage waits for it longer
    assert os.wait()[0] != os.getpid()
    run = newest(client)
    assert (run.info.status, run.data.metrics["test_loss"]) == ("FINISHED", 0.5)


def test_a_store_that_cannot_be_used_costs_a_warning_without_its_password(
    written_live, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://bob:secret@nowhere")
    with dvc_mlflow.run("plot"):
        pass
    [told] = warnings(capsys)
    assert told.startswith("warning: the MLflow run of plot is not complete (MLflow: ")
    assert "htp://nowhere" in told and "secret" not in told


def test_a_folder_that_takes_no_socket_costs_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRROR", "on")
    (tmp_path / ".dvc/tmp/mirror.lock").mkdir(parents=True)  # in the way
    with dvc_mlflow.run("plot"):
        pass
    [told] = warnings(capsys)
    assert told.startswith("warning: the MLflow run of plot is not complete (/")
    assert "/.dvc/tmp/mirror.lock: Is a directory)" in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tool", "pyproject.toml: "),
        ('[tool.dvc-mlflow]\nhooks = "no.such"', "hooks in pyproject.toml: No module named 'no'"),
    ],
)
def test_settings_that_cannot_be_read_cost_a_warning(fresh, capsys, monkeypatch, text, reason):
    project, _ = fresh
    project.write("pyproject.toml", text)
    hooks.settings.cache_clear()
    monkeypatch.setenv("MIRROR", "on")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(dvc_mlflow, "PATIENCE", 60)
    with dvc_mlflow.run("prepare"):
        pass
    [told] = warnings(capsys)
    assert told.startswith(f"warning: the MLflow run of prepare is not complete ({reason}")


@pytest.mark.parametrize("mirror", ["on", "off"])
def test_a_stage_that_runs_already_is_refused_before_it_has_a_run(
    fresh, monkeypatch, capsys, mirror
):
    _, client = fresh
    monkeypatch.setenv("MIRROR", mirror)
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    with (
        alone.holding("plot"),
        pytest.raises(StageError, match=r"^plot already runs in this folder"),
        dvc_mlflow.run("plot"),
    ):
        pytest.fail("two run it")
    assert warnings(capsys) == []
    assert client.get_experiment_by_name("mnist") is None
    monkeypatch.setenv("MIRROR", "off")
    with dvc_mlflow.run("plot"), dvc_mlflow.run("prepare"):  # another one is not in the way
        pass


def test_a_stage_that_runs_in_a_folder_below_takes_the_lock_of_the_main_folder(fresh, monkeypatch):
    project, _ = fresh
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    monkeypatch.setenv("MIRROR", "off")
    for below in ("study", "reports/figures"):
        monkeypatch.chdir(project.path / below)
        with dvc_mlflow.run("report"):
            assert Path.cwd() == project.path / below  # the body works where it is
            monkeypatch.chdir(project.path)
            with pytest.raises(StageError, match="already runs"), dvc_mlflow.run("report"):
                pytest.fail("two run it")
    assert (project.path / ".dvc/tmp/stages/study%2Freport.lock").is_file()
    assert not (project.path / "study/.dvc/tmp/stages").exists()
    assert not (project.path / "reports/figures/.dvc").exists()


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
        monkeypatch.setattr(commands, "STARTED", project.path / below)
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
        (["damage", "remove"], "unrecognized arguments: remove; "),
        (["verify", "--key"], "argument --key: expected one argument; `dvc-mlflow verify --help`"),
    ],
)
def test_a_command_that_is_none_is_told(call, arguments, said):
    code, _, told = call(*arguments)
    assert code == 2
    assert told.startswith(f"error: {said}") and told.count("\n") == 1


def test_a_command_that_needs_no_argument_does_without(call, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said = "The tracking server has the UI: http://127.0.0.1:9\n"
    for port in ("", "5000"):  # as make calls it without PORT, and with one
        code, told, error = call("view", port)
        assert (code, told) == (0, said) and error.startswith("warning: MLflow: ")


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
    assert done("damage") == done("mend") == ""
    code, _, told = call("attest")
    assert code == 1 and told.startswith("error: reports/rebuilds is empty: ")


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
