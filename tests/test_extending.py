"""A third model is a file, a name and a section; a further metric is a function and a line."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from machines import STUDY

from conftest import ROOT, Clone, client_of, make_clone
from dvc_kit.errors import InputError
from stages import declare
from stages.base import params
from stages.networks import MODELS
from stages.show import page

SOFTMAX = '''\
"""Softmax regression: one fully connected layer, 1024-10."""

from stages.networks.model import Layer, Model


def logits(network, x):
    from stages.arithmetic import exact
    from stages.networks.models import LARGEST, SCALE, SHIFT

    weight, bias = network.weights("fc")
    return exact.linear(x.flatten(1), weight * SCALE, bias, LARGEST, SHIFT)


MODEL = Model(
    title="Softmax regression",
    spoken="softmax regression",
    color="#009E73",
    dark="#2fd3a5",
    marker="^",
    dashes=":",
    layers={"fc": Layer("Linear", (1024, 10), 10_250)},
    logits=logits,
    javascript="""(w) => {
    const fc = linear(scaled(w["fc.weight"]), w["fc.bias"]);
    return (x) => ({ logits: fc(x, stepFor(LARGEST, 2 ** 20)) });
  }""",
)
'''
SECTION = """
documented:
  softmax: {epochs: 2, batch_size: 64, learning_rate: 0.01, momentum: 0.9, dropout: 0.0,
            softmax_before_loss: false}
