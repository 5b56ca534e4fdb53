"""The names of settings, metrics and tags in MLflow."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from dvc_mlflow import naming


def check(name: str) -> None:
    """MLflow's own rules."""
    validation._validate_metric(name, 1.0, 0, 0)
    validation._validate_param(name, "1")
    validation._validate_tag(name, "1")


@pytest.mark.parametrize(
    "name",
    ["a=b", "ä ö (1)", "a/../b", "./a", "a//b", "/a/b/", "x" * 251, "ü" * 300, "out:data/[1].csv"],
)
def test_a_name_that_mlflow_refuses_becomes_one_that_it_takes(name):
    with pytest.raises(MlflowException):
        check(name)
    check(naming.named(name))


@pytest.mark.parametrize("name", ["a", "lenet5.epochs", "out:a b/c-d.json", "n" * 250, "größe"])
def test_a_name_that_mlflow_takes_stays_as_it_is(name):
    check(name)
    assert naming.named(name) == name


def test_long_names_that_differ_only_at_their_end_stay_apart():
    assert naming.named("n" * 300 + "a") != naming.named("n" * 300 + "b")


@pytest.mark.parametrize(
    ("settings", "item", "expected"),
    [
        # The value of a setting is left out of keys if `strip` names the setting, and only then
        ({"s": "a", "a.epochs": 1}, {}, {"s": "a", "epochs": 1}),
        ({"mode": "train", "train.epochs": 1}, {}, {"mode": "train", "train.epochs": 1}),
        ({"a.b": {"c": 1, "d": {"e": 2}}}, {"s": "b"}, {"a.c": 1, "a.d.e": 2, "s": "b"}),
        ({"s": "a", "a": {"k": 1}}, {}, {"s": "a", "k": 1}),
        # A name that would be empty, or that of another setting, stays as it is
        ({"s": "test", "test": 0.2}, {}, {"s": "test", "test": 0.2}),
        ({"s": "x", "t": "y", "x.k": 1, "y.k": 2}, {}, {"s": "x", "t": "y", "x.k": 1, "y.k": 2}),
        ({"s": "x", "x.k": 2, "k": 1}, {}, {"s": "x", "x.k": 2, "k": 1}),
        ({"x.n": 1}, {"s": "x", "n": 5}, {"x.n": 1, "s": "x", "n": 5}),
        # Two files with the same key, and a matrix with the name of a setting
        ({"lr": 1, "b.yaml:lr": 2, "b.yaml:n": 3}, {}, {"lr": 1, "b.yaml:lr": 2, "n": 3}),
        ({"a": {"lr": 1}, "b.yaml:a.lr": 2}, {}, {"a.lr": 1, "b.yaml:a.lr": 2}),
        ({"c.yaml:lr": 1, "b.yaml:lr": 2}, {}, {"c.yaml:lr": 1, "b.yaml:lr": 2}),
        ({"seed": 1}, {"seed": 2}, {"seed": 1, "item.seed": 2}),
        # The only model of a stage is a setting
        ({"seed": 1, "svm.c": 2}, {"": "svm"}, {"model": "svm", "seed": 1, "c": 2}),
        ({"c": 1, "svm.c": 2}, {"": "svm"}, {"model": "svm", "c": 1, "svm.c": 2}),
        ({"model": "x", "svm.c": 2, "x.d": 1}, {"": "svm"}, {"model": "x", "svm.c": 2, "d": 1}),
    ],
)
def test_no_two_settings_have_one_name_and_no_value_changes_one_undeclared(
    settings, item, expected
):
    tracked = [
        naming.Setting(file or "params.yaml", not file, key, naming.flat(value))
        for told, value in settings.items()
        for file, _, key in [told.rpartition(":")]
    ]
    model = item.pop("", "")
    strip = ["s", "t", "gone", "model"]
    found, _ = naming.names(tracked, naming.Item(item, item), strip, model)
    assert found == expected
