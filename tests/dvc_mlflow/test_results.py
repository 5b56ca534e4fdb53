"""The results in dvc.yaml, dvc.lock and git, in small repositories of real git and DVC."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tiny import PIPELINE, Project, make_code, make_project, make_results, md5_of

from dvc_mlflow import git, history, naming, projects, results, sync
from dvc_mlflow.content import Content
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


def locked_of(folder: Path = projects.MAIN) -> dict[str, results.Result]:
    return project_in(folder).locked()


def test_the_results_of_the_lock_come_in_the_order_of_the_stages_with_paths_and_md5s(project):
    locked = locked_of()
    assert list(locked) == list(project_in()) == list(PIPELINE)
    for stage, result in locked.items():
        assert (result.project, result.stage) == (projects.MAIN, stage)
        assert result.desc == PIPELINE[stage].desc
        assert result.outs == project.outs(stage)
        assert result.deps == {path: project.md5(path) for path in PIPELINE[stage].deps}
        assert result.links == {f"out:{path}": md5 for path, md5 in result.outs.items()}
        sizes = {path: (project.path / path).stat().st_size for path in result.metrics}
        assert sizes.items() <= result.sizes.items()


def test_a_stage_without_outs_is_linked_by_everything_that_it_read():
    def link(*of, **more) -> dict[str, str]:
        return results.Result(*of, outs={}, **more).tags

    checked = (Path(), "check", "Check it")
    [(tag, _)] = (first := link(*checked, params={"a": 1}, deps={"b": "md5"})).items()
    assert tag == "read"
    assert link(*checked, params={"a": 1}, deps={"b": "md5"}) == first
    assert link(*checked, params={"a": 2}, deps={"b": "md5"}) != first
    assert link(*checked, params={"a": 1}, deps={"b": "another"}) != first
    assert link(Path(), "other", "", params={"a": 1}, deps={"b": "md5"}) != first
    assert link(Path("sub"), "check", "", params={"a": 1}, deps={"b": "md5"}) != first


def test_the_data_of_a_stage_are_the_deps_that_no_commit_of_the_code_keeps(fresh):
    make_results(fresh)
    locked = locked_of()
    assert list(locked["prepare"].data) == []
    assert list(locked["train_mlp"].data) == ["data/prepared"]
    assert list(locked["plot"].data) == PIPELINE["plot"].deps  # git keeps what another stage made
    fresh.edit("dvc.yaml", '"artifacts": {', '"artifacts": {"images": {"path": "data/prepared"}, ')
    assert locked_of()["train_mlp"].data == {"data/prepared": "images"}
    for path in ("raw/images", "raw file", "code/data.py"):
        fresh.write(path, "anything")
    fresh.run("dvc", "add", "raw", "raw file")
    fresh.edit("dvc.yaml", '["code.py"]', '["code.py", "raw/images", "raw file", "code", "data"]')
    found = project_in().here("prepare")
    assert list(found.data) == ["raw/images", "raw file", "data"]
    assert (
        found.deps.items() >= {"raw file": fresh.md5("raw file"), "code": fresh.md5("code")}.items()
    )


def test_the_outs_of_one_project_are_data_for_the_stages_of_another_one(project):
    assert list(locked_of(STUDY)["report"].data) == ["data/prepared", "study/cells"]


def test_settings_are_named_without_the_recipe_that_they_are_of(project):
    locked = locked_of()
    assert locked["prepare"].params["data.train_limit"] == 0
    assert locked["prepare"].chosen == ()
    train = locked["train_mlp"]
    assert train.params["recipe"] == "documented"
    assert train.chosen == ("documented",)
    assert (train.params["model"], train.params["epochs"]) == ("mlp", 20)
    assert train.full["mlp.epochs"] == 20 and "model" not in train.full
    assert train.params.keys() == locked["train_lenet5"].params.keys()
    assert not [key for key in train.params if "documented" in key or "lenet5" in key]
    both = locked["evaluate"].params  # of a recipe as a whole
    assert both["lenet5.epochs"] == both["mlp.epochs"] == 20


@pytest.mark.parametrize(
    ("full", "sections", "models", "expected"),
    [
        ({"seed": 1, "svm.c": 2}, ["svm"], ["m"], {"model": "m", "seed": 1, "c": 2}),
        ({"seed": 1, "svm.c": 2}, [], ["m", "n"], {"seed": 1, "svm.c": 2}),  # which model?
        ({"c": 1, "svm.c": 2, "svm.d": 3}, ["svm"], [], {"c": 1, "svm.c": 2, "svm.d": 3}),
        ({"a.c": 1, "b.c": 2}, ["a", "b"], [], {"c": 1, "b.c": 2}),
        ({"svm": 2, "svm2.c": 3}, ["svm"], [], {"svm": 2, "svm2.c": 3}),
        ({"model": "forest", "c": 1}, [], ["m"], {"model": "forest", "c": 1}),
    ],
)
def test_settings_of_one_section_have_the_names_of_other_stages_unless_two_would_be_the_same(
    full, sections, models, expected
):
    assert naming.alone(full, sections, models) == expected


def test_metrics_plots_and_models_are_those_that_dvc_yaml_declares(project):
    locked = locked_of()
    assert locked["prepare"].metrics == locked["plot"].metrics == ()
    assert locked["train_mlp"].metrics == ("reports/train_mlp.json",)
    [(path, plot)] = locked["train_mlp"].plots.items()
    assert path == "reports/history_mlp.csv"
    assert (plot["x"], plot["template"]) == ("epoch", "linear")
    assert locked["train_mlp"].models == {"models/mlp.safetensors": "mlp"}
    assert locked["evaluate"].metrics == ("reports/metrics.json",)
    assert locked["evaluate"].plots["reports/comparison.csv"]["template"] == "intervals"
    assert locked["evaluate"].models == {}  # it reads them, and makes none


def test_the_paths_of_another_project_start_in_the_main_folder(project):
    found = projects.find()
    assert found == {projects.MAIN: [Path("dvc.yaml")], STUDY: [STUDY / "dvc.yaml"]}
    assert list(found) == [projects.MAIN, STUDY]
    assert projects.locks(found) == [Path("dvc.lock"), STUDY / "dvc.lock"]
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
    assert cell.params["epochs"] == 5 and cell.params["augmentation.shift"] == 1.16
    assert not [key for key in cell.params if "fast" in key or "mlp" in key]
    assert cell.chosen == ("fast", "mlp")
    assert cell.desc == "Train a cell"


@pytest.mark.parametrize("stage", [*PIPELINE, "cell@fast-mlp-1", "report"])
def test_the_result_of_a_stage_that_has_just_run_is_the_one_that_its_lock_will_have(fresh, stage):
    folder = projects.MAIN if stage in PIPELINE else STUDY
    make_results(fresh)
    locked = locked_of(folder)[stage]
    (folder / "dvc.lock").unlink()
    found, name = results.project_of(stage)
    assert (found.folder, name) == (folder, stage)
    assert found.here(stage) == locked
    before = found.here(stage, with_outs=False)
    assert before.outs == {}
    assert before.deps == locked.deps


@pytest.mark.parametrize(
    ("settings", "item", "expected"),
    [
        # The value of a setting is left out of keys if `strip` names the setting, and only then
        ({"s": "a", "a.epochs": 1}, {}, {"s": "a", "epochs": 1}),
        ({"mode": "train", "train.epochs": 1}, {}, {"mode": "train", "train.epochs": 1}),
        ({"a.b": {"c": 1, "d": {"e": 2}}}, {"s": "b"}, {"a.c": 1, "a.d.e": 2, "s": "b"}),
        ({"s": "a", "a": {"k": 1}}, {}, {"s": "a", "k": 1}),
        # A name that would be empty, or that of another setting, stays as it is
        ({"s": "test", "test": 0.2}, {}, {"s": "test", "test": 0.2}),
        ({"s": "x", "t": "y", "x.k": 1, "y.k": 2}, {}, {"s": "x", "t": "y", "x.k": 1, "y.k": 2}),
        ({"s": "x", "x.k": 2, "k": 1}, {}, {"s": "x", "x.k": 2, "k": 1}),
        ({"x.n": 1}, {"s": "x", "n": 5}, {"x.n": 1, "s": "x", "n": 5}),
        # Two files with the same key, and a matrix with the name of a setting
        ({"lr": 1, "b.yaml:lr": 2, "b.yaml:n": 3}, {}, {"lr": 1, "b.yaml:lr": 2, "n": 3}),
        ({"a": {"lr": 1}, "b.yaml:a.lr": 2}, {}, {"a.lr": 1, "b.yaml:a.lr": 2}),
        ({"c.yaml:lr": 1, "b.yaml:lr": 2}, {}, {"c.yaml:lr": 1, "b.yaml:lr": 2}),
        ({"seed": 1}, {"seed": 2}, {"seed": 1, "item.seed": 2}),
    ],
)
def test_no_two_settings_have_one_name_and_no_value_changes_one_undeclared(
    settings, item, expected
):
    tracked = [
        naming.Setting(file or "params.yaml", not file, key, results.flat(value))
        for told, value in settings.items()
        for file, _, key in [told.rpartition(":")]
    ]
    found, _, _ = naming.names(tracked, naming.Item(item, item, item), ["s", "t", "gone"])
    assert found == expected


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


def test_the_stages_that_are_not_in_the_lock_are_left_out(fresh):
    assert locked_of() == locked_of(STUDY) == {}
    make_results(fresh)
    fresh.lock("prepare", "train_mlp")
    assert list(locked_of()) == ["prepare", "train_mlp"]
    assert list(project_in()) == list(PIPELINE)
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
    assert sorted(project_in().outs()) == sorted(declared)
    cells = ["study/cells/fast-mlp-0.json", "study/cells/fast-mlp-1.json"]
    assert project_in(STUDY).outs() == [*cells, "study/report"]


DEEP = "- " * 101 + "a"  # one level more than is read


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock"])
def test_a_file_that_is_nested_too_deeply_is_named_before_dvc_parses_it(fresh, name):
    fresh.write(name, DEEP)
    assert [line.partition(" (")[0] for line in project_in().problems] == [
        f"dvc.yaml: {name} cannot be read"
    ]


@pytest.mark.parametrize("text", ["- a", "a: [", "schema: '2.0'", "stages: [prepare]", "", DEEP])
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
    (holder,) = (holder for holder in history.holders() if holder.stages == expected)
    assert holder.results == {*results.values()}


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
    with sync.state_of(None) as state:
        return dict(state.tags)


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
    for path in projects.locks(projects.find(commit=commit)):
        assert history.lock_of(commit, path) == (project.path / path).read_text()
    with pytest.raises(InputError, match=f"^commit {commit[:10]} has no no/such.lock$"):
        history.lock_of(commit, Path("no/such.lock"))


def test_each_lock_of_the_history_has_its_oldest_commit_and_the_number_of_the_others(fresh):
    def lock(md5: str, path: str = "dvc.lock") -> None:
        outs = f"[{{path: a, md5: {md5}}}, {{path: b, md5: same}}]"
        fresh.write(path, f"stages: {{prepare: {{cmd: x, outs: {outs}}}}}")

    assert history.holders() == ()
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
    found = {holder.first: holder for holder in history.holders()}
    assert {first: len(h.commits) for first, h in found.items()} == {first: 2, side: 1, study: 1}
    assert found[first].stages == {"prepare": {"a": "one", "b": "same"}}
    assert found[side].holds({"a": "two"}) and found[side].holds({"a": "two", "b": "same"})
    assert not found[side].holds({"a": "two", "b": "other"})
    assert not found[side].holds({"c": "two"})
    assert found[study].holds({"study/a": "three"})


def test_each_state_of_all_locks_has_its_oldest_commit_the_oldest_first(fresh, monkeypatch):
    made = []
    for at, (path, md5) in enumerate([("dvc.lock", 1), ("code.py", 2), ("study/dvc.lock", 3)]):
        fresh.write(path, f"stages: {{prepare: {{cmd: x, outs: [{{path: a, md5: {md5}}}]}}}}")
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2020-01-0{at + 1}T00:00:00Z")
        made.append(fresh.commit(str(at)))
    assert history.commits() == [made[0], made[2]]
    assert history.commits("2020-01-02T00:00:00Z") == [made[1], made[2]]
    assert history.commits("2020-01-04T00:00:00Z") == []
    monkeypatch.setattr(history.files, "LARGEST", 10)  # a lock that is too large is a problem there
    history._blobs.cache_clear()
    assert history.commits() == [made[0], made[2]] and history.holders() == ()


def test_the_newest_lock_of_the_history_comes_first(fresh, monkeypatch):
    for at in range(3):
        fresh.write("dvc.lock", f"stages: {{prepare: {{cmd: x, outs: [{{path: a, md5: {at}}}]}}}}")
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2020-01-0{at + 1}T00:00:00Z")
        fresh.commit(str(at))
    assert [holder.stages["prepare"]["a"] for holder in history.holders()] == [2, 1, 0]


def test_a_lock_of_the_history_that_names_none_of_the_wanted_contents_is_not_parsed(fresh):
    for md5 in ("one", "two", "three"):
        fresh.write("dvc.lock", f"stages: {{prepare: {{cmd: x, outs: [{{path: a, md5: {md5}}}]}}}}")
        fresh.commit(md5)
    projects.stages_in.cache_clear()
    wanted = frozenset({frozenset({"two"}), frozenset({"three", "four"})})
    assert [holder.stages["prepare"] for holder in history.holders(wanted)] == [{"a": "two"}]
    assert projects.stages_in.cache_info().misses == 2  # it and its dvc.yaml


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


def test_a_folder_is_laid_whole_whatever_is_asked_for_before_it(own):
    paths = ["data/prepared/counts.csv", "data/prepared"]
    for asked in (paths, paths[::-1]):
        with content_of(project_in()).laid(asked) as missing:
            assert missing == []
            assert md5_of(Path("data/prepared")) == own.md5(str(own.path / "data/prepared"))


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


def test_a_result_is_there_if_its_bytes_are_in_the_checkout_or_in_the_cache(own):
    content, path = content_of(project_in()), "models/mlp.safetensors"
    kept = object_of(own.md5(path))
    assert content.may_have(path) and content.may_have("reports/metrics.json")
    assert content.may_have("data/prepared") and content.may_have("data/prepared/counts.csv")
    assert not content.may_have("data/prepared/no such file")
    assert not content.may_have("code.py")  # is no result
    shutil.rmtree("data/prepared")
    assert content.may_have("data/prepared") and content.may_have("data/prepared/counts.csv")
    Path(path).write_text("changed")
    assert content.may_have(path)
    kept.unlink()
    assert not content.may_have(path)


def test_the_remote_of_dvc_is_asked_only_on_demand_and_gives_no_other_bytes(own, tmp_path):
    kept, changed = made(own), "models/lenet5.safetensors"
    paths = ["models/mlp.safetensors", "data/prepared/counts.csv", "data/prepared", changed]
    own.run("dvc", "remote", "add", "--default", "far", str(tmp_path / "far"))
    own.run("dvc", "push")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data/prepared")
    Path("models/mlp.safetensors").unlink()
    Path(changed).write_text("changed")
    with content_of(project_in()).laid(paths) as missing:
        assert missing == paths
    with content_of(project_in(), pull=True).laid([*paths, "models/gone"]) as missing:
        assert set(missing) - {changed} == {"models/gone"}
        had = {path for path in paths if path in kept} - {*missing}
        assert {path: md5_of(Path(path)) for path in had} == {path: kept[path] for path in had}


def test_a_project_may_ask_for_the_outs_of_another_one(own):
    with content_of(project_in(STUDY)).laid(["data/prepared", "study/report"]) as missing:
        assert missing == []
        assert md5_of(Path("study/report")) == own.md5(str(own.path / "study/report"))
    shutil.rmtree("data/prepared")
    shutil.rmtree(".dvc/cache")
    with content_of(project_in(STUDY), pull=True).laid(["data/prepared"]) as missing:
        assert missing == ["data/prepared"]  # there is no remote
