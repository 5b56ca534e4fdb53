"""The three houses: imports go one way, each stage declares its code, and dvc_mlflow is general."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT

MAY_IMPORT = {"dvc_mlflow": set(), "stages": {"dvc_mlflow"}, "study": {"dvc_mlflow", "stages"}}
UNDECLARED = {"stages/__init__.py", "study/__init__.py"}  # they cannot change a result


def modules_of(folder: str) -> list[str]:
    """The paths of all Python files in a folder."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(path: str) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it. Some may be names in a module."""
    package = Path(path).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files_of(name: str) -> Iterator[str]:
    """The files of ours that run when a dotted name is imported, with the packages around it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        place = "/".join(parts[:end])
        yield from (file for file in (f"{place}.py", f"{place}/__init__.py") if is_ours(file))


def is_ours(path: str) -> bool:
    return Path(path).parts[0] in MAY_IMPORT and (ROOT / path).is_file()


@pytest.mark.parametrize("house", MAY_IMPORT)
def test_imports_go_from_the_study_to_the_stages_to_dvc_mlflow(house):
    ours = {*MAY_IMPORT, "benchmarks", "conftest", "tests"}
    found = {(path, name) for path in modules_of(house) for name in imported(path)}
    houses = {(path, name.split(".")[0], name) for path, name in found}
    allowed = MAY_IMPORT[house] | {house}
    wrong = sorted((path, name) for path, top, name in houses if top in ours - allowed)
    assert wrong == []
    assert {top for _, top, _ in houses} >= MAY_IMPORT[house]


# --- the code of each stage ---


def declared_stages() -> dict[str, tuple[Path, dict]]:
    """The folder and the declaration of each stage, by name."""
    return {
        name: (folder, stage.get("do", stage))
        for folder in (Path(), Path("study"))
        for name, stage in YAML(typ="safe").load(ROOT / folder / "dvc.yaml")["stages"].items()
    }


STAGES = declared_stages()


def code_of(script: str) -> set[str]:
    """The files that run with a script, but for those of dvc_mlflow and the undeclared ones."""
    seen: set[str] = set()
    waiting = set(files_of(script))
    while waiting:
        seen |= waiting
        found = {file for path in waiting for name in imported(path) for file in files_of(name)}
        waiting = {file for file in found - seen if not file.startswith("dvc_mlflow/")}
    return seen - UNDECLARED


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_that_a_stage_declares_is_the_code_that_it_imports(stage):
    folder, declaration = STAGES[stage]
    _, module = declaration["cmd"].split("python -m ")
    places = [(ROOT / folder / dep).resolve().relative_to(ROOT) for dep in declaration["deps"]]
    code = [place.as_posix() for place in places if place.parts[0] in MAY_IMPORT]
    declared = {
        file for place in code for file in ([place] if place.endswith(".py") else modules_of(place))
    }
    needed = code_of(module.split()[0])
    assert sorted(needed - declared) == [], "imported, not declared"
    assert sorted(declared - needed) == [], "declared, not imported"


# --- dvc_mlflow serves any project ---

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = None  # its import fails
import dvc_mlflow
for module in pkgutil.walk_packages(dvc_mlflow.__path__, "dvc_mlflow."):
    importlib.import_module(module.name)
    print(module.name)
assert not {name.split(".")[0] for name in sys.modules} & {"stages", "study"}
"""


def test_dvc_mlflow_needs_neither_torch_nor_the_other_houses():
    command = [sys.executable, "-c", IMPORT_ALL]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    names = {name.replace(".", "/") + ".py" for name in result.stdout.split()}
    assert names == {*modules_of("dvc_mlflow")} - {"dvc_mlflow/__init__.py"}
    everywhere = {
        name.split(".")[0] for path in modules_of("dvc_mlflow") for name in imported(path)
    }
    assert "torch" not in everywhere  # in no function either


def texts(path: str) -> Iterator[tuple[int, str]]:
    """The strings in a file with their lines: those that the program uses, not the docstrings."""
    nodes = list(ast.walk(tree(path)))
    unused = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in unused
        ):
            yield node.lineno, node.value


def test_dvc_mlflow_names_nothing_of_this_project():
    recipes = YAML(typ="safe").load(ROOT / "recipes.yaml")
    models = {model for recipe in recipes.values() for model in recipe}
    names = {*STAGES, *recipes, *models}
    assert names >= {"train_mlp", "cell", "documented", "lenet5"}
    found = [
        f"{path}:{line}: {text!r}"
        for path in modules_of("dvc_mlflow")
        for line, text in texts(path)
        if text in names or "mnist" in text.lower()
    ]
    assert found == []


def test_each_mistake_of_the_list_can_be_made_in_the_code_of_today():
    entries = json.loads((ROOT / "tests/mutants.json").read_text(encoding="utf-8"))
    gone = [one for one in entries if one["old"] not in (ROOT / one["file"]).read_text("utf-8")]
    assert entries and gone == []
