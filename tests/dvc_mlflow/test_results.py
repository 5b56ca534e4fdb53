"""The results in dvc.yaml, dvc.lock and git, in small repositories of real git and DVC."""

import hashlib
from pathlib import Path

import pytest
from tiny import PIPELINE, Project, make_code, make_project, make_results, md5_of

from dvc_mlflow import git, projects, results
from dvc_mlflow.errors import InputError, StageError
from dvc_mlflow.git import GitError

STUDY = Path("study")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Project:
    """A project with results in its only commit. Tests leave it as it is."""
    return make_project(tmp_path_factory.mktemp("results") / "project")


@pytest.fixture
def project(shared, monkeypatch) -> Project:
    monkeypatch.chdir(shared.path)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    git.holders.cache_clear()
    return shared


@pytest.fixture
def fresh(tmp_path, project, monkeypatch) -> Project:
    """A repository of its own, without results and commits."""
    made = make_code(tmp_path / "fresh")
    monkeypatch.chdir(made.path)
    return made


# --- dvc.yaml and dvc.lock ---


def locked_of(folder: Path = projects.MAIN) -> dict[str, results.Result]:
    return results.Project(folder).locked()


def test_the_results_of_the_lock_come_in_the_order_of_the_stages_with_paths_and_md5s(project):
    locked = locked_of()
    assert list(locked) == list(results.Project()) == list(PIPELINE)
    for stage, result in locked.items():
        assert (result.project, result.stage) == (projects.MAIN, stage)
        assert result.desc == PIPELINE[stage].desc
        assert result.outs == project.outs(stage)
        assert result.deps == {path: project.md5(path) for path in PIPELINE[stage].deps}
        links = {f"out:{path}": md5 for path, md5 in result.outs.items()}
        links |= {f"dep:{path}": md5 for path, md5 in result.deps.items()}
        assert result.tags == links


def test_settings_are_named_without_the_recipe_that_they_are_of(project):
    locked = locked_of()
    assert locked["prepare"].params["data.train_limit"] == 0
    assert locked["prepare"].chosen == ()
    train = locked["train_mlp"]
    assert train.params["recipe"] == "documented"
    assert train.chosen == ("documented",)
    assert train.params["mlp.epochs"] == 20
    assert not [key for key in train.params if "documented" in key or "lenet5" in key]
    both = locked["evaluate"].params  # of a recipe as a whole
    assert both["lenet5.epochs"] == both["mlp.epochs"] == 20


def test_metrics_curves_and_models_are_those_that_dvc_yaml_declares(project):
    locked = locked_of()
    assert locked["prepare"].metrics == locked["plot"].metrics == ()
    assert locked["train_mlp"].metrics == ("reports/train_mlp.json",)
    assert locked["train_mlp"].curves == {"reports/history_mlp.csv": "epoch"}
    assert locked["train_mlp"].models == {"models/mlp.safetensors": "mlp"}
    assert locked["evaluate"].metrics == ("reports/metrics.json",)
    assert locked["evaluate"].curves == {}  # its plot has intervals, not lines
    assert locked["evaluate"].models == {}  # it reads them, and makes none


def test_the_paths_of_another_project_start_in_the_main_folder(project):
    assert projects.folders() == [projects.MAIN, STUDY]
    assert projects.locks() == [Path("dvc.lock"), Path("study/dvc.lock")]
    locked = locked_of(STUDY)
    assert list(locked) == ["cell@fast-mlp-0", "cell@fast-mlp-1", "report"]
    cell = locked["cell@fast-mlp-1"]
    path = "study/cells/fast-mlp-1.json"
    assert cell.project == STUDY
    assert cell.outs == {path: project.md5(path)}
    assert cell.metrics == (path,)
    assert cell.deps == {"data/prepared": project.md5("data/prepared")}
    assert locked["report"].outs == {"study/report": project.md5("study/report")}
    assert locked["report"].deps["study/cells"] == project.md5("study/cells")


def test_a_stage_of_a_matrix_has_its_item_among_its_settings_and_not_in_their_names(project):
    cell = locked_of(STUDY)["cell@fast-mlp-1"]
    item = {key: cell.params[key] for key in ("recipe", "model", "seed")}
    assert item == {"recipe": "fast", "model": "mlp", "seed": 1}
    assert cell.params["epochs"] == 5 and cell.params["augmentation.shift"] == 1.0
    assert not [key for key in cell.params if "fast" in key or "mlp" in key]
    assert cell.chosen == ("fast", "mlp")
    assert cell.desc == "Train a cell"


