"""Runs whose results nothing in git holds are deleted, in a small world with a real store."""

import contextlib
import subprocess

import pytest
from mlflow.entities import ViewType
from world import said_by

from conftest import forget_the_folder
from dvc_kit.errors import InputError
from dvc_mlflow import prune, sync, writers

STAGES = ["note", "pipeline", "score", "train"]


def pruned(**options: object) -> list[str]:
    forget_the_folder()
    return said_by(lambda: prune.prune(**options))


def logged(world, rate: int) -> set[str]:
    """The ids of the runs that are new with another setting."""
    before = {run.info.run_id for run in world.runs()}
    world.make(rate=rate)
    sync.sync()
    return {run.info.run_id for run in world.runs()} - before


def drop(world, commit: str) -> None:
    """Nothing holds any more what was committed after a commit."""
    world.git("reset", "--quiet", "--hard", commit)
    world.git("reflog", "expire", "--expire=now", "HEAD", "main")


def deleted(world) -> set[str]:
    return {run.info.run_id for run in world.runs(view=ViewType.DELETED_ONLY)}


@pytest.mark.slow
def test_only_what_nothing_holds_is_deleted_and_can_be_restored(world):
    first = world.git("rev-parse", "HEAD")
    kept = logged(world, 5)
    for rate in (6, 7):  # only the last stash is a reference
        kept |= logged(world, rate)
        world.git("stash")
    kept |= logged(world, 8)
    experiment = world.commit("an experiment")
    world.git("update-ref", f"refs/exps/{first[:2]}/{first[2:]}/warm", experiment)
    drop(world, first)
    dropped = logged(world, 3)
    assert pruned() == []  # dvc.lock in this folder holds them
    world.commit("dropped")
    drop(world, first)

    ours = {"stage": "train", "project": ".", "result": "e" * 32, "commit": first,
            "mlflow.user": writers.user()}  # fmt: skip
    foreign = [{**ours, "commit": "f" * 40}, {**ours, "project": "other"},
               {**ours, "mlflow.user": "somebody"}, {"stage": "train"}]  # fmt: skip
    left = [world.client.create_run("1", tags={**tags, "out:a": "d" * 32}) for tags in foreign]
    for run in left:
        world.client.set_terminated(run.info.run_id, "FINISHED")
    left.append(world.client.create_run("1", tags={**ours, "out:a": "d" * 32}))  # running

    before = world.dump()
    said = pruned(dry=True)
    assert world.dump() == before
    assert sorted(line.split()[-1].strip("()") for line in said if "would" in line) == STAGES
    assert pruned(older="2020-01-01")[-1].startswith("7 other runs")
    with pytest.raises(InputError, match=r"^--older rubbish: expected a date"):
        prune.prune(older="rubbish")
    assert deleted(world) == set()

    said = pruned()
    assert deleted(world) == dropped and len(dropped) == len(STAGES)
    assert "models:/world/5 stays, because MLflow cannot restore versions" in said
    assert said[-1].startswith("3 other runs whose results no commit here holds are left")
    assert kept <= {run.info.run_id for run in world.runs()}
    forget_the_folder()
    before = world.dump()
    assert said_by(lambda: sync.sync(all=True)) == [] and world.dump() == before
    world.client.restore_run(next(iter(dropped)))
    assert len(deleted(world)) == len(dropped) - 1


@pytest.mark.slow
def test_the_runs_of_a_champion_stay_and_none_lies_below_a_deleted_one(world):
    first = world.git("rev-parse", "HEAD")
    logged(world, 5)
    logged(world, 9)
    drop(world, first)
    said = pruned()
    assert "models:/world/2 is champion: its runs are left" in said
    assert sorted(world.client.get_run(run_id).data.tags["stage"] for run_id in deleted(world)) == [
        "note",
        "pipeline",
    ]
    # A stage that two states share lies below the run of the newest
    world.edit("make.sh", "note)", "note) # once more")
    world.make(rate=5)
    sync.sync()
    drop(world, first)
    assert [line for line in pruned() if line.startswith("deleted")]
    world.assert_whole()


def test_without_a_whole_history_nothing_is_deleted(world, tmp_path):
    world.commit("another")
    clone = ["git", "clone", "--quiet", "--depth=1", world.path.as_uri(), str(tmp_path / "clone")]
    subprocess.run(clone, check=True)
    with contextlib.chdir(tmp_path / "clone"):
        assert pruned() == [
            "no run is deleted: this clone is shallow, `git fetch --unshallow` brings its history"
        ]
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "new")], check=True)
    with contextlib.chdir(tmp_path / "new"):
        assert pruned() == ["here is no history of git, so no run is deleted"]
