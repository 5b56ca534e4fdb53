"""Nested settings have a flat name each in MLflow."""

from dvc_mlflow import results


def test_nested_settings_are_flattened_for_mlflow():
    assert results.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": 3,
    }