@pytest.mark.parametrize("stage", [*PIPELINE, "cell@fast-mlp-1", "report"])
def test_the_result_of_a_stage_that_has_just_run_is_the_one_that_its_lock_will_have(project, stage):
    found = results.project_of(stage)
    assert found.folder == (projects.MAIN if stage in PIPELINE else STUDY)
    assert found.here(stage) == found.locked()[stage]
    before = found.here(stage, with_outs=False)
    assert before.outs == {}
    assert before.deps == found.locked()[stage].deps


@pytest.mark.parametrize(
    ("settings", "item", "names", "chosen"),
    [
        ({"recipe": "a", "a.epochs": 1}, {}, ["recipe", "epochs"], ["a"]),
        ({"a.b": {"c": 1, "d": {"e": 2}}}, {"x": "b"}, ["a.c", "a.d.e", "x"], ["b"]),
        ({"n": 3, "layer.3.width": 1}, {}, ["n", "layer.width"], ["3"]),
        # A name that would be empty, or that of another setting, stays as it is
        ({"split": "test", "test": 0.2}, {}, ["split", "test"], []),
        ({"a": "x", "b": "y", "x.k": 1, "y.k": 2}, {}, ["a", "b", "k", "y.k"], ["x"]),
        ({"a": "x", "k": 1, "x.k": 2}, {}, ["a", "k", "x.k"], []),
        ({"x.seed": 1}, {"r": "x", "seed": 5}, ["x.seed", "r", "seed"], []),
        ({"a": "x", "x": {"k": 1}}, {}, ["a", "k"], ["x"]),
    ],
)
def test_the_value_of_a_setting_is_left_out_of_the_names_of_the_others(
    settings, item, names, chosen
):
    found, left_out = results._short(settings, item)
    assert list(found) == names
    assert list(left_out) == chosen
    assert item.items() <= found.items()


def test_a_stage_that_no_project_declares_belongs_to_the_main_one(fresh):
    assert projects.of_stage("no such stage") == projects.MAIN
    fresh.write("study/dvc.yaml", "stages: [")
    assert projects.of_stage("prepare") == projects.MAIN
    assert projects.of_stage("report") == projects.MAIN


def test_the_stages_that_are_not_in_the_lock_are_left_out(fresh):
    assert locked_of() == locked_of(STUDY) == {}
    make_results(fresh)
    fresh.lock("prepare", "train_mlp")
    assert list(locked_of()) == ["prepare", "train_mlp"]
    assert list(results.Project()) == list(PIPELINE)
    assert list(locked_of(STUDY)) == ["cell@fast-mlp-0", "cell@fast-mlp-1", "report"]


def test_what_dvc_yaml_declares_since_the_last_run_is_not_in_the_result(fresh):
    make_results(fresh)
    before = locked_of()["prepare"]
    fresh.edit("dvc.yaml", '"deps": ["code.py"]', '"deps": ["code.py", "params.yaml"]')
    fresh.edit("dvc.yaml", '"params": ["seed", "data"]', '"params": ["seed", "data", "device"]')
    assert locked_of()["prepare"] == before
    fresh.write("dvc.lock", "{schema: '2.0', stages: {prepare: {cmd: a}, gone: {cmd: b}}}")
    assert locked_of() == {}


def test_the_outs_of_a_project_are_those_of_all_its_stages(project):
    declared = [path for stage in PIPELINE.values() for path in stage.cached + stage.small]
    assert sorted(results.Project().outs()) == sorted(declared)
    cells = ["study/cells/fast-mlp-0.json", "study/cells/fast-mlp-1.json"]
    assert results.Project(STUDY).outs() == [*cells, "study/report"]


@pytest.mark.parametrize("text", ["- a", "outs: []", "stages: [prepare]", ""])
def test_a_lock_that_names_no_stages_is_told(text):
    with pytest.raises(StageError, match="names no stages"):
        projects.stages_in(text)


def test_a_path_is_here_only_with_its_md5_and_is_required_with_the_command_that_brings_it(project):
    path = "models/mlp.safetensors"
    md5 = project.md5(path)
    assert results.is_here(path, md5)
    assert not results.is_here(path, "another")
    assert not results.is_here("models/gone.safetensors", md5)
    with results.checkout(None) as (_, bring):
        bring(path, md5)
        with pytest.raises(StageError, match=f"^{path} is not the one in .*`dvc pull {path}`"):
            bring(path, "another")
        assert Path.cwd() == project.path


