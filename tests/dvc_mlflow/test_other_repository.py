"""A repository that is not ours: three stages of scikit-learn, with dvc_mlflow and nothing else.

There are no settings and no hooks. DVC, git, MLflow and scikit-learn are real.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import ROOT, Clone, client_of

pytestmark = [pytest.mark.slow, pytest.mark.weekly]  # real `dvc` and `mlflow` in real repositories

STAGES = ["split", "fit", "evaluate"]
DVC_YAML = """
stages:
  split:
    desc: Split the digits of scikit-learn
    cmd: python split.py
    deps: [split.py]
    params: [seed, test_share]
    outs: [data]
  fit:
    desc: Fit a perceptron
    cmd: python fit.py
    deps: [fit.py, data]
    params:
      - kind
      - seed
      - kinds.yaml: ["${kind}"]
    outs: [models/perceptron.joblib]
    plots:
      - curves/loss.csv: {x: iteration, y: loss, template: linear}
  evaluate:
    desc: Score it
    cmd: python evaluate.py
    deps: [evaluate.py, data, models/perceptron.joblib]
    metrics:
      - metrics.json: {cache: false}
    plots:
      - confusion.csv: {x: actual, y: predicted, template: confusion}
artifacts:
  digits:
    path: models/perceptron.joblib
    type: model
"""
SPLIT = """
import numpy as np, yaml
from pathlib import Path
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
import dvc_mlflow

settings = yaml.safe_load(Path("params.yaml").read_text())
with dvc_mlflow.run("split"):
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=settings["test_share"], random_state=settings["seed"])
    Path("data").mkdir(exist_ok=True)
    np.savez("data/digits.npz", **dict(zip(["x", "x_test", "y", "y_test"], parts)))
    Path("data/counts.csv").write_text(f"train,test\\n{len(parts[0])},{len(parts[1])}\\n")
"""
FIT = """
import csv, joblib, numpy as np, yaml
from pathlib import Path
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
import dvc_mlflow

