"""README and docs say what is so: numbers, commands, links, and what follows from the tables."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import texts
from texts import MODELS, study

from conftest import ROOT, missing
from stages import serve
from stages.base import files

README = texts.read("README.md")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", texts.PAGES)
def test_the_numbers_of_a_page_are_those_of_their_sources(page):
    text = texts.read(page)
    assert texts.with_numbers_of_today(text) == text, "run `python tests/texts.py`"


def test_a_stale_number_and_one_without_a_source_are_noticed():
    stale = README.replace("the second softmax | 98.57 ±", "the second softmax | 98.65 ±")
    assert stale != README
    assert texts.with_numbers_of_today(stale) == README
    with pytest.raises(ValueError, match="have no sources"):
        texts.with_numbers_of_today("A paragraph that says 3.")
    with pytest.raises(ValueError, match="1 sources for the numbers"):
        texts.with_numbers_of_today("From 3 to 4.\n<!-- = 3 -->")


def test_make_repro_ends_with_the_lines_of_the_example():
    shown = README.split("<!-- make repro -->\n")[1].split("<!-- end -->")[0]
    *table, dots, last = [line[4:] for line in shown.splitlines()]
    compared = texts.read(str(files.COMPARISON.with_suffix(".md")))
    assert table == compared.splitlines()[: len(table)]
    assert dots == "..."
    assert f'echo "{last}"\n\nstudy:' in texts.read("Makefile")


def test_the_readme_fits_into_150_lines():
    shown = [line for line in texts.SOURCES.sub("-", README).splitlines() if line != "-"]
    assert len(shown) <= 150


def test_the_address_in_the_example_is_that_of_the_server():
    assert re.findall(r"localhost:(\d+)", README) == [str(serve.PORT)]


def outside(column: str) -> list[tuple[str, str]]:
    """The published figures that do not lie in one of our intervals."""
    found = []
    for model in MODELS.values():
        for quantity in ("accuracy %", "loss"):
            [there] = study(model, quantity, "published")
            low, high = study(model, quantity, column)
            if not float(low) <= float(there) <= float(high):
                found.append((model, quantity))
    return found


def test_what_the_study_concludes_follows_from_its_tables():
    for column in ("95 % interval of the mean", texts.ONE_MORE_RUN):
        assert outside(column) == [("LeNet-5", "accuracy %")]
    for recipe, sign in (("published", "-"), ("published_without_softmax", "+")):
        assert study(f"LeNet-5 minus MLP, {recipe}", "points")[0].startswith(sign)
    lessened = {*re.findall(r'worth\("(\w+)"', texts.read("docs/study.md"))}
    assert len(lessened) == 5
    with_zero = set()
    for model, most in ("LeNet-5", "schedule"), ("MLP", "distortions"):
        worth = {name: float(texts.worth(name, models=model)[0]) for name in lessened}
        assert max(worth, key=worth.__getitem__) == f"record_without_{most}"
        for name in lessened:
            low, high = texts.worth(name, "95 % over seeds", model)
            with_zero |= {(model, name)} if float(low) <= 0 <= float(high) else set()
    assert with_zero == {("LeNet-5", "record_in_20_epochs"), ("MLP", "record_without_decay")}


def test_what_is_said_of_the_search_follows_from_its_tables():
    rows = texts.rows("study/findings/settings.csv")  # the largest share of each rung first
    for model in MODELS:
        first = [row for row in rows if (row["model"], row["rung"]) == (model, "1")]
        rates = {"learning_rate of adamw", "learning_rate of sgd"}
        assert {row["setting"] for row in first[:3]} == {*rates, "batch_size"}
        [share] = [float(row["share"]) for row in first if row["setting"] == "distortion"]
        assert share < 0.01
    second = next(row for row in rows if (row["model"], row["rung"]) == ("lenet5", "2"))
    assert (second["setting"], second["best"]) == ("teacher_epochs", "15")
    for number in (1, 2):
        assert texts.rows(f"study/search/mlp-{number}.csv")[0]["teachers"] != "0"


def test_the_metrics_diff_is_what_dvc_says_of_the_history():
    example = re.search(r"    \$ dvc metrics diff (\w+) (\w+)\n((?:    .*\n)+)", README)
    assert example
    before, after, shown = example.groups()
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{before}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
    )
    if known.returncode:
        missing("this clone is shallow: it lacks the commit that the README compares with")
    command = [str(Path(sys.executable).parent / "dvc"), "metrics", "diff", before, after]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = [line.strip() for line in shown.splitlines()]
    assert [line.strip() for line in said.splitlines()] == expected
    assert len(expected) == 1 + 3


def test_the_experiments_show_both_accuracies_in_120_columns():
    [command] = re.findall(r"^    (dvc exp show .*)$", README, re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "120", "DVC_PAGER": "cat"}
    said = subprocess.run(
        command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    columns = next(line.split() for line in said if "Experiment" in line)
    scores = [f"{model}.{score}" for model in MODELS for score in ("accuracy", "loss")]
    assert columns == ["Experiment", *scores, "recipe"]
    assert max(map(len, said)) <= 120


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_and_make_target_of_a_text_exists(path):
    text = texts.read(str(path))
    targets = re.findall(r"^([a-z]+):", texts.read("Makefile"), re.M)
    assert {*re.findall(r"`make ([a-z]+)|^    make ([a-z]+)", text, re.M)} <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }
    for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
        [link] = filter(None, link)
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_tree_of_the_pipeline_is_that_of_the_folder():
    tree = texts.read("docs/pipeline.md").split("\n## Where things are\n")[1].splitlines()
    folder, named = ROOT, set()
    for line in (line for line in tree if re.match(r"    +[\w/.]+(, | {2})", line)):
        indent, names = re.match(r"( +)([^\s,]+(?:, [^\s,]+)*)", line).groups()
        folder = folder if len(indent) > 4 else ROOT
        for name in names.split(", "):
            assert (folder / name).exists() or name in ("data", "models"), name
            named.add(name.rstrip("/"))
        folder = ROOT / names if len(indent) == 4 and names.endswith("/") else folder
    assert named >= {"prepare.py", "params.yaml", "networks", "study", "dvc_mlflow"}


def test_the_published_fingerprints_are_the_committed_ones():
    shown = re.findall(
        r"^    (lenet5|mlp) +(initial|trained|outputs) +([0-9a-f]{64})$",
        texts.read("docs/exact.md"),
        re.M,
    )
    details = json.loads((ROOT / files.EVALUATION).read_text("utf-8"))
    outputs = files.read_fingerprints(details["outputs"])
    expected = []
    for model in MODELS:
        training = json.loads((ROOT / files.training_path(model)).read_text("utf-8"))
        initial, *_, trained = files.read_fingerprints(training["weights"]).values()
        expected += [(model, "initial", initial), (model, "trained", trained)]
        expected += [(model, "outputs", outputs[model])]
    assert shown == expected
