"""What an installed dvc-mlflow does, without this repository: a source distribution has this test.

It needs pytest, git, and the Python that has dvc-mlflow: ``python -m pytest tests``. With
MLFLOW_TRACKING_URI in the environment, the runs are those of that server.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
FILES = {
    "dvc.yaml": """
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [rate]
    outs: [net.bin]
    metrics: [{scores.json: {cache: false}}]
    plots: [{loss.csv: {cache: false, x: epoch}}]
artifacts:
  net: {path: net.bin, type: model}
""",
    "params.yaml": "rate: 0.5\n",
    "train.py": """
import os
from pathlib import Path

import dvc_mlflow

with dvc_mlflow.run("train") as run:
    for epoch in range(1, 4):
        run.log_epoch({"epoch": epoch, "loss": 1 / epoch})
    Path("scores.json").write_text('{"accuracy": 0.75}')
    Path("loss.csv").write_text("epoch,loss\\n1,1\\n2,0.5\\n3,0.25\\n")
    Path("net.bin").write_bytes(os.urandom(8))  # new to a server that has runs of this test
""",
}


@pytest.fixture
def call(tmp_path):
    """Runs a command in a small repository with a result; its output."""

    def called(*command: str, code: int = 0, **more: str) -> str:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "MIRROR": "off", "PYTHONSAFEPATH": "1", **more}
        ended = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False
        )
        assert ended.returncode == code, f"{command}:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    called("git", "init", "--quiet")
    called("git", "config", "user.name", "a")
    called("git", "config", "user.email", "a@example.com")
    called("dvc", "init", "--quiet")
    called("dvc", "repro", "--quiet")
    called("git", "add", "--all")
    called("git", "commit", "--quiet", "--message=a result")
    return called


@pytest.mark.slow
def test_a_result_has_one_run_which_its_commit_leads_to(call, tmp_path):
    from mlflow import MlflowClient

    assert "0 of 1 results have their run" in call("dvc-mlflow", "status", code=1)
    assert "logged the run of train from its results" in call("dvc-mlflow", "sync")
    assert "1 of 1 results have their run" in call("dvc-mlflow", "status")
    assert call("dvc-mlflow", "sync") == ""
    assert call("git", "status", "--porcelain") == ""
    [run_id] = re.findall(r" train .*/runs/(\w+)", call("dvc-mlflow", "find", "HEAD"))
    client = MlflowClient(
        os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{tmp_path}/mlflow.db"
    )
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["rate"]) == ("FINISHED", "0.5")
    assert (run.data.metrics["accuracy"], run.data.metrics["loss"]) == (0.75, 0.25)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 3
    models = client.search_logged_models([run.info.experiment_id])
    assert [model.name for model in models if model.source_run_id == run.info.run_id] == ["net"]
    assert call("dvc-guard", "damage") == ""
    call("dvc", "repro", "--force", "--quiet", MIRROR="on")  # the stage writes this run itself
    assert call("dvc-mlflow", "sync") == ""
    states = client.search_runs([run.info.experiment_id], "tags.stage = 'train'")
    assert [state.info.status for state in states] == ["FINISHED", "FINISHED"]
    assert states[0].data.metrics["accuracy"] == 0.75
