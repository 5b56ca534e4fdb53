"""Repositories of every shape that DVC allows: `dvc repro` with plain commands, and then `sync`.

No code of these repositories knows MLflow. DVC, git and MLflow are real.
"""

import json
from pathlib import Path

import pytest
from test_other_repository import COMMAND, make_repository

from conftest import Clone, client_of

pytestmark = pytest.mark.slow  # real `dvc` and `mlflow` in real repositories

# Writes its first argument into the file of its second, and so on
WRITE = """
import pathlib, sys
for path, text in zip(sys.argv[1::2], sys.argv[2::2]):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(text.replace("|", "\\n").replace("^", "\\t"))
"""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
FILES = {
    "write.py": WRITE,
    "dvc.yaml": """
vars:
  - folder: made
  - more.yaml
stages:
  template:
    desc: Writes into ${folder}
    cmd: python write.py ${folder}/out.txt text
    outs: ["${folder}/out.txt": {cache: false}]
  each:
    foreach: ${items}
    do:
      cmd: python write.py each-${item}.json '{"score":${item}}'
      metrics: ["each-${item}.json": {cache: false}]
  grid:
    matrix:
      rate: [0.1, 0.2]
      kind: [a, b]
    cmd: python write.py grid-${item.rate}-${item.kind}.yaml 'loss:${item.rate}'
    metrics: ["grid-${item.rate}-${item.kind}.yaml"]
  settings:
    cmd: python write.py scores.toml 'top = 0.5|[deep]|low = 0.25|name = "x"'
    params:
      - depth
      - more.yaml: [items]
      - other.json: [width.left]
      - third.toml: [table.rate]
      - fourth.py: [EPOCHS, Model.size]
    metrics: [scores.toml: {cache: false}]
  curves:
    cmd: >-
      python write.py a.csv 'step,loss|0,1.5|1,0.5' b.tsv 'epoch^accuracy|1^0.5|2^0.75'
      c.json '{"rows":[{"step":3,"f1":0.1},{"step":5,"f1":0.2}]}'
      d.yaml '- {step: 0, recall: 0.5}|- {step: 1, recall: 0.6}' roc.json
      '[{"fpr":0.0,"tpr":0.1},{"fpr":0.5,"tpr":0.9}]' plain.csv 'mse|4|3|2'
    outs: [roc.json]
    plots:
      - a.csv: {x: step}
      - b.tsv: {x: epoch, y: accuracy}
      - c.json: {x: step}
      - d.yaml: {x: step, cache: false}
      - plain.csv
  pictures:
    cmd: python draw.py
    plots: [p]
  reads:
    cmd: cp imported.txt copied.txt
    deps: [imported.txt]
    outs: [copied.txt: {cache: false}]
  asleep:
    cmd: python write.py asleep.txt x
    outs: [asleep.txt]
  checks:
    cmd: python -c "pass"
    deps: [copied.txt]
  odd:
    cmd: python write.py 'odd (1) = ä.json' '{"a b=c":1,"nan":NaN,"LONG":2,"text":"x","list":[1]}'
    metrics: ["odd (1) = ä.json": {cache: false}]
  never:
    cmd: "false"
    outs: [never.txt]
plots:
  - ROC: {x: fpr, y: {roc.json: tpr}, template: simple}
""".replace("LONG", "n" * 300),
    "draw.py": f"""
import base64, pathlib
pathlib.Path("p").mkdir(exist_ok=True)
pathlib.Path("p/one.png").write_bytes(base64.b64decode("{PNG}"))
""",
    "more.yaml": "items: [1, 2]\n",
    "params.yaml": "depth: 3\nunused: 1\n",
    "other.json": '{"width": {"left": 7}}',
    "third.toml": "[table]\nrate = 0.125\n",
    "fourth.py": "EPOCHS = 4\nclass Model:\n    size = 'big'\n",
    "imported.txt": "imported\n",
    "sub/dvc.yaml": """
stages:
  template:
    wdir: ../elsewhere
    cmd: python ../write.py moved.json '{"moved":1}'
    metrics: [moved.json: {cache: false}]
""",
    "elsewhere/.keep": "",
    "live/dvc.yaml": "metrics: [metrics.json]\nplots: [plots: {x: step}]\n",
    "live/metrics.json": '{"final": 0.9}',
    "live/plots/train/loss.tsv": "step\tloss\n0\t3\n1\t2\n",
}
RAN = {
    *("template", "each@1", "each@2", "grid@0.1-a", "grid@0.1-b", "grid@0.2-a", "grid@0.2-b"),
    *("settings", "curves", "pictures", "reads", "asleep", "checks", "odd"),
    "sub/dvc.yaml:template",
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Clone:
    """A repository in which every stage but one has run, and a first sync."""
    made = make_repository(tmp_path_factory.mktemp("shapes") / "shapes", FILES)
    made.run("dvc", "add", "imported.txt")
    made.run("dvc", "repro", "--keep-going", check=False)
    made.run("dvc", "repro", "sub/dvc.yaml")
    made.run("dvc", "freeze", "asleep")
    made.commit("the results")
    before = made.run("git", "status", "--porcelain").stdout
    said = made.run(*COMMAND, "sync")
    assert said.stderr == ""
    assert made.run("git", "status", "--porcelain").stdout == before == ""
    return made


def runs_of(repository: Clone) -> dict:
    found = client_of(repository).search_runs(["1"], max_results=1000)
    return {run.data.tags["stage"]: run for run in found}


def test_every_locked_stage_has_one_run_and_the_state_of_the_lock_has_one(shapes):
    found = client_of(shapes).search_runs(["1"], max_results=1000)
    assert sorted(run.data.tags["stage"] for run in found) == sorted({*RAN, "pipeline"})
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["project"] for run in found} == {"."}
    [parent] = [run.info.run_id for run in found if run.data.tags["stage"] == "pipeline"]
    below = [run for run in found if run.info.run_id != parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {parent}


def test_settings_of_all_formats_and_of_each_item_are_params(shapes):
    runs = runs_of(shapes)
    assert runs["settings"].data.params == {
        **{"depth": "3", "items": "[1, 2]", "width.left": "7", "table.rate": "0.125"},
        **{"EPOCHS": "4", "Model.size": "big"},
    }
    assert runs["grid@0.2-b"].data.params == {"rate": "0.2", "kind": "b"}
    assert runs["each@2"].data.params == {"item": "2"}
    assert runs["template"].data.tags["mlflow.note.content"] == "Writes into made"


def test_metrics_of_all_formats_are_metrics(shapes):
    runs = runs_of(shapes)
    assert runs["settings"].data.metrics == {"top": 0.5, "deep.low": 0.25}
    assert runs["each@2"].data.metrics == {"score": 2}
    assert runs["sub/dvc.yaml:template"].data.metrics == {"moved": 1}
    odd = runs["odd"].data.metrics
    assert odd.pop("a b_c") == 1 and str(odd.pop("nan")) == "nan"
    [(name, value)] = odd.items()
    assert len(name) == 250 and name.startswith("nnn") and value == 2
    assert runs["pipeline"].data.metrics["final"] == 0.9


def test_plots_whose_x_counts_steps_are_curves_and_others_are_tables(shapes):
    client, runs = client_of(shapes), runs_of(shapes)

    def curve(stage: str, key: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(runs[stage].info.run_id, key)
        return [(metric.step, metric.value) for metric in history]

    assert curve("curves", "loss") == [(0, 1.5), (1, 0.5)]
    assert curve("curves", "accuracy") == [(1, 0.5), (2, 0.75)]
    assert curve("curves", "f1") == [(3, 0.1), (5, 0.2)]
    assert curve("curves", "recall") == [(0, 0.5), (1, 0.6)]
    assert curve("curves", "mse") == [(0, 4), (1, 3), (2, 2)]
    assert curve("pipeline", "train.loss") == [(0, 3), (1, 2)]
    assert "tpr" not in runs["curves"].data.metrics
    run_id = runs["curves"].info.run_id
    path = client.download_artifacts(run_id, "tables/roc.json")
    table = json.loads(Path(path).read_text(encoding="utf-8"))
    assert table == {"columns": ["fpr", "tpr"], "data": [[0.0, 0.1], [0.5, 0.9]]}
    shown = {file.path for file in client.list_artifacts(runs["pictures"].info.run_id, "p")}
    assert shown == {"p/one.png"}


def test_a_second_sync_writes_nothing(shapes):
    count = len(client_of(shapes).search_runs(["1"], max_results=1000))
    for options in ((), ("--rev", "HEAD"), ("--all",), ("--dry",)):
        said = shapes.run(*COMMAND, "sync", *options)
        assert (said.stdout, said.stderr) == ("", "")
    assert len(client_of(shapes).search_runs(["1"], max_results=1000)) == count
    assert (
        shapes.run(*COMMAND, "status").stdout
        == f"{len(RAN)} of {len(RAN)} results have their run\n"
    )
