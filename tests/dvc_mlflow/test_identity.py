"""A result is its stage, command, settings, deps and outs: each has its own run in a real store."""

import mlflow
import pytest
from tiny import PIPELINE, make_project

from conftest import forget_the_folder
from dvc_mlflow import find, status, store, sync, writers


@pytest.fixture
def fresh(standing_in, tmp_path):
    """This process stands in a project with one commit, of which nothing is logged."""
    project = make_project(tmp_path / "project")
    project.git("rm", "-r", "--quiet", "study")
    project.git("commit", "--amend", "--quiet", "--no-edit")  # as if it had never been there
    with standing_in(project) as client:
        yield project, client


def said(capsys, call, *arguments, **options) -> list[str]:
    capsys.readouterr()
    call(*arguments, **options)
    return capsys.readouterr().out.splitlines()


def shown(capsys, rev: str) -> dict[str, str]:
    """The id of the run of each stage of a commit."""
    lines = (line.split() for line in said(capsys, find.find, rev))
    pages = {words[0]: words[1] for words in lines if len(words) == 2 and "/runs/" in words[1]}
    return {stage: page.split("/runs/")[1][:32] for stage, page in pages.items()}


PARENT = "mlflow.parentRunId"
WITH_SEED = ["prepare", "train_lenet5", "train_mlp", "evaluate"]


def test_commits_that_differ_in_a_setting_without_effect_have_a_run_for_each(fresh, capsys):
    project, client = fresh
    first = project.git("rev-parse", "HEAD")
    sync.sync()
    project.edit("params.yaml", "seed: 0", "seed: 1")
    project.lock()  # all outs are the same
    second = project.commit("another seed")
    assert said(capsys, sync.sync, dry=True) == [f"would log the run of {s}" for s in WITH_SEED]
    assert said(capsys, sync.sync) == [f"logged the run of {s} from its results" for s in WITH_SEED]
    assert said(capsys, sync.sync, all=True) == said(capsys, sync.sync) == []
    assert said(capsys, status.status) == ["5 of 5 results have their run"]
    by_commit = {rev: shown(capsys, rev) for rev in (first, second)}
    for seed, (rev, of_stage) in enumerate(by_commit.items()):
        assert [*of_stage] == [*PIPELINE]
        assert client.get_run(of_stage["train_mlp"]).data.params["seed"] == str(seed)
        parent = client.get_run(client.get_run(of_stage["train_mlp"]).data.tags[PARENT])
        assert parent.data.params["seed"] == str(seed)
        for run_id in (of_stage["train_mlp"], parent.info.run_id):
            commits = [line for line in said(capsys, find.find, run_id) if "  commit " in line]
            assert [line.split()[1] for line in commits] == [rev[:7]]
    assert by_commit[first]["plot"] == by_commit[second]["plot"]  # which has no seed


def test_the_outermost_run_of_a_stage_gets_its_results_and_others_stay_below_it(
    fresh, capsys, monkeypatch
):
    project, client = fresh
    monkeypatch.setenv("DVC_STAGE", "plot")
    monkeypatch.setenv("DVC_ROOT", str(project.path))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    mlflow.set_tracking_uri(store.uri())
    began: list[list[str]] = []
    for _ in range(2):
        began.append([])
        with mlflow.start_run() as study:
            began[-1].append(study.info.run_id)
            for _ in range(2):
                with mlflow.start_run(nested=True) as trial, mlflow.start_run(nested=True) as part:
                    began[-1] += [trial.info.run_id, part.info.run_id]
    killed = mlflow.start_run()
    assert client.get_run(killed.info.run_id).data.tags["process"] == writers.this_process()
    mlflow.end_run("KILLED")
    monkeypatch.delenv("DVC_STAGE")
    forget_the_folder()
    below = {run: client.get_run(run).data.tags.get(PARENT) for of in began for run in of}
    lines = said(capsys, sync.sync)
    assert "completed the run of plot" in lines
    assert said(capsys, sync.sync) == []
    last = began[-1][0]
    assert shown(capsys, "HEAD")["plot"] == last
    after = {run: client.get_run(run).data.tags for run in below}
    assert after.pop(last)[PARENT] not in below
    assert {run: tags.get(PARENT) for run, tags in after.items()} == {
        run: parent for run, parent in below.items() if run != last
    }
    assert not [run for run, tags in after.items() if "result" in tags]
