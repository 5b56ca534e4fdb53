"""What is wrong with one stage, or with one file in a commit, costs nothing else."""

import pytest
from repositories import COMMAND, make_repository

from conftest import client_of

pytestmark = pytest.mark.slow  # real `dvc` and `mlflow` in real repositories

WRITE = r"""
import os, sys

os.makedirs("all", exist_ok=True)
for name, text in {
    "last.json": '{"score": 0.V}\n',
    "crlf.csv": "step,loss\r\n0,1\r\n1,0.V\r\n",
    "ident.csv": "step,f1\n0,1\n1,0.V\n",
    "all/[a] b.csv": "step,mse\n0,1\n1,0.V\n",
}.items():
    with open(name, "w", newline="") as file:
        file.write(text.replace("V", sys.argv[1]))
"""
DVC_YAML = """
stages:
  damaged:
    cmd: printf '\\200' > damaged.csv
    plots: [damaged.csv: {cache: false}]
  huge:
    cmd: printf 'step,loss\\n0,1\\n1e400,2\\n' > huge.csv
    plots: [huge.csv: {x: step, cache: false}]
  last:
    cmd: python write.py ${v}
    metrics: [last.json: {cache: false}]
    plots: [crlf.csv: {cache: false}, ident.csv: {cache: false}, all: {cache: false}]
"""
ATTRIBUTES = "*.json export-ignore export-subst\n*.csv text\nident.csv ident eol=crlf\n"


def test_one_bad_stage_and_the_attributes_of_git_cost_no_other_stage_its_run(tmp_path):
    files = {"dvc.yaml": DVC_YAML, "write.py": WRITE, ".gitattributes": ATTRIBUTES}
    made = make_repository(tmp_path / "made", files)
    for v in ("25", "75"):
        (made.path / "params.yaml").write_text(f"v: {v}\n")
        made.run("dvc", "repro")
        made.commit(v)
    made.run("git", "config", "core.autocrlf", "true")
    for options, value in ((), 0.75), (("--rev", "HEAD~1"), 0.25):
        said = made.run(*COMMAND, "sync", *options, check=False)
        assert said.returncode == 1
        assert said.stderr.splitlines()[0].startswith("error: damaged: damaged.csv cannot be read")
        assert said.stderr.count("\n") == 2
        runs = client_of(made).search_runs(["1"])  # the newest first
        found = {run.data.tags["stage"]: run for run in reversed(runs)}
        assert [*found["last"].data.metrics.values()] == [value] * 4
        assert found["huge"].data.metrics == {}
    assert len(runs) == 3
