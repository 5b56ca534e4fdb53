"""What sync writes to a real store, and what it says. See also test_world.py."""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from world import STAGES, World, dead_process, place, said_by

from conftest import forget_the_folder
from dvc_mlflow import sync, writers
from dvc_mlflow.status import status


def logged(*stages: str) -> list[str]:
    return [f"logged the run of {stage} from its results" for stage in stages]


def completed(stage: str, *lost: str) -> str:
    names = f", which had lost {', '.join(lost)}" if lost else ""
    return f"completed the run of {stage}{names}"


# --- what it writes ---


# --- what a store loses ---


def delete_run(world: World, stage: str) -> None:
    world.client.delete_run(world.run_of(stage).info.run_id)


def file_of(world: World, stage: str, name: str) -> Path:
    return place(world.run_of(stage).info.artifact_uri) / name


def model_file(world: World) -> Path:
    return place(world.models()[0].artifact_location) / "tree.bin"


RESTORED = "restored the alias champion: it is version N of world again"
LOSSES = {
    "a file": (
        lambda w: file_of(w, "note", "a.txt").unlink(),
        [completed("note", "a.txt")],
    ),
    "the end of a file": (
        lambda w: file_of(w, "score", "score.json").write_text("{"),
        [completed("score", "score.json")],
    ),
    "a file of a model": (lambda w: model_file(w).unlink(), [completed("train")]),
    "a model": (
        lambda w: w.client.delete_logged_model(w.models()[0].model_id),
        [completed("train"), RESTORED],
    ),
    "a run": (
        lambda w: delete_run(w, "note"),
        ["restored the deleted run of note", completed("note")],
    ),
    "the pipeline's run": (
        lambda w: delete_run(w, "pipeline"),
        ["restored the deleted run of the pipeline"],
    ),
    "a file of the pipeline's": (lambda w: file_of(w, "pipeline", "note.md").unlink(), []),
    "the alias": (
        lambda w: w.client.delete_registered_model_alias("world", "champion"),
        [RESTORED],
    ),
    "a stage's place": (
        lambda w: w.client.delete_tag(w.run_of("note").info.run_id, "mlflow.parentRunId"),
        [],
    ),
    "the champion's version": (
        lambda w: w.client.delete_model_version("world", w.versions()[0].version),
        [RESTORED],
    ),
    "the versions": (lambda w: w.client.delete_registered_model("world"), []),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_what_a_store_loses_is_written_again_and_nothing_besides(logged_world, lost):
    lose, expected = LOSSES[lost]
    before, kept = [run.info.run_id for run in logged_world.runs()], {*logged_world.kept()}
    lose(logged_world)
    said = logged_world.sync_twice()  # the number depends on what the store has lost before
    assert [re.sub(r"version \d+", "version N", line) for line in said] == expected
    logged_world.assert_whole()
    assert [run.info.run_id for run in logged_world.runs()] == before
    if lost != "a model":  # which has a new id
        assert {*logged_world.kept()} == kept


# --- states of the history ---


def test_a_commit_is_written_with_its_name_whatever_lies_here(world):
    commit = world.git("rev-parse", "HEAD")
    world.git("tag", "released")
    world.make(rate=6)
    assert world.sync_twice(rev="released") == logged(*STAGES)
    world.assert_whole("released")
    for stage in STAGES:
        tags = world.run_of(stage).data.tags
        assert (tags["commit"], tags["dirty"]) == (commit, "false")


def test_dvc_reads_a_commit_again_only_if_its_runs_are_not_whole(world, monkeypatch):
    world.drop_the_model()
    world.make(rate=6)
    world.commit()
    world.sync_twice(all=True)
    read = []
    state_of = sync.state_of
    monkeypatch.setattr(sync, "state_of", lambda commit: read.append(commit) or state_of(commit))
    assert said_by(lambda: sync.sync(all=True)) == [] and read == []
    place(world.runs("note")[0].info.artifact_uri).joinpath("a.txt").unlink()
    assert said_by(lambda: sync.sync(all=True)) == [completed("note", "a.txt")]
    assert read == [world.git("rev-parse", "HEAD")]
    world.assert_whole(*world.git("rev-list", "HEAD").split())


def test_all_commits_and_experiments_get_their_runs_once(world):
    dated = ("git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit",
             "--amend", "--quiet", "--no-edit")  # fmt: skip
    world.run(*dated, env={"GIT_COMMITTER_DATE": "2020-01-01T00:00:00"})
    old = world.git("rev-parse", "HEAD")
    world.make(rate=6)
    newest = world.commit()
    world.make(rate=7)
    experiment = world.commit()
    world.git("update-ref", f"refs/exps/{newest[:2]}/{newest[2:]}/warm", experiment)
    world.git("reset", "--quiet", "--hard", newest)
    world.commit("the same results")
    assert world.sync_twice(all=True, since="2021-01-01") == 2 * logged(*STAGES)
    assert world.sync_twice(all=True) == logged(*STAGES)
    world.assert_whole(old, newest, experiment)
    names = {run.data.tags["commit"]: run.data.tags.get("dvc_experiment") for run in world.runs()}
    assert names == {old: None, newest: None, experiment: "warm"}
    assert len(world.runs("pipeline")) == 3


# --- what cannot be written, or not yet ---


def test_a_run_that_cannot_be_written_whole_is_left_out_until_it_can(world, capsys):
    file = world.path / "history.csv"
    whole = file.read_bytes()
    file.write_bytes(b"epoch,\xe4\n1,2\n")
    world.run("dvc", "commit", "--force")
    broken = world.commit()
    problem = "train: history.csv cannot be read ("
    for options, where, last in (
        ({}, "", "1 problems; all other runs are written"),
        ({"all": True}, f"commit {broken[:10]}: ", "1 problems; all other runs are written"),
    ):
        capsys.readouterr()
        said = said_by(lambda options=options: sync.sync(**options))
        assert said[-1] == last
        [error] = capsys.readouterr().err.splitlines()
        assert error.startswith(f"error: {where}{problem}")
    assert not [run for run in world.runs("train") if run.data.tags["commit"] == broken]
    assert not world.client.search_experiments(filter_string="name = 'world-claim'")
    file.write_bytes(whole)
    world.run("dvc", "commit", "--force")
    assert world.sync_twice() == []  # an earlier commit has it
    world.assert_whole()


def test_a_state_in_which_not_all_stages_have_run_has_a_run_of_its_own(world):
    client, lock = world.client, world.lock()
    [md5] = [out["md5"] for out in lock["train"]["outs"] if out["path"] == "tree.bin"]
    client.create_experiment("others")
    pending = client.create_logged_model("1", name="tree", tags={"md5": md5})
    path, text = world.path / "dvc.lock", (world.path / "dvc.lock").read_text()
    YAML().dump({"schema": "2.0", "stages": {"train": lock["train"]}}, path)
    assert world.sync_twice() == logged("train")
    first = world.run_of("pipeline").info.run_id
    assert world.run_of("train").data.tags["mlflow.parentRunId"] == first
    # A model whose writing was cut short is gone, and the registry needs an evaluation
    assert pending.model_id not in [model.model_id for model in world.models()]
    assert client.search_registered_models() == []
    path.write_text(text)
    assert world.sync_twice() == logged("score", "note")
    newest, older = world.runs("pipeline")
    assert older.info.run_id == first
    parents = {world.run_of(stage).data.tags["mlflow.parentRunId"] for stage in STAGES}
    assert parents == {newest.info.run_id}


def test_a_run_waits_for_no_file_and_is_completed_once_it_is_there(world, capsys):
    shutil.rmtree(world.path / ".dvc/cache")
    gone = ["tree.bin", "train.json"]
    for name in gone:
        (world.path / name).rename(world.path / f"{name}.away")
    assert said_by(sync.sync) == logged(*STAGES)
    assert capsys.readouterr().err == (
        "2 files are not here, and are only linked (train.json, tree.bin): `dvc pull` brings "
        "those that DVC keeps, or `dvc-mlflow sync --pull`\n"
    )
    run = world.run_of("train")
    assert sorted(json.loads(run.data.tags["missing"])) == ["train.json", "tree.bin"]
    assert world.models() == [] and said_by(sync.sync) == []
    for name in gone:
        (world.path / f"{name}.away").rename(world.path / name)
    assert world.sync_twice() == [completed("train")]
    assert world.run_of("train").info.run_id == run.info.run_id
    world.assert_whole()


def test_what_lies_in_the_remote_alone_is_fetched_if_that_is_asked_for(world, tmp_path):
    world.run("dvc", "remote", "add", "--default", "elsewhere", str(tmp_path / "remote"))
    world.run("dvc", "push")
    shutil.rmtree(world.path / ".dvc/cache")
    (world.path / "tree.bin").unlink()
    forget_the_folder()
    assert said_by(sync.sync) == logged(*STAGES)
    assert world.models() == []
    assert world.sync_twice(pull=True) == [completed("train")]
    world.assert_whole()


# --- status ---


def test_status_counts_the_results_that_have_their_run_with_all_files(world):
    cure = "`dvc-mlflow sync` writes them, or says why it cannot"
    end = f"in sqlite:///{world.path}/mlflow.db: {cure}"
    assert said_by(status) == [
        "0 of 3 results have their run", f"no complete run for train, score, note {end}"
    ]  # fmt: skip
    assert world.client.search_experiments(filter_string="name LIKE 'world%'") == []
    sync.sync()
    assert said_by(status) == ["3 of 3 results have their run"]
    delete_run(world, "note")
    model_file(world).unlink()
    assert said_by(status) == [
        "1 of 3 results have their run", f"no complete run for train, note {end}"
    ]  # fmt: skip


def test_status_names_the_runs_that_neither_a_commit_nor_the_folder_holds(world):
    world.make(depth=2)
    sync.sync()
    run_id = world.run_of("train").info.run_id
    assert said_by(status) == ["3 of 3 results have their run"]
    world.git("checkout", "--quiet", ".")
    sync.sync()
    last = f"no commit holds the results of run {run_id} (train)"
    assert said_by(status) == ["3 of 3 results have their run", last]


# --- runs whose process is gone ---


def test_a_run_whose_process_is_gone_ends_and_one_of_sync_is_taken_back(world):
    gone = dead_process()
    begun = {
        "of a stage": ({"process": gone, "stage": "plot"}, "KILLED", "active"),
        "of no stage": ({"process": gone}, "KILLED", "active"),
        "of sync": (
            {"process": gone, "stage": "plot", "backfilled": "true"}, "KILLED", "deleted"
        ),
        "of the pipeline": ({"process": gone, "stage": "pipeline"}, "KILLED", "deleted"),
        "alive": ({"process": writers.this_process(), "stage": "plot"}, "RUNNING", "active"),
        "elsewhere": ({"process": "another machine 1 0"}, "RUNNING", "active"),
        "unknown": ({}, "RUNNING", "active"),
    }  # fmt: skip
    others = world.client.create_experiment("others")
    ids = {name: world.client.create_run(others, tags=begun[name][0]).info.run_id for name in begun}
    said = said_by(sync.sync)
    for stage, count in (("plot", 2), ("pipeline", 1), ("None", 1)):
        assert said.count(f"ended the run of {stage} whose process is gone") == count
    for name, (_, *expected) in begun.items():
        info = world.client.get_run(ids[name]).info
        assert [info.status, info.lifecycle_stage] == expected, name
    tags = world.client.get_run(ids["of a stage"]).data.tags
    assert tags["reason"] == "its process ended before the run did"


# --- which stages belong together ---
