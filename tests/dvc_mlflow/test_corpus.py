"""Everything that MLflow holds of each repository in tests/corpus, after one `sync`.

A file of the corpus is a repository: its files, the commands that make its results, and all that
MLflow must then hold. What every run has in common is written down here once, in `usual`.
`WRITE_CORPUS=1 pytest tests/dvc_mlflow/test_corpus.py` writes the last part of each file anew: look
at the difference. Ids, times, and names of this machine are left out.
"""

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.cli import main as dvc
from repositories import lay
from ruamel.yaml import YAML

from conftest import ROOT, Clone, environment, forget_the_folder
from dvc_guard import damage
from dvc_kit.errors import InputError, StageError
from dvc_mlflow import find, git, projects, results, status, sync
from dvc_mlflow.git import GitError

CORPUS = sorted((ROOT / "tests/corpus").glob("*.yaml"))
IGNORED = "/mlflow.db*\n/mlartifacts/\n__pycache__/\n"
OF_THE_MACHINE = {"mlflow.user", "process", "mlflow.source.git.commit", "stage"}
VIEW = "mlflow.sharedViewState."
PAGE = re.compile(r"\(#/experiments/\d+/runs/(\w+(?:/[\w-]+)?)\?workflowType=machine_learning\)")


def usual(stage: str) -> dict[str, Any]:
    """The tags and the state of a run in which nothing is special."""
    name = stage.rpartition(":")[2]
    return {
        **{"status": "FINISHED", "project": ".", "commit": "COMMIT", "dirty": "false"},
        **{"mlflow.runName": name, "mlflow.source.name": f"dvc repro {stage}"},
        **{"mlflow.source.type": "PROJECT", "mlflow.parentRunId": "pipeline", "missing": "[]"},
        **{"backfilled": "true", "mlflow.note.content": ""},
    }


def files_of(client: Any, run_id: str, folder: str | None = None) -> dict[str, int]:
    """The size of each file of a run."""
    sizes: dict[str, int] = {}
    for file in client.list_artifacts(run_id, folder):
        sizes |= files_of(client, run_id, file.path) if file.is_dir else {file.path: file.file_size}
    return sizes


def curve_of(client: Any, run: Any, key: str) -> Any:
    """A single number, or all points, or how many there are with the first and the last one."""
    points = [[one.step, one.value] for one in client.get_metric_history(run.info.run_id, key)]
    if len(points) > 9:
        return [len(points), points[0], points[-1]]
    return points if points[1:] or points[0][0] else points[0][1]


def run_of(client: Any, run: Any, names: dict[str, str]) -> dict[str, Any]:
    """What differs in a run from the usual one. A tag that is not there is None."""
    files = files_of(client, run.info.run_id)
    tags = {key: plain(value, names) for key, value in run.data.tags.items()}
    tags["status"] = run.info.status
    common = usual(tags["stage"]) | {"artifacts": json.dumps(files)}
    if json.loads(tags.get("artifacts", "0")) == files:
        tags["artifacts"] = common["artifacts"]
    parts = {
        "tags": {
            key: tags.get(key)
            for key in sorted({*tags, *common} - OF_THE_MACHINE)
            if tags.get(key) != common.get(key)
        },
        "params": run.data.params,
        "metrics": {key: curve_of(client, run, key) for key in run.data.metrics},
        "inputs": {
            entry.dataset.name: [entry.dataset.digest, *(tag.value for tag in entry.tags)]
            for entry in run.inputs.dataset_inputs
        },
        "files": files,
    }
    return {name: part for name, part in parts.items() if part}


def model_of(model: Any, names: dict[str, str]) -> dict[str, Any]:
    return {
        **{"status": str(model.status), "run": names[model.source_run_id]},
        **{"metrics": {one.key: one.value for one in model.metrics or []}, "params": model.params},
        "tags": {k: plain(v, names) for k, v in model.tags.items() if k not in OF_THE_MACHINE},
    }


def held(client: Any, names: dict[str, str]) -> dict[str, Any]:
    """Everything that a store holds, by experiment and stage."""
    everything: dict[str, Any] = {}
    for experiment in client.search_experiments(order_by=["name"]):
        ids = [experiment.experiment_id]
        runs = client.search_runs(ids, order_by=["attributes.start_time", "tags.stage"])
        models = client.search_logged_models(ids)
        names = names | {run.info.run_id: run.data.tags["stage"] for run in runs}
        by_stage = {run.data.tags["stage"]: run_of(client, run, names) for run in runs}
        assert len(by_stage) == len(runs)
        parts = {
            "description": description_of(experiment),
            "views": {
                key.removeprefix(VIEW): json.loads(value).get("selectedColumns")
                for key, value in experiment.tags.items()
                if key.startswith(VIEW)
            },
            "models": {model.name: model_of(model, names) for model in models},
            "runs": by_stage,
        }
        everything[experiment.name] = {key: part for key, part in parts.items() if part}
    for registered in client.search_registered_models():
        versions = client.search_model_versions(f"name = '{registered.name}'")
        everything[f"registered model {registered.name}"] = {
            "aliases": {alias: str(version) for alias, version in registered.aliases.items()},
            "versions": {str(one.version): one.description for one in versions},
        }
    return {name: part for name, part in everything.items() if part}


