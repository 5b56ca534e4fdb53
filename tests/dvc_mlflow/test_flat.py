"""The names of settings, metrics and tags in MLflow."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from dvc_mlflow import results


def test_nested_settings_are_flattened_for_mlflow():
    assert results.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": 3,
    }


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
    check(results.named(name))


@pytest.mark.parametrize("name", ["a", "lenet5.epochs", "out:a b/c-d.json", "n" * 250, "größe"])
def test_a_name_that_mlflow_takes_stays_as_it_is(name):
    check(name)
    assert results.named(name) == name


def test_long_names_that_differ_only_at_their_end_stay_apart():
    assert results.named("n" * 300 + "a") != results.named("n" * 300 + "b")
