"""A small world for the mirror: a DVC repository whose three stages run in a moment, a real SQLite
store of MLflow, and what has to be true of both: ``assert_whole``.

What is right is read from the dvc.lock files by a YAML parser, and computed from the settings.
"""

import contextlib
import gc
import hashlib
import io
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import psutil
from mlflow import MlflowClient, artifacts
from mlflow.entities import ViewType
from ruamel.yaml import YAML
from sqlalchemy import Engine, event

from conftest import Clone, forget_the_folder, forget_the_history
from dvc_kit.errors import StageError
from dvc_mlflow import sync, writers

STAGES = ("train", "score", "note")
STORE = ("mlflow.db", "mlartifacts")
OUTS = ("tree.bin", "answers.txt", "note.md", "figures")  # those that only DVC keeps
UNLIKE = ("artifact_path", "model_uuid", "utc_time_created")  # in two stores, of one model
FILES = {
    "dvc.yaml": """
stages:
  train:
    desc: Fit a tree
    cmd: sh make.sh train ${rate}
    deps: [make.sh]
    params: [rate, depth]
    outs: [tree.bin]
    metrics: [train.json: {cache: false}]
    plots: [history.csv: {x: epoch, cache: false}]
  score:
    desc: Score it
    cmd: sh make.sh score
    deps: [make.sh, tree.bin]
    outs: [answers.txt]
    metrics: [score.json: {cache: false}]
  note:
    desc: Write about it
    cmd: sh make.sh note
    deps: [make.sh, score.json]
    outs: [note.md, figures]
artifacts:
  tree: {path: tree.bin, type: model}
""",
    "make.sh": """
case $1 in
train)
    printf "weights $2" > tree.bin
    printf '{"loss": %s}' $2 > train.json
    printf 'epoch,loss\\n1,9\\n2,%s\\n' $2 > history.csv ;;
score)
    rate=$(sed 's/weights //' tree.bin)
    printf "0.$rate" > answers.txt
    printf '{"tree": {"accuracy": 0.%s}}' $rate > score.json ;;
note)
    printf '# Scores\\n%s\\n' "$(cat score.json)" > note.md
    mkdir -p figures
    cp note.md figures/a.txt
    printf '<svg/>' > figures/b.svg ;;
esac
""",
    "judges.py": """
from pathlib import Path

def score(evidence):
    return float(evidence.read_text())

def evidence(model):
    return Path("answers.txt")

def judge(evidence, champion, against):
    moves = champion is None or bool(against and score(evidence) > score(against))
    return moves, f"{'' if moves else 'not '}champion: accuracy {score(evidence)}"
""",
    "params.yaml": "rate: 5\ndepth: 1\n",
    "pyproject.toml": """
[tool.dvc-mlflow]
experiment = "world"
registered_model = "world"
hooks = "judges"
""",
    ".gitignore": "\n".join(
        ("/mlflow.db*", "/mlartifacts/", "__pycache__/", *(f"/{path}" for path in OUTS), "")
    ),
}


