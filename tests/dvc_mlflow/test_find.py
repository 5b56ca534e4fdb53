"""From runs, models and files to commits and back, in a small world with a real store."""

import contextlib
import hashlib
import re
from collections.abc import Iterator

import pytest
from world import STAGES, said_by

from dvc_kit.errors import InputError
from dvc_mlflow import addresses, find


@pytest.fixture
def world(logged_world, monkeypatch):
    monkeypatch.setenv("PWD", str(logged_world.path))
    return logged_world


def found(what: str) -> list[str]:
    """What `find` prints, with its error as the last line."""
    return said_by(lambda: find.find(what))


def head(world) -> str:
    return world.git("log", "-1", "--format=%h %cs %s")


@contextlib.contextmanager
def restored(world) -> Iterator[str]:
    """After the body, the commit of before is checked out again; its name."""
    before = world.git("rev-parse", "HEAD")
    try:
        yield before
    finally:
        world.git("reset", "--quiet", "--hard", before)
        world.git("reflog", "expire", "--expire=now", "--all")


# --- runs ---


def test_a_run_leads_to_its_page_its_commits_and_back_to_the_files(world):
    run = world.run_of("train")
    first, page, here, commit, back = found(run.info.run_id)
    assert first == f"run {run.info.run_id} train (FINISHED)"
    place = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/model-metrics"
    assert page == f"  {addresses.UI}/#/{place}?{addresses.TRAINING}"
    assert here == "  dvc.lock in this folder holds it: `dvc checkout` brings it back"
    assert commit == f"  commit {head(world)}"
    assert f"`git checkout {world.git('rev-parse', 'HEAD')[:10]} && dvc checkout`" in back


def test_the_pipelines_run_leads_to_the_commits_with_all_results_of_its_stages(world):
    run_id, train = (world.run_of(stage).info.run_id for stage in ("pipeline", "train"))
    assert f"  commit {head(world)}" in found(run_id)
    lock = world.path / "dvc.lock"
    text = lock.read_text()
    [md5] = [out["md5"] for out in world.lock()["note"]["outs"] if out["path"] == "note.md"]
    lock.write_text(text.replace(md5, 32 * "0"))
    try:
        assert not [line for line in found(run_id) if "in this folder" in line]
        assert [line for line in found(train) if "in this folder" in line]
    finally:
        lock.write_text(text)


def test_the_number_of_further_commits_with_the_same_results_is_told(world):
    with_one = head(world)
    with restored(world) as first:
        for _ in range(2):
            world.commit("nothing new")
        said = found(world.run_of("train").info.run_id)
    assert [line for line in said if line.startswith("  commit")] == [
        f"  commit {with_one}  (and 2 more commits)"
    ]
    assert f"`git checkout {first[:10]} &&" in said[-1]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, "{} was not made from a stage of DVC"),
        (
            {"stage": "plot"},
            "{} is RUNNING and has no results: `dvc-mlflow sync` adds those of dvc.lock",
        ),
        (
            {"stage": "plot", "commit": "0123456789abcdef"},
            "{} is RUNNING and has no results; it ran on commit 0123456789: `dvc-mlflow sync` adds "
            "those of dvc.lock",
        ),
        (
            {"stage": "plot", "out:figures": "md5 of nothing"},
            "{} is RUNNING and has no results: `dvc-mlflow sync` adds those of dvc.lock",
        ),
    ],
)
def test_a_run_that_leads_to_no_commit_says_why(world, tags, expected):
    run_id = world.client.create_run("1", tags=tags).info.run_id
    assert found(run_id)[-1] == expected.format(f"run {run_id}")
    world.client.delete_run(run_id)


# --- models and files ---


def test_a_model_leads_to_its_version_its_run_and_its_commits_under_each_name(world):
    [version], [model] = world.versions(), world.models()
    md5 = hashlib.md5((world.path / "tree.bin").read_bytes()).hexdigest()
    names = ("models:/world@champion", f"models:/world/{version.version}", model.model_id)
    for name in names:
        first, *others = found(name)
        assert first == f"{name}: md5 {md5}"
        assert f"  models:/world/{version.version}: {version.description}" in others
        place = f"/#/experiments/{model.experiment_id}/models/{model.model_id}?{addresses.TRAINING}"
        assert others[others.index(f"  {addresses.UI}{place}") + 1] == (
            f"    made by run {model.source_run_id}"
        )
        assert f"  commit {head(world)}" in others
        assert f"  read by run {world.run_of('score').info.run_id} (score)" in others
    assert found("tree.bin")[1:] == others


