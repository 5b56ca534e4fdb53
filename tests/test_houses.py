"""The houses: imports go one way, stages declare their code, no house knows another's secrets."""

import ast
import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from stages.base.params import MODEL_NAMES
from study import bits

MAY_IMPORT: dict[str, set[str]] = {
    "dvc_kit": set(),
    "dvc_mlflow": {"dvc_kit"},
    "dvc_guard": {"dvc_kit", "dvc_mlflow"},
    "stages": {"dvc_kit", "dvc_mlflow", "dvc_guard"},
    "study": {"dvc_kit", "dvc_mlflow", "dvc_guard", "stages"},
}
# What a house for any DVC repository does without, beside the houses that it may not import
NEVER = {
    "dvc_kit": {"dvc", "mlflow", "torch"},
    "dvc_mlflow": {"torch"},
    "dvc_guard": {"mlflow", "torch"},
}
LONGEST_FILE, LONGEST_CLASS = 300, 150  # lines


def modules_of(folder: str) -> list[str]:
    """The paths of all Python files in a folder."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))


MODULES = {house: modules_of(house) for house in MAY_IMPORT}


@functools.cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@functools.cache
def imported(path: str, types: bool = True) -> frozenset[str]:
    """The dotted names that a file imports, anywhere in it. Some may be names in a module.

    Args:
        types: Also those that only a type checker imports.
    """
    names = set()
    package = Path(path).parent.parts
    nodes = list(ast.walk(tree(path)))
    checks = [node for node in nodes if isinstance(node, ast.If)]
    of_types = [node for node in checks if ast.unparse(node.test) == "TYPE_CHECKING"]
    unseen = {id(inner) for node in of_types for part in node.body for inner in ast.walk(part)}
    for node in (node for node in nodes if types or id(node) not in unseen):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def files_of(name: str) -> list[str]:
    """The files of ours that run when a dotted name is imported: its packages, then the module."""
    parts = name.split(".")
    places = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    files = [file for place in places for file in (f"{place}/__init__.py", f"{place}.py")]
    return [file for file in files if parts[0] in MAY_IMPORT and (ROOT / file).is_file()]


@pytest.mark.parametrize("house", MAY_IMPORT)
def test_imports_go_from_the_study_to_the_kit(house):
    names = {(path, name) for path in MODULES[house] for name in imported(path)}
    ours = {*MAY_IMPORT, "benchmarks", "conftest", "tests"} - MAY_IMPORT[house] - {house}
    assert sorted(name for name in names if name[1].split(".")[0] in ours) == []


def test_files_and_classes_are_short():
    long = set()
    for path in [*itertools.chain(*MODULES.values()), "install.py"]:
        if (ROOT / path).read_text(encoding="utf-8").count("\n") > LONGEST_FILE:
            long.add(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= LONGEST_CLASS:
                long.add(f"{path}: {node.name}")
    assert long == set()


# --- the code of each stage ---

NO_RESULT = ("dvc_mlflow/", "dvc_guard/")  # these houses cannot change a result
UNDECLARED = {"stages/__init__.py", "study/__init__.py"}  # nor can these files
WHOLE = "dvc_kit/"  # small, and declared as a whole
# The registry, and the models that it lists. A stage declares those that it trains or shows
REGISTRY = {f"stages/networks/{name}.py" for name in ("__init__", *MODEL_NAMES)}


def declared_stages() -> dict[str, tuple[Path, dict]]:
    """The folder and the declaration of each stage, by name."""
    return {
        name: (folder, stage.get("do", stage))
        for folder in (Path(), Path("study"))
        for name, stage in YAML(typ="safe").load(ROOT / folder / "dvc.yaml")["stages"].items()
    }


STAGES = declared_stages()


def code_of(stage: str) -> set[str]:
    """The files that run with a stage's script, but for those that cannot change a result."""
    _, module = STAGES[stage][1]["cmd"].split("python -m ")
    seen: set[str] = set()
    waiting = {*files_of(module.split()[0])}
    while waiting:
        seen |= waiting
        names = {name for path in waiting for name in imported(path, types=False)}
        files = {file for name in names for file in files_of(name)}
        waiting = {file for file in files - seen - REGISTRY if not file.startswith(NO_RESULT)}
    return seen - UNDECLARED


