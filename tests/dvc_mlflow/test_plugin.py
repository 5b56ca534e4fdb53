"""Code that only knows MLflow, under `dvc repro`: its runs are those of the stages.

The scripts use the autologging of scikit-learn, and MLflow by hand. Neither knows DVC or
dvc_mlflow. MLflow finds the plugin by the entry point of the installed package.
"""

import importlib.metadata

import pytest
from repositories import COMMAND, make_repository

from conftest import Clone, client_of

pytestmark = pytest.mark.slow  # real `dvc` and `mlflow` in real repositories

DATA = """
from sklearn.datasets import load_iris
load_iris(as_frame=True).frame.to_csv("iris.csv", index=False)
"""
SKLEARN = """
import joblib, mlflow, pandas
from sklearn.linear_model import LogisticRegression

mlflow.sklearn.autolog()
frame = pandas.read_csv("iris.csv")
model = LogisticRegression(C=0.5, max_iter=500).fit(frame.iloc[:, :4].values, frame.target)
joblib.dump(model, "sklearn.joblib")
"""
PLAIN = """
import json, mlflow, sys

mlflow.autolog()
with mlflow.start_run(run_name="by hand"):
    mlflow.log_params({"width": 8, "depth": "three"})
    for step in (1, 2, 3):
        mlflow.log_metric("loss", 1 / step, step=step)
    if len(sys.argv) > 1:
        sys.exit("failed on request")
json.dump({"loss": 1 / 3, "error": 0.125}, open("plain.json", "w"))
"""
FILES = {
    "dvc.yaml": """
stages:
  data:
    cmd: python data.py
    deps: [data.py]
    outs: [iris.csv]
  sklearn:
    desc: Fit a logistic regression
    cmd: python fit.py
    deps: [fit.py, iris.csv]
    params: [width]
    outs: [sklearn.joblib]
  plain:
    cmd: python plain.py
    deps: [plain.py]
    params: [width, depth]
    metrics: [plain.json: {cache: false}]
""",
    "params.yaml": "width: 8\ndepth: 3\n",
    "data.py": DATA,
    "fit.py": SKLEARN,
    "plain.py": PLAIN,
    ".gitignore": "__pycache__/\n/mlruns/\n/mlflow.db*\n",
    ".dvcignore": "__pycache__/\n",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Clone:
    """A repository after `dvc repro`, a commit and `sync`."""
    found = importlib.metadata.entry_points(group="mlflow.run_context_provider", name="dvc")
    assert found, "the plugin is not installed: `make install`"
    made = make_repository(tmp_path_factory.mktemp("plugin") / "repository", FILES)
    made.run("dvc", "repro")
    made.commit("the results")
    made.run(*COMMAND, "sync")
    return made


def runs_of(repository: Clone) -> dict[str, list]:
    client = client_of(repository)
    ids = [its.experiment_id for its in client.search_experiments()]
    by_stage: dict[str, list] = {}
    for run in client.search_runs(ids):
        by_stage.setdefault(run.data.tags.get("stage"), []).append(run)
    return by_stage


def test_each_stage_has_the_run_that_its_code_began_with_what_dvc_knows(repository):
    runs = runs_of(repository)
    assert {stage: len(its) for stage, its in runs.items()} == {
        **{"data": 1, "sklearn": 1, "plain": 1, "pipeline": 1},
    }
    [fit], [plain] = (runs[name] for name in ("sklearn", "plain"))
    assert fit.data.params["C"] == "0.5" and "training_accuracy_score" in fit.data.metrics
    assert plain.info.run_name == "by hand"
    assert not [run for run in (fit, plain) if "backfilled" in run.data.tags]
    assert "backfilled" in runs["data"][0].data.tags
    assert fit.data.params["width"] == "8"
    assert [one.dataset.name for one in fit.inputs.dataset_inputs if one.dataset.name == "iris.csv"]
    assert "out:sklearn.joblib" in fit.data.tags
    assert plain.data.params == {"width": "8", "depth": "three"}  # not the 3 of params.yaml
    assert plain.data.metrics == {"loss": pytest.approx(1 / 3), "error": 0.125}


def test_of_several_runs_the_last_finished_one_gets_the_results_and_failed_ones_stay(repository):
    [before] = runs_of(repository)["plain"]
    repository.run("python", "plain.py")  # without DVC: nobody's run
    outside = runs_of(repository)[None]
    assert [run.info.run_name for run in outside] == ["by hand"]
    as_stage = {"DVC_STAGE": "plain", "DVC_ROOT": str(repository.path)}
    repository.edit("params.yaml", "depth: 3", "depth: 4")  # which changes no result
    repository.run("python", "plain.py", env=as_stage)
    repository.run("python", "plain.py", "fail", env=as_stage, check=False)
    repository.run("dvc", "repro", "plain")
    repository.run(*COMMAND, "sync")
    last, failed, first, old = runs_of(repository)["plain"]
    assert old.info.run_id == before.info.run_id
    assert (failed.info.status, first.info.status) == ("FAILED", "FINISHED")
    assert "out:plain.json" in last.data.tags
    assert not [run for run in (failed, first) if "out:plain.json" in run.data.tags]


def test_a_run_is_never_stopped_by_the_plugin(repository):
    for wrong in ({"DVC_ROOT": "/nowhere"}, {"DVC_ROOT": str(repository.path / "no")}, {}):
        environment = {"DVC_STAGE": "no such stage", **wrong}
        assert repository.run("python", "plain.py", env=environment).stderr.count("Traceback") == 0
