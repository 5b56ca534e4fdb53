"""Servers that most tests do without: artifacts in S3, users, a prefix, and one that dies. After a
sync, each shows what a store in a file shows."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from world import content, copy_of

from conftest import BUSY, Clone, free_port, missing, mlflow_server

pytestmark = [pytest.mark.weekly, pytest.mark.slow]

FIND = ("python", "-m", "dvc_mlflow", "find", "HEAD")
SYNC = ("python", "-m", "dvc_mlflow", "sync")
OUTS = ("tree.bin", "answers.txt", "score.json", "history.csv", "figures/a.txt", "figures/b.svg")


@pytest.fixture(scope="module")
def expected(logged_world, tmp_path_factory) -> dict[str, Any]:
    """What an undisturbed sync writes to a file, which has the bytes of the outs."""
    logged_world.assert_whole()
    shown = content(f"sqlite:///{logged_world.path}/mlflow.db", tmp_path_factory.mktemp("expected"))
    files = [row[-1] for row in shown["runs"] + shown["models"]]
    for out in map(Path, OUTS):
        text = (logged_world.path / out).read_text()
        assert text in [its[out.name] for its in files if out.name in its]
    return shown


class Served:
    """A world whose store is a server. This process does not stand in it."""

    def __init__(self, clone: Clone, expected: dict[str, Any]) -> None:
        self.clone, self.expected = clone, expected
        self.folder = clone.path.parent / "server"
        self.folder.mkdir()
        self.env: dict[str, str] = {}  # of the syncs

    def serving(self, *options: str, **more: Any):
        return mlflow_server(f"sqlite:///{self.folder}/server.db", self.folder, *options, **more)

    def start(self, uri: str, **more: str) -> subprocess.Popen[str]:
        return self.clone.start(*SYNC, env={"MLFLOW_TRACKING_URI": uri, **BUSY, **self.env, **more})

    def sync(self, uri: str, **more: str) -> tuple[int, str, str]:
        """The exit status, and what it says on both streams."""
        process = self.start(uri, **more)
        said, errors = process.communicate()
        assert "Traceback" not in errors
        assert errors.count("error: ") == process.returncode
        return process.returncode, said, errors

    def rows(self, table: str) -> int:
        with contextlib.closing(sqlite3.connect(self.folder / "server.db")) as database:
            return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def kept(self) -> tuple[list[str], dict[str, int]]:
        """All that the server has on this machine, and when each of its files was written."""
        with contextlib.closing(sqlite3.connect(self.folder / "server.db")) as database:
            rows = [*database.iterdump()]
        paths = (self.folder / "artifacts").rglob("*")
        return rows, {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}

    def assert_mirrored(self, uri: str) -> None:
        """The store shows what it should, and one more sync writes and says nothing."""
        before = self.kept()
        assert self.sync(uri) == (0, "", "")
        assert self.kept() == before, "the second sync wrote something"
        assert content(uri, self.folder / "read") == self.expected


@pytest.fixture
def served(world_template, expected, tmp_path) -> Served:
    return Served(copy_of(world_template, tmp_path / "world"), expected)


@pytest.mark.parametrize("direct", [False, True], ids=["by the server", "by the client"])
def test_artifacts_in_s3_are_read_back_as_they_are(served, s3, direct):
    named, bucket = s3
    place = f"s3://{bucket.name}/kept"
    options = ["--artifacts-destination", place]
    if direct:
        options = ["--no-serve-artifacts", "--default-artifact-root", place]
    served.env = named if direct else dict.fromkeys(named, "")  # which the server alone knows
    with served.serving(*options, env=named) as (uri, _):
        assert served.sync(uri)[0] == 0
        written = [(found.key, found.last_modified) for found in bucket.objects.all()]
        served.assert_mirrored(uri)
        assert written == [(found.key, found.last_modified) for found in bucket.objects.all()]
    assert written and not served.kept()[1]


@pytest.mark.parametrize("prefix", ["", "/ml"])
def test_a_server_that_keeps_the_artifacts_may_have_a_prefix(served, prefix):
    with served.serving(prefix=prefix) as (uri, _):
        assert served.sync(uri)[0] == 0
        assert served.kept()[1]
        served.assert_mirrored(uri)


def test_a_server_with_users_takes_only_the_right_password(served, monkeypatch):
    try:
        import flask_wtf  # noqa: F401
    except ImportError:
        missing("Flask-WTF is not installed: pip install -c constraints.txt -e '.[auth]'")
    right, wrong = "a long password", "another"
    own = {"MLFLOW_AUTH_ADMIN_PASSWORD": right, "MLFLOW_FLASK_SERVER_SECRET_KEY": "any"}
    with served.serving("--app-name", "basic-auth", env=own) as (uri, _):
        before = served.kept()
        user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": wrong}
        line = f"error: MLflow: {uri} does not let this user in: MLFLOW_TRACKING_USERNAME and "
        for address, more in ((uri, {}), (uri, user), (uri.replace("//", f"//a:{wrong}@"), {})):
            code, said, errors = served.sync(address, **more)
            assert (code, said, errors.count("\n"), errors.startswith(line)) == (1, "", 1, True)
        assert served.kept() == before
        served.env = {**user, "MLFLOW_TRACKING_PASSWORD": right}
        for variable, value in served.env.items():
            monkeypatch.setenv(variable, value)
        assert served.sync(uri)[0] == 0
        served.assert_mirrored(uri)


def test_each_workspace_of_a_server_has_the_runs_that_are_synced_to_it(served, monkeypatch):
    with served.serving("--enable-workspaces") as (uri, _):
        mlflow.set_tracking_uri(uri)
        mlflow.create_workspace("a-team")
        served.env = {"MLFLOW_WORKSPACE": "a-team"}
        assert served.sync(uri)[0] == 0
        assert content(uri, served.folder / "default")["runs"] == []
        found = served.clone.run(*FIND, env={"MLFLOW_TRACKING_URI": uri, **served.env}).stdout
        addresses = [line for line in found.splitlines() if uri in line]
        assert addresses and all("&workspace=a-team" in line for line in addresses)
        monkeypatch.setenv("MLFLOW_WORKSPACE", "a-team")
        shown = repr(content(uri, served.folder / "a-team")["runs"])
        assert shown.count("&workspace=a-team") >= 1  # the links in a run's description
        assert shown.replace("&workspace=a-team", "") == repr(served.expected["runs"])
        before = served.kept()
        assert served.sync(uri) == (0, "", "")
        assert served.kept() == before


# What the database has when the server dies: within a run, a model, and the run of the pipeline
@pytest.mark.parametrize(
    ("table", "rows", "retries"),
    [("runs", 1, "0"), ("logged_models", 1, "0"), ("runs", 4, "0"), ("runs", 2, "7")],
)
def test_a_server_that_is_killed_and_comes_back_costs_a_line(served, table, rows, retries):
    port = free_port()
    with served.serving(port=port) as (uri, server):
        process = served.start(uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES=retries)
        while served.rows(table) < rows:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        assert process.poll() is None, "the sync was over before"
    with served.serving(port=port) as (uri, _):
        said, errors = process.communicate()
        print(process.returncode, said, errors, sep="\n")
        assert process.returncode in (0, 1) and "Traceback" not in errors
        assert errors.count("error: ") == errors.count("\n") == process.returncode
        assert served.sync(uri)[0] == 0
        served.assert_mirrored(uri)


def test_results_that_change_while_they_are_synced_are_whole_in_the_end(world):
    first = world.git("rev-parse", "HEAD")
    world.edit("make.sh", "case $1 in", "sleep 2\ncase $1 in")
    world.edit("params.yaml", "rate: 5", "rate: 6")
    repro = world.start("dvc", "repro")
    while repro.poll() is None:
        result = world.run(*SYNC, check=False)
        print(result.returncode, result.stdout, result.stderr, sep="\n")
        assert result.returncode in (0, 1) and "Traceback" not in result.stderr
        assert result.stderr.count("error: ") == result.returncode
    assert repro.returncode == 0, repro.communicate()
    world.commit("rate 6")
    world.sync_twice()
    world.assert_whole()
    world.sync_twice(all=True)
    world.assert_whole(None, first)
