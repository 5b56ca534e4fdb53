"""The door of bits: what makes the trainings of the study stale, and what does not."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, Clone, make_clone, weekly
from stages.base import params
from study import bits, settings

COMMITTED = json.loads((ROOT / settings.BITS).read_text(encoding="utf-8"))
# Only what bits.json depends on: a copy is made for each planted mistake
CODE = ("dvc_guard", "dvc_kit", "dvc_mlflow", "stages", "study", "recipes.yaml", "pyproject.toml")
SCRIPT = """
import json
from study import bits
print(json.dumps(bits.everything({})["ingredients"]))
"""


@pytest.fixture
def code(tmp_path) -> Clone:
    for name in CODE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "cells", "*.egg-info", "report")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    return Clone(tmp_path)


# --- the file ---


def test_the_committed_hashes_are_those_of_this_machine(monkeypatch, settings_of_torch):
    """So each mistake in the arithmetic shows, and test_exact.py and its like need no cases."""
    monkeypatch.chdir(ROOT)
    found = bits.everything(params.load_recipes())
    assert found | {"code": ...} == COMMITTED | {"code": ...}  # `dvc status` compares the code


def test_each_recipe_model_and_ingredient_has_a_hash():
    recipes = params.load_recipes()
    names = {recipe: {*params.MODEL_NAMES} for recipe in recipes}
    assert {recipe: {*of_models} for recipe, of_models in COMMITTED["bits"].items()} == names
    choices = {
        value
        for field in ("optimizer", "schedule")
        for value in params.PlainRecipe.model_fields[field].annotation.__args__
    }
    assert {*COMMITTED["ingredients"]} >= {*params.MODEL_NAMES, *choices}
    for model in params.MODEL_NAMES:
        for kind in ("dropout in", "softmax after", "resume", "distillation of"):
            assert f"{kind} {model}" in COMMITTED["ingredients"]


def test_the_code_of_a_stage_is_hashed_without_comments_and_empty_lines(tmp_path):
    path = tmp_path / "code.py"
    path.write_text('a = "# no comment"  # a comment\n\n# another\nb = 1\n', encoding="utf-8")
    assert bits.plain(path) == 'a = "# no comment"\nb = 1'


# --- what is stale ---


def stale(clone: Clone) -> set[str]:
    """The stages of the study that `dvc status` names."""
    told = Clone(clone.path / "study").run("dvc", "status", "--json")
    return {*json.loads(told.stdout)}


def repro_bits(clone: Clone) -> None:
    Clone(clone.path / "study").run("dvc", "repro", "bits", env={"MIRROR": "off"})


@pytest.fixture
def whole(raw, tmp_path) -> Clone:
    """A clone in which nothing of the study is stale."""
    clone = make_clone(tmp_path / "a clone")
    shutil.copytree(ROOT / "data/prepared", clone.path / "data/prepared")
    assert stale(clone) == set()
    return clone


@pytest.mark.slow
def test_a_comment_in_any_python_file_makes_only_bits_stale(whole):
    listed = whole.run("git", "ls-files", "*.py").stdout.splitlines()
    assert len(listed) > 100
    for house in sorted({Path(name).parts[0] for name in listed}):
        for name in (name for name in listed if Path(name).parts[0] == house):
            with (whole.path / name).open("a", encoding="utf-8") as file:
                file.write("# a comment\n")
        assert stale(whole) <= {"bits"}, house
    assert stale(whole) == {"bits"}
    repro_bits(whole)
    assert stale(whole) == set()


def cells(recipe: str, model: str) -> set[str]:
    """The cells of a recipe and a model, as dvc.yaml names them."""
    lock = YAML(typ="safe").load(ROOT / "study/dvc.lock")["stages"]
    items = {name: name.partition("@")[2].split("-")[:2] for name in lock}
    return {name for name, item in items.items() if item == [recipe, model]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "uses"),
    [
        ("stages/learn/average.py", "FORGET = 9", "FORGET = 8", lambda recipe: recipe.averaging),
        *weekly(
            (
                "stages/learn/training.py",
                "(recipe.momentum, 0.999)",
                "(recipe.momentum, 0.998)",
                lambda recipe: recipe.optimizer == "adamw",
            )
        ),
    ],
)
def test_changed_arithmetic_makes_exactly_the_trainings_stale_that_use_it(
    whole, file, old, new, uses
):
    whole.edit(file, old, new)
    repro_bits(whole)
    expected = {
        stage
        for name, of_models in params.load_recipes().items()
        for model in params.MODEL_NAMES
        if uses(getattr(of_models, model))
        for stage in cells(name, model)
    }
    searched = {f"rung@{model}-{rung}" for model in params.MODEL_NAMES for rung in (1, 2, 3, 4)}
    searched |= {f"longer@{model}" for model in params.MODEL_NAMES}
    assert len(expected) > 5
    assert stale(whole) == expected | searched


# --- honest ---

# In which ingredients each mistake shows. A mistake in a layer shows wherever that layer is used
MISTAKES = [
    ("stages/arithmetic/functions.py", "x.clamp(-6.0, 6.0)", "x.clamp(-5.9, 6.0)", {"lenet5"}),
    ("stages/arithmetic/reference.py", "CACHED = 64", "CACHED = 65", set()),  # it changes no bit
    ("stages/learn/optimizers.py", ".add_(1e-8)", ".add_(1e-7)", {"adamw"}),
    ("stages/learn/training.py", "self.optimizer.load_state_dict(", "dict(", {"resume mlp"}),
    *weekly(
        ("stages/arithmetic/exact.py", "GRADIENT = 512", "GRADIENT = 256", {"lenet5"}),
        ("stages/learn/augmentation.py", "d * d * d * 3", "d * d * d * 2", {"distortions"}),
        ("stages/learn/teachers.py", "weight * temperature", "weight", {"distillation of mlp"}),
        ("stages/base/splits.py", "stratify=labels, r", "r", {"validation"}),
        ("study/ranking.py", "GROUPS = 4", "GROUPS = 5", {"ranking"}),
        ("stages/arithmetic/grids.py", "STEPS = 2.0**20", "STEPS = 2.0**19", {"mlp"}),
        ("stages/arithmetic/losses.py", "(1 / len(p)))).float()", "1)).float()", {"mlp"}),
        ("stages/learn/optimizers.py", "0.1 * steps - 1", "0.2 * steps - 1", {"one_cycle"}),
        ("stages/scoring.py", "CALIBRATION_BINS = 15", "CALIBRATION_BINS = 16", {"scores"}),
        ("study/cell.py", "bounds=(0.02, 50.0)", "bounds=(0.02, 49.0)", {"validation"}),
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("file", "old", "new", "shows"), MISTAKES)
def test_a_planted_mistake_shows_in_the_ingredients_that_have_it(code, file, old, new, shows):
    code.edit(file, old, new)
    found = json.loads(code.run(sys.executable, "-B", "-c", SCRIPT).stdout)
    changed = {name for name, sha in found.items() if sha != COMMITTED["ingredients"][name]}
    assert bool(changed) == bool(shows) and changed >= shows


# A training reaches these as well, but they compute nothing that is in its result
NO_ARITHMETIC = {
    "checkpoint.py": {"Checkpoint.restore"},  # of a damaged file
    "threads.py": {"use"},
    "cell.py": {"_check_outs", "check_inputs", "main", "parse"},
    "params.py": {"load", "model_name", "of_recipe"},
    "files.py": {"write_json"},
    "resume.py": {"Training.finish", "teach", "_teacher", "line"},
    "splits.py": {"_map", "_map.array", "load_split", "Split.release"},
    "settings.py": {"load", "cell_path", "Study.every_recipe", "Study.seeds_of"},
}
TRAININGS = (
    *((recipe, model, "0") for recipe in ("published", "record") for model in params.MODEL_NAMES),
    ("fast", "mlp", "0"),
    ("documented", "lenet5", "validation"),
    ("taught", "mlp", "0"),
)
TAUGHT = """
taught:
  lenet5: *published_lenet5
  mlp:
    <<: *published_mlp
    distillation:
      {teachers: 1, temperature: 2, weight: 0.5, recipe: {<<: *published_mlp, epochs: 1}}