def declared_code(stage: str) -> set[str]:
    """The files of ours among the dependencies of a stage."""
    folder, declaration = STAGES[stage]
    places = [(ROOT / folder / dep).resolve().relative_to(ROOT) for dep in declaration["deps"]]
    code = [place.as_posix() for place in places if place.parts[0] in MAY_IMPORT]
    return {file for place in code for file in below(place)}


def test_no_compiled_file_can_change_a_folder_outside_of_its_project():
    """.dvcignore ends at the study, and `stages` lets Python write none."""
    declared = {dep for folder, stage in STAGES.values() if folder.parts for dep in stage["deps"]}
    outside = {dep for dep in declared if dep.startswith("../") and modules_of(f"study/{dep}")}
    assert outside and all(dep.startswith("../stages/") for dep in outside)


def depends_on_bits(stage: str) -> bool:
    """Whether a stage depends on the hashes in study/bits.json instead of on code."""
    return any("bits.json" in param for param in STAGES[stage][1].get("params", ()))


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_that_a_stage_declares_is_the_code_that_it_imports(stage):
    """What a stage imports that depends on bits is declared by the stage that makes them."""
    declared = declared_code(stage)
    through_bits = [name for name in STAGES if depends_on_bits(name)]
    if stage in through_bits:
        assert declared == set()
        return
    needed = code_of(stage).union(*map(code_of, through_bits if stage == "bits" else ()))
    assert sorted(needed - declared) == [], "imported, not declared"
    of_models = {file for path in REGISTRY for name in imported(path) for file in files_of(name)}
    unneeded = declared - needed - REGISTRY - of_models
    unneeded = {file for file in unneeded if not file.startswith(WHOLE)}
    assert sorted(unneeded) == [], "declared, not imported"


@pytest.mark.parametrize("stage", bits.CODE)
def test_the_code_that_is_hashed_for_a_stage_is_the_code_that_it_imports(stage):
    hashed = {file for place in bits.CODE[stage] for file in below(place)}
    assert sorted(code_of(stage) - hashed) == []


def below(place: str) -> list[str]:
    return [place] if place.endswith(".py") else modules_of(place)


def test_a_new_model_makes_no_other_training_stale():
    for name in MODEL_NAMES:
        models = {f"stages/networks/{model}.py" for model in ("lenet5", name)}  # of teachers
        assert declared_code(f"train_{name}") & REGISTRY == models
    assert declared_code("evaluate") >= REGISTRY <= declared_code("plot")


# --- houses that serve any project ---

IMPORT_ALL = """
import importlib, pkgutil, sys
house, *others = sys.argv[1:]
sys.modules |= dict.fromkeys(others)  # their import fails
for module in pkgutil.walk_packages([house], house + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
    print(module.name)
"""


@pytest.mark.parametrize("house", NEVER)
def test_a_house_for_any_project_needs_neither_torch_nor_the_other_houses(house):
    others = {*MAY_IMPORT} - MAY_IMPORT[house] - {house} | NEVER[house]
    command = [sys.executable, "-c", IMPORT_ALL, house, *sorted(others)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    names = {name.replace(".", "/") + ".py" for name in result.stdout.split()}
    assert names == {*MODULES[house]} - {f"{house}/__init__.py"}
    everywhere = {name.split(".")[0] for path in MODULES[house] for name in imported(path)}
    assert "torch" not in everywhere  # in no function either


# --- what a house knows ---


def texts(path: str) -> Iterator[tuple[int, str]]:
    """The strings in a file with their lines: those that the program uses, not the docstrings."""
    nodes = list(ast.walk(tree(path)))
    unused = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in unused:
            yield node.lineno, node.value


def test_the_mirror_the_guard_and_the_kit_name_nothing_of_this_project():
    recipes = YAML(typ="safe").load(ROOT / "recipes.yaml")
    models = {model for recipe in recipes.values() for model in recipe}
    names = {*STAGES, *recipes, *models}
    assert names >= {"train_mlp", "cell", "documented", "lenet5"}
    named = [
        f"{path}:{line}: {text!r}"
        for house in NEVER
        for path in MODULES[house]
        for line, text in texts(path)
        if text in names or "mnist" in text.lower()
    ]
    assert named == []


def test_each_mistake_of_the_list_can_be_made_in_the_code_of_today():
    entries = json.loads((ROOT / "tests/mutants.json").read_text(encoding="utf-8"))
    gone = [
        entry for entry in entries if entry["old"] not in (ROOT / entry["file"]).read_text("utf-8")
    ]
    assert entries and gone == []