settings = yaml.safe_load(Path("params.yaml").read_text())
kind = yaml.safe_load(Path("kinds.yaml").read_text())[settings["kind"]]
with dvc_mlflow.run("fit") as run:
    data = np.load("data/digits.npz")
    model = SGDClassifier(loss="log_loss", alpha=kind["alpha"], random_state=settings["seed"])
    rows = []
    for iteration in range(1, kind["iterations"] + 1):
        model.partial_fit(data["x"], data["y"], classes=range(10))
        loss = round(log_loss(data["y"], model.predict_proba(data["x"])), 6)
        rows.append({"iteration": iteration, "loss": loss})
        run.log_epoch({"epoch": iteration, "loss": loss})
    for folder in ("curves", "models"):
        Path(folder).mkdir(exist_ok=True)
    with open("curves/loss.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["iteration", "loss"])
        writer.writeheader()
        writer.writerows(rows)
    joblib.dump(model, "models/perceptron.joblib")
"""
EVALUATE = """
import csv, json, joblib, numpy as np
import dvc_mlflow

with dvc_mlflow.run("evaluate"):
    data, model = np.load("data/digits.npz"), joblib.load("models/perceptron.joblib")
    predicted = model.predict(data["x_test"])
    accuracy = float((predicted == data["y_test"]).mean())
    with open("metrics.json", "w") as file:
        json.dump({"digits": {"accuracy": accuracy}, "images": len(predicted)}, file)
    with open("confusion.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["actual", "predicted"], *zip(data["y_test"], predicted)])
"""
FILES = {
    "dvc.yaml": DVC_YAML,
    "params.yaml": "seed: 3\ntest_share: 0.25\nkind: quick\n",
    "kinds.yaml": "quick: {iterations: 4, alpha: 0.001}\nslow: {iterations: 9, alpha: 0.0001}\n",
    "split.py": SPLIT,
    "fit.py": FIT,
    "evaluate.py": EVALUATE,
    # With the cached outs, which DVC would add: then the first run would find a changed file
    ".gitignore": "/mlflow.db*\n/mlartifacts/\n__pycache__/\n/data\n/models\n/curves\n",
    ".dvcignore": "__pycache__/\n",
}
COMMAND = ("python", "-m", "dvc_mlflow")


def make_repository(folder: Path, files: dict[str, str], *, git: bool = True) -> Clone:
    """A DVC repository with some files and a copy of dvc_mlflow."""
    repository = Here(folder)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dvc_mlflow", folder / "dvc_mlflow", ignore=ignored)
    if git:
        repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.run("dvc", "init", "--quiet", *([] if git else ["--no-scm"]))
    return repository


class Here(Clone):
    """A repository whose own copy of dvc_mlflow is imported."""

    def start(self, *command: str, env: dict[str, str] | None = None):
        # Without bytecode, which its git would show
        own = {"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}
        return super().start(*command, env=own | (env or {}))


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Clone:
    """A repository in which `dvc repro` has run, and whose results are committed."""
    made = make_repository(tmp_path_factory.mktemp("other") / "digits", FILES)
    made.commit("the code")
    ran = made.run("dvc", "repro", env={"MIRROR": "on"})
    assert "warning" not in ran.stderr
    made.commit("the results")
    return made


def runs_of(repository: Clone, experiment: str = "digits") -> dict:
    """The newest run of each stage."""
    client = client_of(repository)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.data.tags["stage"]: run for run in reversed(found)}


def loss_of(repository: Clone) -> list[tuple[int, float]]:
    with (repository.path / "curves/loss.csv").open(newline="") as file:
        return [(int(row["iteration"]), float(row["loss"])) for row in csv.DictReader(file)]


def assert_complete(repository: Clone) -> None:
    """Each run has the settings, metrics, curves and files of its stage."""
    client, runs = client_of(repository), runs_of(repository)
    assert set(runs) == {*STAGES, "pipeline"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["split"].data.params == {"seed": "3", "test_share": "0.25"}
    quick = {"kind": "quick", "iterations": "4", "alpha": "0.001", "seed": "3"}
    assert runs["fit"].data.params == {**quick, "model": "digits"}
    history = client.get_metric_history(runs["fit"].info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == loss_of(repository)
    scores = json.loads((repository.path / "metrics.json").read_text())
    metrics = {"digits.accuracy": scores["digits"]["accuracy"], "images": scores["images"]}
    assert runs["evaluate"].data.metrics == metrics
    kept = {
        stage: {file.path for file in client.list_artifacts(run.info.run_id)}
        for stage, run in runs.items()
    }
    assert kept == {
        "split": {"counts.csv"},
        "fit": {"loss.csv"},
        "evaluate": {"metrics.json", "confusion.csv"},
        "pipeline": {"metrics.json", "confusion.csv"},
    }
    pipeline = runs["pipeline"]
    assert pipeline.info.run_name == "pipeline quick"
    assert pipeline.data.params == {**quick, "test_share": "0.25"}
    assert pipeline.data.metrics == metrics
    for stage in STAGES:
        assert runs[stage].data.tags["mlflow.parentRunId"] == pipeline.info.run_id
        assert runs[stage].info.run_id in pipeline.data.tags["mlflow.note.content"]
    [model] = client.search_logged_models([runs["fit"].info.experiment_id])
    assert (model.name, str(model.status)) == ("digits", "READY")
    assert model.source_run_id == runs["fit"].info.run_id
    found = {metric.key: metric.value for metric in model.metrics}
    assert found["trained_model.accuracy"] == scores["digits"]["accuracy"]
    assert client.search_registered_models() == []


def test_dvc_repro_writes_a_run_for_each_stage_and_one_over_all(repository):
    assert_complete(repository)
    head = repository.run("git", "rev-parse", "HEAD~1").stdout.strip()
    for stage in STAGES:
        tags = runs_of(repository)[stage].data.tags
        assert (tags["commit"], tags["dirty"]) == (head, "false")
        assert "backfilled" not in tags


def test_status_and_sync_find_nothing_to_do(repository):
    assert repository.run(*COMMAND, "status").stdout == "3 of 3 results have their run\n"
    assert repository.run(*COMMAND, "sync").stdout == ""
    assert repository.run(*COMMAND, "sync", "--rev", "HEAD").stdout == ""
    assert repository.run(*COMMAND, "damage").stdout == ""
    links = repository.run(*COMMAND, "links").stdout
    page = r"http://127\.0\.0\.1:5000/#/experiments/1/runs\?"
    assert re.fullmatch(rf"runs +{page}.*stages.*\ncharts +{page}.*CHART.*\n", links)


def find(repository: Clone, what: str) -> str:
    return repository.run(*COMMAND, "find", what).stdout


def test_runs_models_and_files_lead_to_their_commit_and_it_leads_back(repository):
    head = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    told = find(repository, "HEAD")
    found = dict(re.findall(r"^  (\w+) +http://\S+/runs/([0-9a-f]{32})\S*$", told, re.M))
    assert found == {stage: runs_of(repository)[stage].info.run_id for stage in STAGES}
    [model] = client_of(repository).search_logged_models(["1"])
    pipeline = runs_of(repository)["pipeline"].info.run_id
    for what in (*found.values(), pipeline, model.model_id, "models/perceptron.joblib"):
        told = find(repository, what)
        assert re.findall(r"^  commit ([0-9a-f]{7})", told, re.M) == [head[:7]], what
    assert f"made by run {found['fit']}" in find(repository, "models/perceptron.joblib")


@pytest.fixture
def copy(repository, tmp_path) -> Clone:
    """A copy without the store."""
    skipped = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "*.sock")
    shutil.copytree(repository.path, tmp_path / "digits", ignore=skipped, symlinks=True)
    return Here(tmp_path / "digits")


def test_sync_writes_everything_again_after_the_store_is_lost(copy):
    refused = copy.run(*COMMAND, "status", check=False)
    assert refused.stdout == "0 of 3 results have their run\n"
    assert (
        "no complete run for split, fit, evaluate in " in refused.stderr and refused.returncode == 1
    )
    said = copy.run(*COMMAND, "sync").stdout
    assert said.splitlines() == [f"logged the run of {name} from its results" for name in STAGES]
    assert_complete(copy)
    assert copy.run(*COMMAND, "sync").stdout == ""
    shutil.rmtree(copy.path / "mlartifacts")
    said = copy.run(*COMMAND, "sync").stdout
    lost = ("counts.csv", "loss.csv", "metrics.json, confusion.csv")
    assert said.splitlines() == [
        f"completed the run of {stage}, which had lost {names}"
        for stage, names in zip(STAGES, lost, strict=True)
    ]
    assert_complete(copy)


HOOKS = """
from pathlib import Path
from dvc_mlflow.hooks import Dataset

def reads(result):
    return ["data"] if "data" in result.deps else []

def datasets(result):
    if "data" in result.deps:
        yield Dataset("digits", Path("data/digits.npz"), "training", "{}", 1797)

def metrics(path):
    return {"tables": len(list(path.glob("*.csv")))} if path == Path("data") else {}

def judge(evidence, champion, against):
    return champion is None, f"judged by {evidence.name}"

def evidence(model):
    return Path("metrics.json")

def score(path):
    return 1.0
"""
SETTINGS = """
[tool.dvc-mlflow]
experiment = "mine"
hooks = "my_hooks"
registered_model = "mine too"
"""


def test_hooks_of_its_own_lie_in_the_main_folder(copy):
    (copy.path / "my_hooks.py").write_text(HOOKS, encoding="utf-8")
    (copy.path / "pyproject.toml").write_text(SETTINGS, encoding="utf-8")
    below = Clone(copy.path / "models")
    said = below.run(*COMMAND, "sync", env={"PYTHONPATH": str(ROOT)}).stdout  # of another place
    assert said.count("logged the run of ") == 3
    runs = runs_of(copy, "mine")
    assert runs["split"].data.metrics == {"tables": 1.0}
    read = {entry.dataset.name: entry.tags[0].value for entry in runs["fit"].inputs.dataset_inputs}
    assert read == {"digits": "training", "data": "dep"}
    version = client_of(copy).get_model_version_by_alias("mine too", "champion")
    assert version.description == "judged by metrics.json"
    assert "models:/mine too/1: judged by" in find(copy, "models:/mine too@champion")
    assert copy.run(*COMMAND, "sync").stdout == ""


def test_its_commit_is_verified_and_attested(copy):
    said = copy.run(*COMMAND, "verify", "--statement").stdout
    assert "all 5 outs are the committed ones, to the bit" in said
    assert "wrote reports/rebuilds/" in said
    assert copy.run(*COMMAND, "attest").stdout.splitlines()[1].split() == ["data", "0", "1", "0"]


# --- other places ---

TINY = """
import json, pathlib, sys
import dvc_mlflow
with dvc_mlflow.run(sys.argv[1]) as run:
    for epoch in (1, 2):
        run.log_epoch({"epoch": epoch, "loss": 1 / epoch})
    pathlib.Path(sys.argv[2]).write_text(json.dumps({"score": 0.5, "of": sys.argv[1]}))
"""
PLACES = {
    "dvc.yaml": """
stages:
  here:
    cmd: python tiny.py here here.json
    metrics: [here.json: {cache: false}]
  moved:
    wdir: deep/er
    cmd: python ../../tiny.py moved made.json
    deps: [../../here.json]
    metrics: [made.json: {cache: false}]
""",
    "deep/er/.keep": "",
    "sub/dvc.yaml": """
stages:
  grid:
    matrix: {rate: "${rates}"}
    cmd: python ../tiny.py grid@${item.rate} grid-${item.rate}.json
    metrics: ["grid-${item.rate}.json": {cache: false}]
""",
    "sub/params.yaml": "rates: [1, 2]\n",
    "tiny.py": TINY,
    ".gitignore": "/mlflow.db*\n/mlartifacts/\n__pycache__/\n",
}
RAN = {".": {"here", "moved", "pipeline"}, "sub": {"grid@1", "grid@2", "pipeline"}}


def repro_both(repository: Clone, **env: str) -> None:
    for folder in (repository.path, repository.path / "sub"):
        at = {"PYTHONPATH": str(repository.path), "MIRROR": "on", **env}
        ran = Clone(folder).run("dvc", "repro", env=at)
        assert "warning" not in ran.stderr, ran.stderr


@pytest.mark.parametrize("place", ["git", "no git", "below git"])
def test_stages_that_run_in_other_folders_and_projects_have_their_runs(tmp_path, place):
    folder = tmp_path / ("repository/digits" if place == "below git" else "digits")
    folder.mkdir(parents=True)
    root, below, names = Clone(folder), "", {".": "digits", "sub": "digits-sub"}
    if place == "below git":
        root, below = Clone(folder.parent), "digits/"
        names = {".": "repository-digits", "sub": "repository-digits/sub"}
        root.run("git", "init", "--quiet", "--initial-branch=main")
        repository = make_repository(folder, PLACES, git=False)
        shutil.rmtree(folder / ".dvc")
        repository.run("dvc", "init", "--quiet", "--subdir")
    else:
        repository = make_repository(folder, PLACES, git=place == "git")
    kind = "--no-scm" if place == "no git" else "--subdir"
    (Clone(folder / "sub")).run("dvc", "init", "--quiet", kind)
    if place != "no git":
        repository.commit("the code")
    repro_both(repository)
    runs = {project: runs_of(root, name) for project, name in names.items()}
    for project, stages in RAN.items():
        assert set(runs[project]) == stages
        assert {run.info.status for run in runs[project].values()} == {"FINISHED"}
    outs = {
        tag: run.data.metrics["score"]
        for found in runs.values()
        for run in found.values()
        for tag in run.data.tags
        if tag.startswith("out:")
    }
    made = ("here.json", "deep/er/made.json", "sub/grid-1.json", "sub/grid-2.json")
    assert outs == {f"out:{below}{path}": 0.5 for path in made}
    assert runs["sub"]["grid@2"].data.params == {"rate": "2"}
    first, second = repository.run(*COMMAND, "status").stdout.splitlines()
    whole = "2 of 2 results have their run"
    assert first == (f"digits: {whole}" if below else whole)
    assert second == f"{below}sub: {whole}"
    assert repository.run(*COMMAND, "sync").stdout == ""
    if place != "no git":
        repository.commit("the results")
        assert find(repository, "HEAD").count("/runs/") == 4
        for found in runs.values():
            for run in found.values():
                assert "  commit " in find(repository, run.info.run_id)
        assert {run.data.tags["dirty"] for run in runs["sub"].values()} == {"false"}
        (root.path / "mlflow.db").unlink()
        said = repository.run(*COMMAND, "sync", "--rev", "HEAD").stdout
        assert said.splitlines() == [
            f"logged the run of {below}here from its results",
            f"logged the run of {below}moved from its results",
            f"logged 2 runs of {below}sub: grid from their results",
        ]
        assert repository.run(*COMMAND, "sync").stdout == ""
    repository.run(*COMMAND, "mend")
    repository.run(*COMMAND, "damage")
