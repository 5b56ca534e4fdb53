"""The guard knows nothing of MLflow, and the mirror nothing of the guard."""

import pkgutil
import subprocess
import sys

import pytest
from repositories import make_repository

import dvc_guard
import dvc_mlflow
from conftest import ROOT

WITHOUT = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; "
AS_PROGRAM = f"{WITHOUT} runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
IMPORT_ALL = f"{WITHOUT} import importlib; [*map(importlib.import_module, sys.argv[1:])]"


@pytest.mark.parametrize(("house", "unknown"), [(dvc_guard, "mlflow"), (dvc_mlflow, "dvc_guard")])
def test_a_house_is_imported_without_the_one_it_does_not_know(house, unknown):
    found = pkgutil.iter_modules(house.__path__, f"{house.__name__}.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    command = [sys.executable, "-c", IMPORT_ALL, unknown, *names]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and len(names) > 4, ended.stderr


@pytest.mark.slow
def test_each_command_of_the_guard_works_without_mlflow(tmp_path):
    stage = "{one: {cmd: cp given one, deps: [given], outs: [one]}}"
    made = make_repository(tmp_path / "made", {"dvc.yaml": f"stages: {stage}", "given": "1"})
    made.run("dvc", "add", "given")
    made.run("dvc", "repro")
    made.commit("the result")
    for command, said in {
        "verify --statement": "all 1 outs are the committed ones, to the bit\n",
        "attest": ", Python {}.{}.{}\n".format(*sys.version_info),
        "damage": "",
        "mend": "",
    }.items():
        guard = ["python", "-c", AS_PROGRAM, "mlflow", "dvc_guard", *command.split()]
        assert made.run(*guard).stdout.endswith(said)
    (made.path / "one").chmod(0o644)
    (made.path / "one").write_text("damaged")
    told = made.run("python", "-c", AS_PROGRAM, "mlflow", "dvc_guard", "damage", check=False)
    assert told.returncode == 1 and "`rm -r one && dvc checkout one`" in told.stderr