# --- git ---


def test_what_git_refuses_is_one_line_and_a_quiet_refusal_is_empty(project, tmp_path, monkeypatch):
    assert git.git("cat-file", "-t", "HEAD") == "commit\n"
    assert git.git("hash-object", "--stdin", given="ä") == f"{blob('ä')}\n"
    with pytest.raises(GitError, match=r"^git log: fatal: [^\n]*no-such[^\n]*$"):
        git.git("log", "no-such")
    with pytest.raises(GitError, match=r"^$"):
        git.git("rev-parse", "--verify", "--quiet", "no-such")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match=r"^there is no git in PATH"):
        git.git("status")
    (tmp_path / "git").write_text("not a program")
    with pytest.raises(GitError, match=r"^git: Permission denied$"):
        git.git("status")


def blob(text: str) -> str:
    """Git's name for a file with this text."""
    content = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def provenance() -> dict[str, str]:
    return git.provenance(results.Project().outs())


def test_only_code_and_settings_make_a_tree_dirty_not_results(fresh):
    make_results(fresh)
    commit = fresh.commit("results")
    assert provenance() == {"commit": commit, "dirty": "false"}
    for path in (
        *("study/cells/fast-mlp-0.json", "study/report/study.md"),
        *("reports/metrics.json", "reports/figures/curves.png", "reports/comparison.md"),
    ):
        fresh.write(path, "changed")
    for folder in ("", "study/"):
        fresh.edit(f"{folder}dvc.lock", '"2.0"', '"2.0" ')
    assert provenance()["dirty"] == "false"
    assert git.provenance(results.Project(STUDY).outs())["dirty"] == "false"
    fresh.write("code.py", "changed")
    assert provenance() == {"commit": commit, "dirty": "true"}


def test_a_new_file_makes_a_tree_dirty_and_dvcs_experiment_is_named(fresh, monkeypatch):
    commit = fresh.commit("code")
    fresh.write("new.py", "")
    monkeypatch.setenv("DVC_EXP_NAME", "warm")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
    named = {"dvc_experiment": "warm", "dvc_experiment_baseline": "c0ffee"}
    assert provenance() == {"commit": commit, "dirty": "true", **named}
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "")
    monkeypatch.setenv("GIT_DIR", str(fresh.path / "none"))  # copied without its history
    assert provenance() == {"dvc_experiment": "warm"}


def test_a_commit_has_many_names_and_whatever_is_none_is_told(fresh):
    first = fresh.commit("first")
    fresh.git("tag", "--annotate", "--message=a", "released")
    fresh.git("commit", "--allow-empty", "--quiet", "-m", "second")
    second = fresh.git("rev-parse", "HEAD")
    for name in (second, second[:8], "HEAD", "main", "@"):
        assert git.commit_of(name) == second
    for name in ("HEAD~1", "released", "@{1}"):
        assert git.commit_of(name) == first
    for name in ("gone", "HEAD:dvc.yaml", "--all", ""):
        with pytest.raises(InputError, match=r"is not a commit of this repository$"):
            git.commit_of(name)


def test_a_commit_that_git_cannot_look_for_is_not_called_missing(fresh, monkeypatch):
    fresh.commit("first")
    monkeypatch.setenv("GIT_DIR", str(fresh.path / "none"))
    with pytest.raises(GitError, match="not a git repository"):
        git.commit_of("HEAD")


def test_an_experiment_is_found_by_name_the_one_on_the_checked_out_commit_first(fresh):
    def experiment(name: str, base: str, message: str) -> str:
        made = fresh.git("commit-tree", "-p", base, "-m", message, f"{base}^{{tree}}")
        fresh.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", made)
        return made

    bases = [fresh.commit("first")]
    for at in range(3):
        fresh.write("code.py", f"print({at})\n")
        bases.append(fresh.commit(f"then {at}"))
    made = {base: experiment("warm", base, "an experiment") for base in bases}
    for base in bases:
        fresh.git("checkout", "--quiet", base)
        assert git.commit_of("warm") == made[base]
    only = experiment("cold.1-a", bases[0], "another")
    assert git.commit_of("cold.1-a") == only
    for name in ("cold", "w*", "warm/a"):
        with pytest.raises(InputError):
            git.commit_of(name)


