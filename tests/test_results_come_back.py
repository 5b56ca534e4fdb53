"""A result that was computed once is never computed again, wherever it is asked for."""

import re
import shutil

import pytest

from conftest import Clone, weekly

pytestmark = pytest.mark.slow


def select(clone: Clone, recipe: str) -> None:
    path = clone.path / "params.yaml"
    text = re.sub(r"(?m)^recipe: \w+", f"recipe: {recipe}", path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")


def results(clone: Clone) -> tuple[bytes, dict[str, str]]:
    return (clone.path / "dvc.lock").read_bytes(), clone.outs()


@pytest.mark.parametrize("link", ["symlink", *weekly("copy", "hardlink")])
def test_a_switch_of_the_recipe_there_and_back_trains_nothing(copy, link):
    copy.run("dvc", "config", "--local", "cache.type", link)
    copy.run("dvc", "checkout", "--relink")
    copy.commit("small")
    documented = results(copy)
    select(copy, "published")
    assert {"train_lenet5", "train_mlp", "evaluate", "plot"} == set(copy.repro())
    published = results(copy)
    assert published != documented
    # These two write Markdown into git, which DVC's run cache does not take
    for recipe, expected in (("documented", documented), ("published", published)) * 2:
        select(copy, recipe)
        assert copy.repro() == ["evaluate", "plot"]
        assert results(copy) == expected
    tracked = copy.run("git", "ls-files", "-z", "reports").stdout.split("\0")
    for path in (copy.path / name for name in tracked if name):
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1  # an edit of it reaches no object of the cache


def test_an_experiment_with_the_settings_of_an_earlier_one_trains_nothing(copy):
    copy.commit("small")
    first = copy.run("dvc", "exp", "run", "-S", "recipe=published", "--name", "first").stdout
    assert "Running stage 'train_mlp'" in first
    again = ("-S", "recipe=published")
    for where in ((), ("--temp",)):
        copy.run("git", "checkout", "--quiet", "--force", "HEAD")
        said = copy.run("dvc", "exp", "run", *where, *again, "--name", f"again{len(where)}").stdout
        assert "Stage 'train_lenet5' is cached - skipping run" in said
        assert "Stage 'train_mlp' is cached - skipping run" in said
        assert "Running stage 'train" not in said


def test_what_dvc_removes_for_a_recipe_that_does_not_exist_comes_back_with_the_next_command(copy):
    before = results(copy)
    select(copy, "publishd")
    refused = copy.run("make", "repro", "INSTALLED=params.yaml", check=False)
    assert refused.returncode != 0
    assert "recipe is 'publishd', expected one of: published, documented" in refused.stderr
    assert results(copy) == before
    for command in (["dvc", "repro"], ["dvc", "exp", "run", "-S", "recipe=publishd"]):
        alone = copy.run(*command, check=False)
        assert alone.returncode != 0
        assert "publishd" in alone.stderr  # DVC's own line: no code of ours runs
        select(copy, "documented")
        assert set(copy.repro()) <= {"evaluate", "plot"}
        assert results(copy) == before
        select(copy, "publishd")


def test_a_stage_that_fails_costs_none_of_the_stages_before_it(copy):
    before = results(copy)
    shutil.rmtree(copy.path / "reports")
    copy.edit("stages/evaluate.py", "settings = params.load()", "raise SystemExit(3)")
    assert copy.run("dvc", "repro", check=False).returncode != 0
    copy.edit("stages/evaluate.py", "raise SystemExit(3)", "settings = params.load()")
    assert copy.repro() == ["evaluate", "plot"]
    assert results(copy) == before
