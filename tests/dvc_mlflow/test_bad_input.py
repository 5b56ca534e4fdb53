"""Repositories that something is wrong with: one line for each fault, and all other runs."""

import subprocess

import pytest
from test_other_repository import COMMAND, Here, make_repository
from test_shapes import runs_of

from conftest import Clone, client_of

pytestmark = pytest.mark.slow  # real `dvc` and `mlflow` in real repositories

MANY = 1_000_000
FILES = {
    "dvc.yaml": """
stages:
  good:
    cmd: echo '{"score":1}' > good.json
    metrics: [good.json: {cache: false}]
  deep:
    cmd: python deep.py
    metrics: [deep.json: {cache: false}]
  long:
    cmd: python long.py
    plots: [long.csv: {x: step}]
  reads:
    cmd: echo x > read.txt
    params: [here.yaml: [a]]
    outs: [read.txt: {cache: false}]
""",
    "deep.py": """
import json

tree = 0.5
for depth in range(50):
    tree = {f"level{depth}": tree}
json.dump({"tree": tree, "words": "none", "list": [1, 2]}, open("deep.json", "w"))
""",
    "long.py": f"""
with open("long.csv", "w") as file:
    file.write("step,loss\\n")
    file.writelines(f"{{step}},{{1 / (step + 1)}}\\n" for step in range({MANY}))
""",
    "here.yaml": "a: 1\n",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Clone:
    made = make_repository(tmp_path_factory.mktemp("faults") / "faults", FILES)
    made.run("dvc", "repro")
    made.commit("the results")
    return made


@pytest.fixture
def faulty(ran, tmp_path) -> Clone:
    subprocess.run(["cp", "-r", ran.path, tmp_path / "faults"], check=True)
    return Here(tmp_path / "faults")


def test_deep_metrics_and_a_plot_of_a_million_rows_are_shortened_and_it_says_so(faulty):
    said = faulty.run(*COMMAND, "sync").stdout
    assert f"loss has {MANY:,} points: 2,501 of them are logged" in said
    assert " is called " in said
    runs = runs_of(faulty)
    [(key, value)] = runs["deep"].data.metrics.items()
    assert len(key) == 250 and value == 0.5
    history = client_of(faulty).get_metric_history(runs["long"].info.run_id, "loss")
    steps = [metric.step for metric in history]
    assert (len(steps), steps[0], steps[-1]) == (2501, 0, MANY - 1)


def test_a_settings_file_that_is_gone_costs_nothing_because_the_lock_has_the_values(faulty):
    (faulty.path / "here.yaml").unlink()
    faulty.run(*COMMAND, "sync")
    assert runs_of(faulty)["reads"].data.params == {"a": "1"}


def test_a_lock_with_conflict_markers_is_named(faulty):
    lock = faulty.path / "dvc.lock"
    lock.write_text(f"<<<<<<< HEAD\n{lock.read_text()}=======\n>>>>>>> other\n", encoding="utf-8")
    result = faulty.run(*COMMAND, "sync", check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: dvc.yaml: dvc.lock has conflict markers: `git checkout")


def test_a_shallow_clone_is_mirrored(faulty, tmp_path):
    subprocess.run(
        ["git", "clone", "--quiet", "--depth=1", f"file://{faulty.path}", tmp_path / "shallow"],
        check=True,
    )
    shallow = Here(tmp_path / "shallow")
    said = shallow.run(*COMMAND, "sync", "--all", check=False)
    assert said.stdout.count("logged the run of") == 4
    assert "1 files are not here, and are only linked (long.csv)" in said.stderr


def test_a_folder_without_a_dvc_repository_is_refused(tmp_path):
    (tmp_path / "plain").mkdir()
    subprocess.run(["git", "init", "--quiet", tmp_path / "plain"], check=True)
    told = Here(tmp_path / "plain").run(*COMMAND, "sync", check=False, env={"PYTHONPATH": ""})
    assert told.returncode == 2
    assert told.stderr == f"error: {tmp_path / 'plain'} is in no DVC repository: run this in one\n"