"""


def lines_of(clone: Clone, *command: str) -> dict[str, set[int]]:
    """The lines of the pipeline and the study that a module reaches, with the reference."""
    data = clone.path / "coverage.json"
    start = [sys.executable, "-m", "coverage", "run", "--source=stages,study", "-m"]
    clone.run(*start, *command, env={"MIRROR": "off", "KERNELS": "off"})
    clone.run(sys.executable, "-m", "coverage", "json", "-q", "-o", str(data))
    content = json.loads(data.read_text(encoding="utf-8"))["files"]
    return {name: {*entry["executed_lines"]} for name, entry in content.items()}


def function_at(path: Path, line: int) -> str:
    """The dotted name of the innermost function around a line; empty at the level of the module."""
    name, nodes = "", ast.parse(path.read_text(encoding="utf-8")).body
    while inside := [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.lineno < line <= (node.end_lineno or 0)
    ]:
        name, nodes = f"{name}.{inside[0].name}".lstrip("."), inside[0].body
    return name


@pytest.mark.slow
@pytest.mark.weekly
def test_each_line_that_a_training_computes_with_is_reached_by_bits(clone):
    clone.make_small()
    text = (clone.path / "recipes.yaml").read_text(encoding="utf-8")
    text = re.sub(r"epochs: \d+", "epochs: 3", text)
    (clone.path / "recipes.yaml").write_text(text + TAUGHT, encoding="utf-8")
    clone.edit("study/params.yaml", "validation_size: 10000", "validation_size: 100")
    clone.repro("prepare", env={"MIRROR": "off"})
    repro_bits(clone)
    by_bits = lines_of(clone, "study.bits")
    left = {
        (Path(name).name, function_at(clone.path / name, line), line)
        for training in TRAININGS
        for name, lines in lines_of(clone, "study.cell", *training).items()
        for line in lines - by_bits.get(name, set())
    }
    computing = {(file, name, line) for file, name, line in left if name}
    unseen = {
        (file, name, line)
        for file, name, line in computing
        if name not in NO_ARITHMETIC.get(file, set())
    }
    assert unseen == set()
    assert {file for file, _, _ in left} >= {"cell.py"}  # both were measured
