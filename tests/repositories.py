"""Repositories of other people: some files, real git and DVC, and our three houses beside them."""

import shutil
from pathlib import Path

from conftest import ROOT, Clone

COMMAND = ("python", "-m", "dvc_mlflow")
GUARD = ("python", "-m", "dvc_guard")


class Here(Clone):
    """A repository whose own copies of dvc_mlflow and dvc_guard are imported."""

    def start(self, *command: str, env: dict[str, str] | None = None):
        # Without bytecode, which its git would show
        own = {"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}
        return super().start(*command, env=own | (env or {}))


def lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def make_repository(folder: Path, files: dict[str, str], *, git: bool = True) -> Clone:
    """A DVC repository with some files, and copies of dvc_mlflow and dvc_guard."""
    repository = Here(folder)
    lay(folder, files)
    for house in ("dvc_kit", "dvc_mlflow", "dvc_guard"):
        ignored = shutil.ignore_patterns("__pycache__", "*.md", "linked")
        shutil.copytree(ROOT / house, folder / house, ignore=ignored)
    if git:
        repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.run("dvc", "init", "--quiet", *([] if git else ["--no-scm"]))
    return repository