"""
NO_STAGE = (
    "error: dvc.yaml trains lenet5, mlp, stages/networks/__init__.py lists lenet5, mlp, softmax: "
    "`python -m stages.declare` adds what dvc.yaml lacks"
)
SHOWN = ("lenet5", "mlp", "softmax")


@pytest.fixture(scope="module")
def third(raw, tmp_path_factory) -> Clone:
    """A clone with a third model, in which the small pipeline has run. Tests leave it as it is."""
    clone = make_clone(tmp_path_factory.mktemp("third") / "a clone")
    clone.make_small()
    clone.commit("small")
    (clone.path / "stages/networks/softmax.py").write_text(SOFTMAX, encoding="utf-8")
    clone.edit("stages/networks/__init__.py", '("lenet5", "mlp")', str(SHOWN))
    clone.edit("recipes.yaml", "\ndocumented:\n", SECTION)
    refused = clone.run("make", "repro", "INSTALLED=params.yaml", check=False)
    assert refused.returncode == 2 and NO_STAGE in refused.stderr
    clone.run("python", "-m", "stages.declare")
    written = clone.run("git", "status", "--porcelain", "--untracked-files=all").stdout.split()
    assert written[1::2] == [
        *("dvc.yaml", "recipes.yaml", "stages/networks/__init__.py", "stages/networks/softmax.py")
    ]
    ran = clone.repro(env={"MIRROR": "on"})
    assert sorted(ran) == ["evaluate", "plot", "prepare", *(f"train_{name}" for name in SHOWN)]
    clone.commit("three models")
    return clone


@pytest.mark.slow
def test_a_third_model_is_scored_shown_and_logged_like_the_others(third):
    shown = json.loads(third.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    metrics = shown["reports/metrics.json"]["data"]
    assert [*metrics] == ["lenet5", "mlp", "paired_difference", "softmax"]
    compared = (third.path / "reports/comparison.md").read_text(encoding="utf-8")
    row = f"| Softmax regression | recipe documented | {metrics['softmax']['accuracy']:.2%} | "
    assert row in re.sub(" +", " ", compared)
    assert "LeNet-5 minus MLP on the same images" in compared
    figures = {path.stem for path in (third.path / "reports/figures").glob("*.png")}
    assert {f"{kind}_{name}" for kind in ("curves", "mistakes") for name in SHOWN} < figures
    client = client_of(third)
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    colors = {run.data.params.get("model"): run.data.tags.get("mlflow.runColor") for run in runs}
    assert all(colors[name] for name in SHOWN) and len({colors[name] for name in SHOWN}) == 3
    assert {version.tags["model"] for version in client.search_model_versions()} <= {*SHOWN}
    drawn = third.run("dvc", "plots", "show").stderr
    assert drawn == ""


@pytest.mark.slow
def test_the_page_has_three_models_with_their_own_looks_and_answers(third):
    text = (third.path / page.PATH).read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert [*json.loads(data)["titles"].values()] == ["LeNet-5", "MLP", "Softmax regression"]
    looks = dict(re.findall(r"^i\.(\w+) {(.*)}$", text, re.M))
    colors = dict(re.findall(r"^\.(\w+) { --of: (#\w+); }$", text, re.M))
    assert [*looks] == [*colors] == [*SHOWN]
    assert len({*looks.values()}) == len({*colors.values()}) == 3
    assert "LeNet-5, the MLP and softmax regression on MNIST</h1>" in text
    assert "softmax: (w) => {" in text


ONE_SEED = STUDY.replace("[lenet5, mlp]", "[lenet5, mlp, softmax]")


@pytest.mark.slow
def test_a_third_model_is_part_of_a_study_with_one_seed(third, tmp_path):
    subprocess.run(["cp", "-a", third.path, tmp_path / "a copy"], check=True)
    copy, study = Clone(tmp_path / "a copy"), Clone(tmp_path / "a copy/study")
    for cell in (study.path / "cells").iterdir():
        cell.unlink()
    (study.path / "params.yaml").write_text(ONE_SEED, encoding="utf-8")
    off = {"MIRROR": "off"}
    study.run("dvc", "repro", "bits", env=off)
    hashed = json.loads((study.path / "bits.json").read_text(encoding="utf-8"))["bits"]
    assert [*hashed["documented"]] == [*SHOWN] and [*hashed["fast"]] == ["lenet5", "mlp"]
    committed = json.loads((ROOT / "study/bits.json").read_text(encoding="utf-8"))["bits"]
    assert hashed["fast"] == committed["fast"]  # a further model makes no training stale
    copy.run("python", "-m", "study.engine", env=off)
    study.run("dvc", "repro", "--single-item", "report", env=off)
    cells = {path.stem for path in (study.path / "cells").iterdir()}
    assert cells == {f"documented-{name}-{seed}" for name in SHOWN for seed in (0, "validation")}
    report = (study.path / "report/study.md").read_text(encoding="utf-8")
    assert "| Softmax regression | documented |" in re.sub(" +", " ", report)
    assert "Softmax regression" in (study.path / "report/study.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_further_metric_is_one_function_and_one_line(third, tmp_path):
    subprocess.run(["cp", "-a", third.path, tmp_path / "a copy"], check=True)
    copy = Clone(tmp_path / "a copy")
    copy.edit("stages/scoring.py", "# A new metric is", TOP_2 + "# A new metric is")
    line = '    "top_2": Metric("among the two", ".2%", top_2),\n'
    copy.edit("stages/scoring.py", '    "errors": ', line + '    "errors": ')
    assert copy.repro(env={"MIRROR": "on"}) == ["evaluate", "plot"]
    details = json.loads((copy.path / "reports/evaluation.json").read_text(encoding="utf-8"))
    metrics = json.loads((copy.path / "reports/metrics.json").read_text(encoding="utf-8"))
    [header] = re.findall("^.* model .*$", (copy.path / "reports/comparison.md").read_text(), re.M)
    assert [part.strip() for part in header.split("|")][-4:-1] == [
        *("calibration error", "among the two", "parameters")
    ]
    client = client_of(copy)
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    logged = next(run for run in runs if "lenet5.top_2" in run.data.metrics).data.metrics
    for name in SHOWN:
        assert metrics[name]["accuracy"] < details[name]["top_2"] < 1
        assert logged[f"{name}.top_2"] == details[name]["top_2"]


TOP_2 = '''\
def top_2(answers: "Answers") -> float:
    """How often the label is among the two most likely digits."""
    two = answers.probabilities.argsort(1)[:, -2:]
    return float((two == answers.labels[:, None]).any(1).mean())


'''


def test_dvc_yaml_and_the_registry_have_to_name_the_same_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    params.check_stages()  # no pipeline here
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    Path("dvc.yaml").write_text(text, encoding="utf-8")
    params.check_stages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "MODEL_NAMES", ("lenet5",))
        with pytest.raises(InputError, match=r"lists lenet5: .* list there or remove here$"):
            params.check_stages()
        patch.setattr(params, "MODEL_NAMES", SHOWN)
        patch.setitem(MODELS, "softmax", MODELS["mlp"])
        with pytest.raises(InputError, match=f"^{NO_STAGE[7:]}"):
            params.check_stages()
        declare.main()
        params.check_stages()
    added = Path("dvc.yaml").read_text(encoding="utf-8")
    lines = [line for line in added.splitlines() if line not in text.splitlines()]
    assert len(lines) > 15 and all("softmax" in line or "MLP" in line for line in lines)
    kept = [line for line in added.splitlines() if "softmax" not in line]
    assert set(kept) == set(text.splitlines())  # nothing else is changed
