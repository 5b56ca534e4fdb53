"""A project that is made in a moment: small files in the places of the pipeline's results, and the
dvc.lock that DVC writes for them. What tests expect, :func:`md5_of`, comes from hashlib."""

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

from conftest import ROOT, Clone, forget_the_history
from stages.base import files, params, splits
from stages.base.params import MODEL_NAMES
from stages.networks import models

IGNORED = "/data/\n/models/\n/mlflow.db*\n/mlartifacts/\n.dvc/cache/\n.dvc/tmp/\n"
CELLS = ("fast-mlp-0", "fast-mlp-1")


@dataclass
class Stage:
    desc: str
    deps: list[str]
    settings: list[str]  # keys of params.yaml
    recipes: list[str] = field(default_factory=list)  # keys of recipes.yaml
    cached: list[str] = field(default_factory=list)  # outs that only DVC keeps
    small: list[str] = field(default_factory=list)  # outs that git keeps


def training(name: str) -> Stage:
    return Stage(
        f"Train {name}",
        ["code.py", "data/prepared"],
        ["seed", "recipe"],
        [f"${{recipe}}.{name}"],
        [f"models/{name}.safetensors"],
        [f"reports/train_{name}.json", f"reports/history_{name}.csv"],
    )


PIPELINE = {
    "prepare": Stage("Split the images", ["code.py"], ["seed", "data"], [], ["data/prepared"]),
    "train_lenet5": training("lenet5"),
    "train_mlp": training("mlp"),
    "evaluate": Stage(
        "Score both models",
        ["data/prepared", "models/lenet5.safetensors", "models/mlp.safetensors"],
        ["seed", "recipe", "registry"],
        ["${recipe}"],
        ["reports/predictions_lenet5.csv", "reports/predictions_mlp.csv"],
        ["reports/metrics.json", "reports/comparison.csv"],
    ),
    "plot": Stage(
        "Draw the curves",
        ["reports/history_lenet5.csv", "reports/history_mlp.csv", "reports/metrics.json"],
        ["recipe"],
        small=["reports/comparison.md", "reports/figures"],
    ),
}


