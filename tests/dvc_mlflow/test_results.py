"""The results in dvc.yaml, dvc.lock and git, in small repositories of real git and DVC."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import PIPELINE, Project, make_code, make_project, make_results, md5_of

from dvc_kit.errors import InputError, StageError
from dvc_mlflow import git, history, projects, results
from dvc_mlflow.content import Content
from dvc_mlflow.result import Result

STUDY = Path("study")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Project:
    """A project with results in its only commit. Tests leave it as it is."""
    return make_project(tmp_path_factory.mktemp("results") / "project")


@pytest.fixture
def project(shared, monkeypatch) -> Project:
    monkeypatch.chdir(shared.path)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(variable, raising=False)
    return shared


@pytest.fixture
def fresh(tmp_path, project, monkeypatch) -> Project:
    """A repository of its own, without results and commits."""
    made = make_code(tmp_path / "fresh")
    monkeypatch.chdir(made.path)
    return made


# --- dvc.yaml and dvc.lock ---


def project_in(folder: Path = projects.MAIN) -> results.Project:
    return results.all_projects()[folder]


def locked_of(folder: Path = projects.MAIN) -> dict[str, Result]:
    return project_in(folder).locked()


def test_a_stage_that_no_project_declares_is_told_also_where_a_dvc_yaml_is_damaged(fresh):
    fresh.write("study/dvc.yaml", "stages: [")
    assert results.project_of("prepare")[0].folder == projects.MAIN
    for stage in ("no such stage", "report"):
        with pytest.raises(InputError, match=f"declares the stage {stage}$"):
            results.project_of(stage)


def test_two_projects_may_have_a_stage_of_the_same_name_and_dvc_says_which_one_runs(
    fresh, monkeypatch
):
    fresh.edit("study/dvc.yaml", '"report": {', '"prepare": {')
    for folder in (projects.MAIN, STUDY):
        monkeypatch.setenv("DVC_ROOT", str(fresh.path / folder))
        found, name = results.project_of("prepare")
        assert (found.folder, name) == (folder, "prepare")
        expected = PIPELINE["prepare"].desc if folder == projects.MAIN else "Say what all cells say"
        assert found.here("prepare", with_outs=False).desc == expected


def test_what_dvc_yaml_declares_since_the_last_run_is_not_in_the_result(fresh):
    make_results(fresh)
    before = locked_of()["prepare"]
    fresh.edit("dvc.yaml", '"deps": ["code.py"]', '"deps": ["code.py", "params.yaml"]')
    fresh.edit("dvc.yaml", '"params": ["seed", "data"]', '"params": ["seed", "data", "device"]')
    assert locked_of()["prepare"] == before
    fresh.write("dvc.lock", "{schema: '2.0', stages: {prepare: {cmd: a}, gone: {cmd: b}}}")
    assert locked_of() == {}


@pytest.mark.parametrize("text", ["- a", "a: [", "schema: '2.0'", "stages: [prepare]", ""])
def test_a_lock_that_names_no_stages_is_told(text):
    with pytest.raises(StageError, match=r"names no stages|cannot be read"):
        projects.stages_in(text)


def test_a_lock_of_dvc_1_which_holds_only_the_stages_is_read_like_one_of_today(fresh):
    make_results(fresh)
    expected = {stage: fresh.outs(stage) for stage in PIPELINE}
    results = {stage: result.identity for stage, result in locked_of().items()}
    stages = json.loads(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    for entry in (entry for stage in stages.values() for entry in stage["deps"] + stage["outs"]):
        del entry["hash"], entry["size"]  # which are newer, too
    fresh.write("dvc.lock", json.dumps(stages))
    project = project_in()
    assert {stage: result.outs for stage, result in project.locked().items()} == expected
    assert {stage: result.identity for stage, result in project.locked().items()} == results
    assert project.problems == []
    fresh.commit("a lock of DVC 1")
    assert frozenset(results.values()) in [lock.results for lock in history.locks()]


# --- the bytes of results ---


def content_of(project: results.Project, **more) -> Content:
    every = [one for found in results.all_projects().values() for one in found.locked().values()]
    locked = project.locked().values() if "commit" in more else every
    return Content(project, {p: md5 for one in locked for p, md5 in one.outs.items()}, **more)


def made(project: Project) -> dict[str, str]:
    return {path: md5 for stage in PIPELINE for path, md5 in project.outs(stage).items()}


@pytest.fixture
def own(tmp_path, monkeypatch) -> Project:
    """A project of its own with results in its only commit and in the cache."""
    project = make_project(tmp_path / "own")
    monkeypatch.chdir(project.path)
    return project


def object_of(md5: str) -> Path:
    return Path(".dvc/cache/files/md5", md5[:2], md5[2:])


def test_a_commits_files_come_from_git_and_dvcs_cache_into_a_folder_that_goes_away(own):
    kept, expected, commit = made(own), locked_of(), git.commit_of("HEAD")
    make_results(own, seed=1)
    own.write("code.py", "print('other code')\n")
    own.commit("other results")
    shutil.rmtree("data")
    before = own.git("status", "--porcelain", "--ignored")
    with history.repo_of(projects.MAIN, commit) as repo:
        project = results.Project(projects.MAIN, projects.find(commit=commit)[Path()], repo)
        assert project.locked() == expected
        content = content_of(project, commit=commit)
        with content.laid([*kept, "data/prepared/counts.csv", "code.py"]) as missing:
            folder = Path.cwd()
            assert folder != own.path
            assert missing == []
            assert {path: md5_of(Path(path)) for path in kept} == kept
            assert Path("code.py").read_text() == "print()\n"
            assert not Path("params.yaml").exists()
    assert Path.cwd() == own.path
    assert not folder.exists()
    assert own.git("status", "--porcelain", "--ignored") == before


def test_what_cannot_be_had_is_named_and_no_other_bytes_take_its_place(own):
    kept, commit = made(own), git.commit_of("HEAD")
    changed, damaged, gone = "models/mlp.safetensors", "models/lenet5.safetensors", "data/prepared"
    in_git = "reports/metrics.json"
    for path in (changed, in_git):
        Path(path).write_text("changed")
    object_of(kept[changed]).unlink()
    object_of(kept[damaged]).write_text("damaged")
    object_of(kept[gone]).unlink()
    Path(damaged).unlink()
    shutil.rmtree(gone)
    asked = [changed, damaged, gone, in_git, "no/such"]
    with content_of(project_in()).laid([*asked, "reports/comparison.md"]) as missing:
        assert missing == asked
        assert Path("reports/comparison.md").exists()
    with history.repo_of(projects.MAIN, commit) as repo:
        project = results.Project(projects.MAIN, [Path("dvc.yaml")], repo)
        with content_of(project, commit=commit).laid(asked) as missing:
            assert missing == [path for path in asked if path != in_git]
            assert md5_of(Path(in_git)) == kept[in_git]