class World(Clone):
    """A repository in which the stages have run. This process stands in it."""

    client: MlflowClient

    @contextlib.contextmanager
    def entered(self, standing_in: Any, monkeypatch: Any) -> Iterator["World"]:
        monkeypatch.syspath_prepend(self.path)
        with standing_in(self) as self.client:
            yield self

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        return self.run("git", *identity, *arguments).stdout.strip()

    def commit(self, message: str = "a state") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={message}")
        forget_the_folder()
        return self.git("rev-parse", "HEAD")

    def make(self, **settings: int) -> None:
        """Change settings and run what depends on them."""
        from dvc.repo import Repo

        path = self.path / "params.yaml"
        params = YAML(typ="safe").load(path) | settings
        path.write_text("".join(f"{key}: {value}\n" for key, value in params.items()), "utf-8")
        with contextlib.chdir(self.path), contextlib.closing(Repo()) as repo:
            repo.reproduce()
        forget_the_folder()

    def drop_the_model(self) -> None:
        """Declare no model, and register none, from the first commit on."""
        for name, first in (("dvc.yaml", "artifacts:"), ("pyproject.toml", "registered_model")):
            text = (self.path / name).read_text(encoding="utf-8").partition(first)[0]
            (self.path / name).write_text(text, encoding="utf-8")
        self.git("commit", "--quiet", "--amend", "--no-edit", "--all")

    @property
    def has_model(self) -> bool:
        return "artifacts:" in (self.path / "dvc.yaml").read_text(encoding="utf-8")

    def lock(self, rev: str | None = None) -> dict[str, dict[str, Any]]:
        """The entry of each stage in dvc.lock: of this checkout, or of a commit."""
        text = self.git("show", f"{rev}:dvc.lock") if rev else (self.path / "dvc.lock").read_text()
        stages: dict[str, dict[str, Any]] = YAML(typ="safe").load(text)["stages"]
        return stages

    # --- what MLflow has ---

    def runs(self, stage: str = "", view: int = ViewType.ACTIVE_ONLY) -> list[Any]:
        """The finished runs, the newest first."""
        experiments = [its.experiment_id for its in self.client.search_experiments()]
        runs = self.client.search_runs(experiments, "attributes.status = 'FINISHED'", view)
        return [run for run in runs if stage in ("", run.data.tags.get("stage"))]

    def run_of(self, stage: str) -> Any:
        (run,) = self.runs(stage)
        return run

    def models(self) -> list[Any]:
        experiments = [its.experiment_id for its in self.client.search_experiments()]
        return list(self.client.search_logged_models(experiments))

    def versions(self) -> list[Any]:
        return list(self.client.search_model_versions("name = 'world'"))

    def kept(self) -> dict[Path, int]:
        """The artifacts that are not empty, and when each was written."""
        files = [path for path in (self.path / "mlartifacts").rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files if path.stat().st_size}

    def dump(self) -> list[str]:
        """All that the store holds."""
        with contextlib.closing(sqlite3.connect(self.path / "mlflow.db")) as database:
            return [*database.iterdump()]

    # --- what has to be true ---

    def sync_twice(self, **options: Any) -> list[str]:
        """Sync, and again, which writes and says nothing; what the first one says."""
        lines = said_by(lambda: sync.sync(**options))
        assert not [line for line in lines if "problem" in line]
        before = self.dump(), self.kept()
        assert said_by(lambda: sync.sync(**options)) == []
        assert (self.dump(), self.kept()) == before, "the second sync wrote something"
        return lines

    def assert_whole(self, *revs: str | None) -> None:
        """MLflow agrees with the dvc.lock of each of these commits, or of this checkout."""
        runs = self.runs()
        for lock in map(self.lock, revs or (None,)):
            shown = {stage: self._assert_shown(runs, stage, lock[stage]) for stage in lock}
            ids = {run.info.run_id for run in shown.values()}
            parents = [run for run in runs if run.data.tags["stage"] == "pipeline"]
            texts = [run.data.tags["mlflow.note.content"] for run in parents]
            assert sum(all(run_id in text for run_id in ids) for text in texts) == 1
            for run in shown.values():
                above = self.client.get_run(run.data.tags["mlflow.parentRunId"])
                assert above.data.tags["stage"] == "pipeline"
            if self.has_model:
                self._assert_model(lock["train"], shown["train"])
        results = [(run.data.tags["stage"], run.data.tags["result"]) for run in runs]
        assert len({*results}) == len(results), "two runs of one result"
        assert not self.client.search_experiments(filter_string="name LIKE '%-claim'")

    def _assert_shown(self, runs: list[Any], stage: str, entry: dict[str, Any]) -> Any:
        """The one run of a result, with the tags, params, metrics and files that it has to have."""
        params = {k: str(v) for k, v in entry.get("params", {}).get("params.yaml", {}).items()}
        params |= {"model": "tree"} if stage == "train" and self.has_model else {}
        outs = {out["path"]: out["md5"] for out in entry["outs"]}
        [run] = [
            run
            for run in runs
            if run.data.tags["stage"] == stage
            and run.data.params == params
            and outs == {k[4:]: v for k, v in run.data.tags.items() if k.startswith("out:")}
        ]
        folder = place(run.info.artifact_uri)
        for path, md5 in outs.items():
            if path == "figures":
                assert {file.name for file in folder.iterdir()} == {"note.md", "a.txt", "b.svg"}
            elif path != "tree.bin" or not self.has_model:
                assert hashlib.md5((folder / path).read_bytes()).hexdigest() == md5
        return run

    def _assert_model(self, entry: dict[str, Any], run: Any) -> None:
        """The model of a training is logged once, with its bytes, is a version, and has scores."""
        rate = entry["params"]["params.yaml"]["rate"]
        [md5] = [out["md5"] for out in entry["outs"] if out["path"] == "tree.bin"]
        [model] = [its for its in self.models() if its.tags["md5"] == md5]
        assert (place(model.artifact_location) / "tree.bin").read_text() == f"weights {rate}"
        assert {metric.key: metric.value for metric in model.metrics} == {
            "trained_model.accuracy": float(f"0.{rate}")
        }
        assert run.data.metrics["loss"] == rate
        [version] = [its for its in self.versions() if its.tags["md5"] == md5]
        assert version.source == f"models:/{model.model_id}"
        assert version.description.endswith(f"champion: accuracy 0.{rate}")
        assert self.client.get_model_version_by_alias("world", "champion")

    # --- what can happen to a store ---

    def killed_sync(self, commits: int, **options: Any) -> None:
        """Sync in another process, which is killed before its database commits so many times."""
        if child := os.fork():
            os.waitpid(child, 0)
            forget_the_history()
            return
        left = itertools.count(commits - 1, -1)
        for engine in engines():  # its connections are those of this process
            engine.dispose(close=False)
        event.listen(Engine, "commit", lambda _: next(left) or os.kill(os.getpid(), signal.SIGKILL))
        try:
            said_by(lambda: sync.sync(**options))
        finally:
            os._exit(0)

    def keep_the_store(self) -> None:
        for name in STORE:
            self.run("cp", "-a", name, f"../{self.path.name}.{name}")

    def restore_the_store(self) -> None:
        for name in STORE:
            self.run("rm", "-rf", name)
            self.run("cp", "-a", f"../{self.path.name}.{name}", name)
        for engine in engines():
            engine.dispose()

    def lose_file(self, at: int = 0, below: str = "") -> Path:
        """Delete one of the artifacts, or of those with a text in their path."""
        files = sorted(path for path in self.kept() if below in str(path))
        files[at % len(files)].unlink()
        return files[at % len(files)]


