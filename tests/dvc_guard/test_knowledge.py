"""The guard knows nothing of MLflow."""

import sys

import pytest
from repositories import make_repository

AS_PROGRAM = (
    "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


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