def test_the_lock_of_a_commit_is_the_one_that_it_holds(project):
    commit = git.commit_of("HEAD")
    for path in projects.locks():
        assert git.lock_of(commit, path) == (project.path / path).read_text()
    with pytest.raises(InputError, match=f"^commit {commit[:10]} has no no/such.lock$"):
        git.lock_of(commit, Path("no/such.lock"))


def test_each_lock_of_the_history_has_its_oldest_commit_and_the_number_of_the_others(fresh):
    def lock(md5: str, path: str = "dvc.lock") -> None:
        outs = f"[{{path: a, md5: {md5}}}, {{path: b, md5: same}}]"
        fresh.write(path, f"stages: {{prepare: {{cmd: x, outs: {outs}}}}}")

    assert git.holders() == ()
    lock("one")
    first = fresh.commit("first")
    fresh.write("code.py", "")
    fresh.commit("the same lock")
    fresh.git("checkout", "--quiet", "-b", "side")
    lock("two")
    side = fresh.commit("on a branch that is not checked out")
    fresh.git("checkout", "--quiet", "main")
    fresh.write("dvc.lock", "neither: a lock\n")
    fresh.commit("damaged")
    (fresh.path / "dvc.lock").unlink()
    lock("not a lock", "dvc.lock/dvc.lock")
    lock("three", "study/dvc.lock")
    study = fresh.commit("a folder in the place of the lock, and a study")
    found = {holder.first: holder for holder in git.holders()}
    assert {first: h.others for first, h in found.items()} == {first: 1, side: 0, study: 0}
    assert found[first].stages == {"prepare": {"a": "one", "b": "same"}}
    assert found[side].holds({"a": "two"}) and found[side].holds({"a": "two", "b": "same"})
    assert not found[side].holds({"a": "two", "b": "other"})
    assert not found[side].holds({"c": "two"})
    assert found[study].holds({"study/a": "three"})


def test_the_newest_lock_of_the_history_comes_first(fresh, monkeypatch):
    for at in range(3):
        fresh.write("dvc.lock", f"stages: {{prepare: {{cmd: x, outs: [{{path: a, md5: {at}}}]}}}}")
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2020-01-0{at + 1}T00:00:00Z")
        fresh.commit(str(at))
    assert [holder.stages["prepare"]["a"] for holder in git.holders()] == [2, 1, 0]


# --- the files of a commit ---


def test_a_commits_files_come_from_git_and_dvcs_cache_into_a_folder_that_goes_away(project):
    kept = {path: md5 for stage in PIPELINE for path, md5 in project.outs(stage).items()}
    expected = locked_of()
    with results.checkout(git.commit_of("HEAD")) as (committed, bring):
        folder = Path.cwd()
        assert folder != project.path
        assert committed.locked() == expected
        assert not Path("models").exists()
        for path, md5 in kept.items():
            bring(path, md5)
            assert md5_of(Path(path)) == md5
        written = Path("models/mlp.safetensors").stat().st_mtime_ns
        bring("models/mlp.safetensors", kept["models/mlp.safetensors"])  # and not once more
        assert Path("models/mlp.safetensors").stat().st_mtime_ns == written
        Path("models/mlp.safetensors").write_text("damaged")
        bring("models/mlp.safetensors", kept["models/mlp.safetensors"])
        assert md5_of(Path("models/mlp.safetensors")) == kept["models/mlp.safetensors"]
    assert Path.cwd() == project.path
    assert not folder.exists()


def test_a_commits_file_that_cannot_be_had_is_named_with_the_command_that_brings_it(fresh):
    make_results(fresh)
    full = fresh.commit("results, of which DVC keeps nothing")
    commit = full[:10]
    with results.checkout(full) as (_, bring):
        told = f"is not in the cache: `git checkout {commit} && dvc pull data/prepared` brings it"
        with pytest.raises(StageError, match=f"^data/prepared of commit {commit} {told}$"):
            bring("data/prepared", fresh.md5("data/prepared"))
        with pytest.raises(StageError, match=f"commit {commit} is not the one in its dvc.lock$"):
            bring("reports/metrics.json", "another")
    with pytest.raises(InputError, match=r"has no dvc\.lock"), results.checkout(empty(fresh)):
        pass


def empty(project: Project) -> str:
    """A commit without files."""
    tree = project.git("hash-object", "-t", "tree", "-w", "/dev/null")
    return project.git("commit-tree", "-m", "empty", tree)