def engines() -> list[Engine]:
    """The databases that this process is connected to."""
    return [found for found in gc.get_objects() if isinstance(found, Engine)]


def said_by(command: Callable[[], Any]) -> list[str]:
    """What a command prints, with its error as the last line."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            command()
        except StageError as error:
            print(error)
    return said.getvalue().splitlines()


def content(uri: str, folder: Path) -> dict[str, Any]:
    """All that a store shows of a world, read through MLflow's client. Equal for two stores with
    the same results: names stand for ids, and what tells of time or of a process is left out.

    Args:
        folder: Artifacts are downloaded to it.
    """
    client = MlflowClient(uri)
    experiments = client.search_experiments()
    ids = [experiment.experiment_id for experiment in experiments]
    runs, models = client.search_runs(ids), client.search_logged_models(ids)
    names = {run.info.run_id: f"run of {run.data.tags.get('stage')}" for run in runs}
    names |= {model.model_id: f"model {model.tags.get('md5')}" for model in models}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(its) for key, its in value.items() if key != "process"}
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        for its_id, name in names.items():
            text = text.replace(its_id, name)
        return text

    def read(uri_of_artifacts: str, to: str) -> dict[str, Any]:
        (folder / to).mkdir(parents=True)
        local = Path(artifacts.download_artifacts(uri_of_artifacts, None, None, folder / to, uri))
        files = [path for path in local.rglob("*") if path.is_file()]
        found = {path.relative_to(local).as_posix(): path.read_bytes() for path in files}
        if described := found.pop("MLmodel", None):
            loaded = YAML(typ="safe").load(described)
            found |= {key: its for key, its in loaded.items() if key not in UNLIKE}
        return found

    def steps(run: Any) -> dict[str, list[tuple[int, float]]]:
        points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {key: sorted((it.step, it.value) for it in its) for key, its in points.items()}

    def rows(*parts: Any) -> list[Any]:
        return sorted(([named(part) for part in its] for its in parts), key=repr)

    versions = client.search_model_versions("name = 'world'")
    registered = [*client.search_registered_models()]
    return {
        "experiments": sorted(its.name for its in experiments),
        "runs": rows(
            *(
                (run.info.status, run.data.tags, run.data.params, steps(run),
                 read(run.info.artifact_uri, run.info.run_id))
                for run in runs
            )
        ),
        "models": rows(
            *(
                (model.status, model.tags, {it.key: it.value for it in model.metrics or ()},
                 read(model.artifact_location, model.model_id))
                for model in models
            )
        ),
        "versions": rows(*((it.version, it.tags, it.source, it.description) for it in versions)),
        "registered": rows(*((it.name, it.tags, it.aliases, it.description) for it in registered)),
    }  # fmt: skip


def place(uri: str) -> Path:
    return Path(urlparse(uri).path)


def dead_process() -> str:
    """A process of this machine that has ended, as the tag of a run names it."""
    process = subprocess.Popen(["sleep", "60"])
    started = psutil.Process(process.pid).create_time()
    process.kill()
    process.wait()
    return f"{writers.machine()} {process.pid} {started:.0f}"


def make_template(folder: Path) -> World:
    """The repository of which worlds are copies: one committed state, nothing logged."""
    from dvc.repo import Repo

    world = World(folder)
    world.run("git", "init", "--quiet", "--initial-branch=main")
    for name, text in FILES.items():
        (folder / name).write_text(text.lstrip(), encoding="utf-8")
    Repo.init(str(folder)).close()
    world.make()
    world.commit("rate 5")
    return world


def copy_of(template: World, folder: Path) -> World:
    shutil.copytree(template.path, folder, symlinks=True)
    return World(folder)
