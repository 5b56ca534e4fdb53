"""Every value of a result is in a real MLflow store as it is, or a line names it."""

import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_runs import result, write

from dvc_mlflow import runs, values

LARGEST = 1.7976931348623157e308
LONG = {"long": "x" * 7000, "many": [*range(3000)], "others": [*range(2999), 7]}


@pytest.fixture(scope="module")
def experiment(mlflow_store, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, mlflow_store() as experiment_id:
        patch.chdir(tmp_path_factory.mktemp("values"))
        yield experiment_id


def written(experiment: str, given: dict[str, str], options=None, **more):
    """The run of a stage with these files as metrics, or as plots with these options."""
    outs = {path: write(path, text) for path, text in given.items()}
    kind = {"metrics": (*outs,)} if options is None else {"plots": dict.fromkeys(outs, options)}
    made = result("evaluate", outs, **kind, **more)
    return MlflowClient().get_run(runs.write(experiment, made, {}))


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({"a.json": '{"loss": "nan", "best": "-inf"}'}, {"loss": math.nan, "best": -LARGEST},
         "a.json: best is -inf, and -1.7976931348623157e+308 in MLflow"),
        ({"a.json": '{"x": Infinity, "y": 1}'}, {"x": LARGEST, "y": 1}, "a.json: x is inf, and"),
        ({"a.json": f'{{"n": 1{"0" * 400}, "y": 1}}'}, {"n": LARGEST, "y": 1}, "a.json: n is inf"),
        ({"accuracy.json": "0.93"}, {"accuracy": 0.93}, ""),
        ({"a.json": '{"..": 2, "y": true}'}, {"__": 2, "y": 1}, ".. is called __ in"),
        ({"a.json": '{"a": "word", "l": [1], "n": null, "y": 1}'}, {"y": 1},
         "a.json: a, n are no numbers"),
        ({"a.csv": "acc,loss\n0.9,0.1\n"}, {},
         "a.csv is no JSON, YAML or TOML: its metrics are not in MLflow; under `plots`, its"),
        ({"a.log": "acc: [0.9"}, {}, "a.log is no JSON, YAML or TOML: its metrics are not in"),
        ({"a.txt": "0.9\n"}, {"a": 0.9}, ""),
        ({"a.json": '{"acc": 1}', "b/c.json": '{"acc": 2}'}, {"a.acc": 1, "b.c.acc": 2}, ""),
    ],
)  # fmt: skip
def test_a_number_is_there_or_named_with_its_file_and_key(
    experiment, capsys, given, expected, said
):  # fmt: skip
    found = written(experiment, given).data.metrics
    assert found.keys() == expected.keys() and repr([*found.values()]) == repr(
        [float(expected[key]) for key in found]
    )
    told = capsys.readouterr().out
    assert said in told and bool(told) == bool(said)


def test_two_numbers_or_settings_whose_names_would_be_the_same_are_both_there(experiment, capsys):
    text = '{"c d?": 3, "c d=": 4}'
    run = written(experiment, {"a.json": text}, params={"k?": 1, "k=": 2})
    assert sorted(run.data.metrics.values()) == [3, 4]
    assert sorted(run.data.params.values()) == ["1", "2"]
    assert "c d= is called c d_-" in capsys.readouterr().out


def test_a_curve_and_a_single_number_with_its_name_are_both_there_if_they_differ(experiment):
    outs = {"log.csv": write("log.csv", "step,f1,mse\n1,0.5,3\n2,0.75,2\n")}
    outs["best.json"] = write("best.json", '{"f1": 0.8, "mse": 2}')
    made = result("fit", outs, metrics=("best.json",), plots={"log.csv": {"x": "step"}})
    found = MlflowClient().get_run(runs.write(experiment, made, {})).data.metrics
    assert found == {"f1": 0.75, "mse": 2, "best.f1": 0.8}


def test_a_long_setting_or_description_ends_in_a_hash_and_it_says_so(experiment, capsys):
    made = result("fit", params=LONG | {f"k{at}": "é" * 5000 for at in range(99)})
    object.__setattr__(made, "desc", "d" * 9000)
    run = MlflowClient().get_run(runs.write(experiment, made, {}))
    assert {len(run.data.params[key]) for key in LONG} == {6000}
    assert len({run.data.params[key] for key in LONG}) == 3
    assert run.data.params["k98"] == "é" * 5000
    assert run.data.tags["mlflow.note.content"] == values.cut("d" * 9000, 8000)
    told = capsys.readouterr().out
    for key, length in ("long", "7,000"), ("many", "16,890"), ("mlflow.note.content", "9,000"):
        assert f" {key} has {length} characters: MLflow takes" in told


CURVE = {"loss": [(0, 3.0), (1, 2.0)]}


@pytest.mark.parametrize(
    ("text", "options", "expected", "said"),
    [
        *(
            (f"step,loss\n0,1\n{step},2\n", {"x": "step"}, {}, "no curve of loss in MLflow")
            for step in ("inf", "nan", "1e400", "-1", str(2**63), "1" + "0" * 400, "0")
        ),
        ("fpr,tpr\n0,1\n0.5,2\n", {"x": "fpr"}, {}, ""),
        ("loss\n3\n2\n", {}, CURVE, ""),
        ("step,loss\n0,3\n,9\n1,2\n", {"x": "step"}, CURVE, ""),
        ("step,loss\n0,3\n1,2\n2,\n", {"x": "step"}, CURVE, ""),
        ("step,loss\n0,3\ninf,2\n", {}, CURVE, ""),
        ("step,loss,v\n0,3,1\n1,2,n/a\n", {"x": "step"}, CURVE, "because it has n/a,"),
        ("actual,loss\n0,3\n1,2\n", {"y": "loss"}, CURVE, ""),
        ("hit,loss\n0,3\n1,2\n", {}, CURVE, ""),
        ("loss\n0\n1\n0\n1\n", {"y": ["loss"]}, {"loss": [(0, 0), (1, 1), (2, 0), (3, 1)]}, ""),
        ("step,loss\n0,1\n1,inf\n", {"x": "step"}, {"loss": [(0, 1), (1, LARGEST)]}, "1 points of"),
    ],
)  # fmt: skip
def test_a_plot_is_a_curve_or_a_table_and_what_looks_like_a_curve_is_named(
    experiment, capsys, text, options, expected, said
):  # fmt: skip
    run = written(experiment, {"plot.csv": text}, options)
    history = MlflowClient().get_metric_history
    assert {
        key: [(metric.step, metric.value) for metric in history(run.info.run_id, key)]
        for key in run.data.metrics
    } == expected
    told = capsys.readouterr().out
    assert said in told and bool(told) == bool(said)


def test_a_table_of_dates_and_infinities_is_a_table_of_mlflow(experiment, tmp_path):
    run = written(experiment, {"t.yaml": "- {day: 2020-01-01, x: .inf}\n"}, {"x": "day"})
    path = MlflowClient().download_artifacts(run.info.run_id, "tables/t.json", str(tmp_path))
    assert json.loads(Path(path).read_text(), parse_constant=pytest.fail)["data"] == [
        ["2020-01-01", "inf"]
    ]