@pytest.mark.parametrize(
    "what", ["models:/world/99", "models:/world@none", "models:/world", f"m-{'0' * 32}"]
)
def test_what_is_no_model_is_told_with_the_names_that_are(world, what):
    assert re.match(f"{what} is no model of .*models:/NAME/VERSION", found(what)[-1])


def test_a_champion_that_is_not_there_and_a_model_of_somebody_else_are_explained(world):
    version = world.client.get_model_version_by_alias("world", "champion").version
    world.client.delete_registered_model_alias("world", "champion")
    assert "has lost its alias champion" in found("models:/world@champion")[-1]
    world.client.set_registered_model_alias("world", "champion", version)
    model = world.client.create_logged_model("0", name="foreign").model_id
    assert "was not logged from a result of DVC" in found(model)[-1]
    world.client.delete_logged_model(model)


def test_a_file_is_found_by_its_content_where_the_command_was_typed(world, monkeypatch):
    md5 = hashlib.md5((world.path / "train.json").read_bytes()).hexdigest()
    said = found("train.json")  # which only a commit holds
    assert said[0] == f"file train.json: md5 {md5}" and f"  commit {head(world)}" in said
    assert not [line for line in said if "made by run" in line or "models:/" in line]
    below = world.path / "below"
    below.mkdir()
    (below / "main").write_bytes((world.path / "train.json").read_bytes())
    (below / "other").write_text("no result")
    monkeypatch.setenv("PWD", str(below))
    assert found("main")[0] == f"file main: md5 {md5}"  # which is a commit, too
    assert found(str(world.path / "train.json"))[0].endswith(f"md5 {md5}")
    other = hashlib.md5(b"no result").hexdigest()
    assert found("other") == [f"file other (md5 {other}) is in no commit's dvc.lock and in no run"]
    assert re.match("train.json is no run or model of .*, no file and ", found("train.json")[-1])


# --- commits ---


def shown(lines: list[str]) -> dict[str, str]:
    """The id of the run of each stage."""
    pages = dict(line.split(maxsplit=1) for line in lines)
    return {stage: re.split("[/?]", page.split("/runs/")[-1])[0] for stage, page in pages.items()}


def test_a_commit_leads_to_the_finished_run_of_each_stage(world):
    first, *others = found("main")
    assert first == f"commit {head(world)}"
    ids = {stage: world.run_of(stage).info.run_id for stage in STAGES}
    assert shown(others) == ids


def test_a_run_that_a_commit_lacks_is_told_with_the_command_that_writes_it(world):
    commit, run = world.git("rev-parse", "HEAD")[:10], world.run_of("note")
    world.client.delete_run(run.info.run_id)
    _, *others, hint = found("HEAD")
    assert hint.strip() == f"`dvc-mlflow sync --rev {commit}` writes the missing runs"
    assert shown(others)["note"] == "no run" and len(others) == 3
    world.client.restore_run(run.info.run_id)
    with restored(world):
        (world.path / "params.yaml").write_text("rate: 5\ndepth: 9\n")
        lock = world.path / "dvc.lock"
        text = lock.read_text().partition("  score:")[0]
        lock.write_text(re.sub("[0-9a-f]{32}", 32 * "a", text))
        commit = world.commit("another state")[:10]
        said = found(commit)
    assert said[1].split(maxsplit=1) == ["train", "no run"]
    assert re.match(f"no run in .* has the results of commit {commit}$", said[-1])


@pytest.mark.parametrize("what", ["0" * 32, "no-such", "a" * 31, ""])
def test_what_is_nothing_at_all_is_told(world, what):
    with pytest.raises(InputError, match=f"^({what} is no run or model of sqlite:///|nothing to)"):
        find.find(what)