def description_of(experiment: Any) -> str | None:
    """The description without its links to the runs and charts, which ours begin with."""
    text: str | None = experiment.tags.get("mlflow.note.content")
    if not text:
        return None
    page = f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey="
    side, charts = "workflowType=machine_learning", "compareRunsMode=CHART"
    links = [f"[Open the runs]({page}stages&{side})."]
    if "mlflow.sharedViewState.charts" in experiment.tags:
        links.append(f"[Open the charts]({page}charts&{charts}&{side}).")
    begin = " ".join([*links, ""])
    assert text.startswith(begin)
    return text.removeprefix(begin)


def plain(text: str, names: dict[str, str]) -> str:
    """A text without what differs between machines and times."""
    text = PAGE.sub(r"(\1)", text)
    for value, name in names.items():
        text = text.replace(value, name)
    return text


def make(folder: Path, told: dict[str, Any]) -> None:
    """Make a repository, and its results."""
    lay(folder, {".gitignore": IGNORED, **told["files"]})
    made = Clone(folder)
    first = ["git init --quiet --initial-branch=main", "dvc init --quiet"]
    steps = [*told.get("start", first), *told.get("steps", ["dvc repro --quiet"])]
    for step in steps:
        if step.startswith("dvc "):
            with contextlib.chdir(folder):  # `dvc --cd` stays there
                assert dvc(shlex.split(step)[1:]) == 0, step
        else:
            made.run("sh", "-ec", step)
    lay(folder, told.get("later", {}))
    if (folder / ".git").exists():
        made.commit("the results")


def in_words(call: Any, *arguments: Any) -> list[str]:
    """What a command says, with the line of its error."""
    forget_the_folder()
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        try:
            call(*arguments)
        except StageError as error:
            print(f"error: {error}")
    return said.getvalue().splitlines()


def cases() -> Iterator[Any]:
    for path in CORPUS:
        told = YAML(typ="safe").load(path)
        yield pytest.param(
            path, told, marks=[pytest.mark.slow] * bool(told.get("slow")), id=path.stem
        )


@pytest.mark.parametrize(("path", "told"), cases())
def test_mlflow_holds_what_the_corpus_says(path, told, standing_in, tmp_path, monkeypatch):
    folder = tmp_path / path.stem
    folder.mkdir()
    monkeypatch.setenv("PATH", environment()["PATH"])
    monkeypatch.setenv("MIRROR", "on")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.syspath_prepend(folder)
    with standing_in(Clone(folder)) as client:
        make(folder, told)
        in_git = (folder / ".git").exists()
        commit = git.commit_of("HEAD") if in_git else "none"
        names = {str(folder): "ROOT", commit: "COMMIT", commit[:7]: "COMMIT"}
        with contextlib.suppress(InputError, GitError):
            names[git.commit_of("HEAD~1")] = "BEFORE"
        said = [plain(line, names) for line in in_words(sync.sync)]
        found = {"said": said, "mlflow": held(client, names)}
        if os.environ.get("WRITE_CORPUS"):
            write(path, found)
        else:
            assert text_of(found) == text_of(told["expected"])
        if not [line for line in said if line.startswith("error: ")]:
            assert in_words(sync.sync) == []
            assert text_of(held(client, names)) == text_of(found["mlflow"])
            assert_linked(client, commit if in_git else None)


def text_of(tree: Any) -> str:
    return json.dumps(tree, indent=1, sort_keys=True)


def assert_linked(client: Any, commit: str | None) -> None:
    """Each result has its run, which leads back to the commit; all ways to read it agree."""
    declared = projects.find()
    for folder, project in results.all_projects().items():
        locked = project.locked()
        assert {name: project.here(name) for name in locked} == locked
        outs = {(name, path): md5 for name, its in locked.items() for path, md5 in its.outs.items()}
        assert damage.locked(project=folder).items() <= outs.items()
        assert damage.in_folder(damage.locked(project=folder), folder) == []
        for name in locked:
            assert results.project_of(name)[1] == name
    assert [line.rpartition(": ")[2] for line in in_words(status.status)] == [
        f"{len(project.locked())} of {len(project.locked())} results have their run"
        for project in results.all_projects().values()
    ]
    if commit:
        assert projects.find(commit=commit) == declared
        pages = "\n".join(in_words(find.find, commit))
        for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
            is_stage = run.data.tags["stage"] != "pipeline"
            assert (run.info.run_id in pages) == is_stage
            assert f"  commit {commit[:7]}" in "\n".join(in_words(find.find, run.info.run_id))


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the last part of a file of the corpus."""
    yaml, stream = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = False, 10_000
    yaml.representer.add_representer(list, represented)
    yaml.dump({"expected": json.loads(text_of(found))}, stream)
    head = path.read_text("utf-8").partition("\nexpected:\n")[0].rstrip("\n")
    path.write_text(f"{head}\n\n{stream.getvalue()}", "utf-8")


def represented(representer: Any, items: list[Any]) -> Any:
    """A list of numbers in one line."""
    is_short = not any(isinstance(item, str) and " " in item for item in items)
    return representer.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_short)
