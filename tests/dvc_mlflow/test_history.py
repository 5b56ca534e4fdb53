"""What git knows of results, in small repositories of real git."""

from pathlib import Path

import pytest
from tiny import Project, make_code, make_results

from dvc_kit.errors import InputError
from dvc_mlflow import git, history, sync
from dvc_mlflow.git import GitError


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Project:
    """A repository without results and commits."""
    made = make_code(tmp_path / "fresh")
    monkeypatch.chdir(made.path)
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(variable, raising=False)
    return made


# --- commits ---


def provenance() -> dict[str, str]:
    with sync.state_of(None) as state:
        return dict(state.tags)


def test_only_code_and_settings_make_a_tree_dirty_not_results(fresh):
    make_results(fresh)
    commit = fresh.commit("results")
    for path in ("study/cells/fast-mlp-0.json", "study/report/study.md", "reports/metrics.json"):
        fresh.write(path, "changed")
    for folder in ("", "study/"):
        fresh.edit(f"{folder}dvc.lock", '"2.0"', '"2.0" ')
    assert provenance() == {"commit": commit, "dirty": "false"}
    fresh.write("code.py", "changed")
    assert provenance() == {"commit": commit, "dirty": "true"}


def test_a_commit_has_many_names_and_whatever_is_none_is_told(fresh, monkeypatch):
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
    monkeypatch.setenv("GIT_DIR", str(fresh.path / "none"))  # where git cannot look
    with pytest.raises(GitError, match="not a git repository"):
        git.commit_of("HEAD")


def test_an_experiment_is_found_by_name_the_one_on_the_checked_out_commit_first(fresh):
    def experiment(name: str, base: str) -> str:
        made = fresh.git("commit-tree", "-p", base, "-m", name, f"{base}^{{tree}}")
        fresh.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", made)
        return made

    bases = [fresh.commit("first")]
    for at in range(3):
        fresh.write("code.py", f"print({at})\n")
        bases.append(fresh.commit(f"then {at}"))
    made = {base: experiment("warm", base) for base in bases}
    for base in bases:
        fresh.git("checkout", "--quiet", base)
        assert git.commit_of("warm") == made[base]
    only = experiment("cold.1-a", bases[0])
    assert git.commit_of("cold.1-a") == only
    for name in ("cold", "w*", "warm/a"):
        with pytest.raises(InputError):
            git.commit_of(name)


# --- the locks of the history ---


def lock(project: Project, md5: object, path: str = "dvc.lock", day: int = 1) -> str:
    """A commit with a dvc.lock of two outs; its hash."""
    outs = f"[{{path: a, md5: {md5}}}, {{path: b, md5: same}}]"
    project.write(path, f"stages: {{prepare: {{cmd: x, outs: {outs}}}}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_COMMITTER_DATE", f"2020-01-0{day}T00:00:00Z")
        return project.commit(f"{path} {md5}")


def test_each_lock_of_the_history_has_its_commits_the_newest_first(fresh):
    assert history.locks() == ()
    first = lock(fresh, "one")
    fresh.write("code.py", "")
    second = fresh.commit("the same lock")
    fresh.git("checkout", "--quiet", "-b", "side")
    side = lock(fresh, "two", day=2)  # on a branch that is not checked out
    fresh.git("checkout", "--quiet", "main")
    fresh.write("dvc.lock", "neither: a lock\n")
    fresh.commit("damaged")
    Path("dvc.lock").unlink()
    fresh.write("dvc.lock/dvc.lock", "a folder in the place of the lock")
    study = lock(fresh, "three", "study/dvc.lock", day=3)
    assert {lock.commits for lock in history.locks()} == {(second, first), (side,), (study,)}
    assert sorted(history.commits_naming("same")) == sorted([first, second, side, study])
    assert [lock.commits for lock in history.locks(frozenset({"two", "four"}))] == [(side,)]
    [results] = (lock.results for lock in history.locks(frozenset({"two"})))
    assert history.commits_with(results, frozenset({"two"})) == [side]
    assert history.commits_with(results | {"another"}, frozenset({"two"})) == []


def test_each_state_of_all_locks_has_its_oldest_commit_the_oldest_first(fresh, monkeypatch):
    made = [lock(fresh, 1), lock(fresh, 2, "code.py", 2), lock(fresh, 3, "study/dvc.lock", 3)]
    assert history.commits() == [made[0], made[2]]
    assert history.commits("2020-01-02T00:00:00Z") == [made[1], made[2]]
    assert history.commits("2020-01-04T00:00:00Z") == []
    monkeypatch.setattr(history.files, "LARGEST", 10)  # a lock that is too large is a problem there
    history._blobs.cache_clear()
    assert history.commits() == [made[0], made[2]] and history.locks() == ()