def md5_of(path: Path) -> str:
    """What DVC has for a file or folder."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    return hashlib.md5(listing(path)).hexdigest() + ".dir"


def listing(folder: Path) -> bytes:
    """What DVC's cache keeps for a folder."""
    entries = [
        {"md5": md5_of(file), "relpath": file.relative_to(folder).as_posix()}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    return json.dumps(entries).encode()


def kind_of(path: str) -> str:
    """What an out that git keeps is for DVC."""
    return {".json": "metrics", ".csv": "plots"}.get(Path(path).suffix, "outs")


def declared(stage: Stage, command: str) -> dict[str, Any]:
    kinds: dict[str, list[Any]] = {"outs": [*stage.cached], "metrics": [], "plots": []}
    for path in stage.small:
        told: dict[str, Any] = {"cache": False}
        if kind_of(path) == "plots":
            is_curve = "history" in path
            told |= {"x": "epoch", "template": "linear"} if is_curve else {"x": "accuracy"}
            told |= {} if is_curve else {"template": "intervals"}
        kinds[kind_of(path)].append({path: told})
    described = {"desc": stage.desc, "cmd": command, "deps": stage.deps}
    settings = [*stage.settings, *([{"recipes.yaml": stage.recipes}] if stage.recipes else [])]
    return described | {"params": settings} | kinds


class Project(Clone):
    """A git repository with a pipeline and a study whose results lie there."""

    def write(self, path: str, text: str) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(text, encoding="utf-8")

    def commit(self, message: str) -> str:
        """All that git keeps; the hash."""
        super().commit(message)
        forget_the_history()  # a process that finds something runs beside no commit
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        return self.run("git", *identity, *arguments).stdout.strip()

    def md5(self, path: str) -> str:
        return md5_of(self.path / path)

    def outs(self, stage: str) -> dict[str, str]:
        return {path: self.md5(path) for path in PIPELINE[stage].cached + PIPELINE[stage].small}

    def lock(self, *only: str, folder: str = "", cached: bool = False) -> None:
        """Let DVC write dvc.lock, as when these stages have run, all without a name; here as JSON.

        They are locked by name, not in the order in which they run.
        """
        from dvc.repo import Repo

        lock = self.path / folder / "dvc.lock"
        lock.unlink(missing_ok=True)
        with contextlib.closing(Repo(str(self.path / folder))) as repo, repo.lock:
            for stage in sorted(repo.index.stages, key=lambda stage: stage.name):
                if stage.name in (only or (stage.name,)):
                    stage.save(run_cache=False)
                    stage.dump(update_pipeline=False)
                    if cached:
                        stage.commit()
        lock.write_text(json.dumps(YAML(typ="safe").load(lock)), encoding="utf-8")

    def predict(self, name: str, right: int) -> None:
        """Predictions of which the first so many of 1,000 are right."""
        rows = [f"{at},{at % 10},{(at + (at >= right)) % 10},0.9" for at in range(1000)]
        text = "\n".join(["index,actual,predicted,confidence", *rows])
        self.write(f"reports/predictions_{name}.csv", f"{text}\n")


def make_code(folder: Path) -> Project:
    """A repository with the declarations and settings, of which nothing has been run."""
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    for name in ("params.yaml", "recipes.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    project.edit("params.yaml", "min_accuracy: 0.98", "min_accuracy: 0.9")
    project.write(".gitignore", IGNORED)
    project.write(".dvc/config", "")
    project.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    project.write("code.py", "print()\n")
    stages = {name: declared(stage, f"python -m {name}") for name, stage in PIPELINE.items()}
    artifacts = {
        name: {"path": f"models/{name}.safetensors", "type": "model"} for name in MODEL_NAMES
    }
    project.write("dvc.yaml", json.dumps({"stages": stages, "artifacts": artifacts}))
    project.write("study/.dvc/config", "[cache]\n    dir = ../../.dvc/cache\n")
    project.write("study/.dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    project.write("study/params.yaml", "seeds: [0, 1]\n")
    cell = {
        "desc": "Train a cell",
        "matrix": {"recipe": ["fast"], "model": ["mlp"], "seed": "${seeds}"},
        "cmd": "cd .. && cell ${item.recipe}-${item.model}-${item.seed}",
        "deps": ["../data/prepared"],
        "params": [{"../recipes.yaml": ["${item.recipe}.${item.model}"]}],
        "metrics": [
            {"cells/${item.recipe}-${item.model}-${item.seed}.json": {"cache": False}},
        ],
    }
    report = {
        "desc": "Say what all cells say",
        "cmd": "cd .. && report",
        "deps": ["../data/prepared", "cells"],
        "params": ["seeds"],
        "outs": [{"report": {"cache": False}}],
    }
    project.write("study/dvc.yaml", json.dumps({"stages": {"cell": cell, "report": report}}))
    return project


def make_results(project: Project, seed: int = 0) -> None:
    """Results of every stage in the folder of a project, and both locks."""
    generator = np.random.default_rng(seed)
    prepared = project.path / files.DATA_PREPARED
    for name, size in {"train": 7, "validation": 3, "test": 5}.items():
        images = generator.integers(0, 256, (size, 28, 28)).astype(np.uint8)
        labels = generator.integers(0, 10, size).astype(np.uint8)
        splits.save_split(prepared, name, splits.Split(images, labels))
    sheet = generator.integers(0, 256, (56, 28)).astype(np.uint8)
    Image.fromarray(sheet).save(prepared / "contact_sheet.png")
    project.write("data/prepared/counts.csv", "split,0,1,images\ntrain,4,3,7\ntest,2,3,5\n")
    read = YAML(typ="safe").load
    recipes = read(project.path / "recipes.yaml")[read(project.path / "params.yaml")["recipe"]]
    metrics = {}
    for at, name in enumerate(MODEL_NAMES):
        recipe = params.Recipe.model_construct(**recipes[name])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models.save_model(models.build(name, recipe), project.path / files.model_path(name))
        rows = f"epoch,test_accuracy,test_loss\n1,0.1,{2 + at}\n2,0.{3 + at},{1 + at}\n"
        project.write(f"reports/history_{name}.csv", rows)
        project.write(f"reports/train_{name}.json", json.dumps({name: {"train_loss": 2 + seed}}))
        project.predict(name, 950 - 10 * at)
        metrics[name] = {"accuracy": 0.95 - 0.01 * at, "loss": 0.5 + at + seed}
    project.write("reports/metrics.json", json.dumps(metrics))
    project.write("reports/comparison.csv", f"model,accuracy\nlenet5,0.95\nmlp,0.9{seed}\n")
    project.write("reports/comparison.md", f"# Comparison {seed}\n")
    for name in ("curves", "confusion"):
        project.write(f"reports/figures/{name}.png", f"drawn from {name} {seed}")
    for at, cell in enumerate(CELLS):
        history = {"epoch": [1, 2], "test_loss": [2.0, 1.0 + at]}
        content = {"history": history, "scores": {"test_accuracy": [0.6 + at / 10]}}
        project.write(f"study/cells/{cell}.json", json.dumps(content))
    project.write("study/report/metrics.json", json.dumps({"fast": {"mlp": 0.65}}))
    project.write("study/report/study.md", "# The study\n")
    project.lock()
    project.lock(folder="study")


def make_project(folder: Path, seed: int = 0) -> Project:
    """A project whose results are there, cached and committed."""
    project = make_code(folder)
    make_results(project, seed)
    project.lock(cached=True)
    project.commit(f"results {seed}")
    return project
