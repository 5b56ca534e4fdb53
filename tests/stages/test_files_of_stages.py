"""Results are written as the same bytes every time, where dvc.yaml says, and read back."""

import json
import math
import re

import pytest

from stages.base import files
from stages.base.files import rounded


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_floats_are_rounded_to_6_significant_digits_wherever_they_are():
    value = {"a": [1 / 3, (2 / 3, "1.23456789")], "b": {"c": -1e4 / 3}, "d": 123456789, "e": True}
    assert rounded(value) == {
        "a": [0.333333, [0.666667, "1.23456789"]],
        "b": {"c": -3333.33},
        "d": 123456789,
        "e": True,
    }


def test_json_is_sorted_with_lists_of_numbers_on_one_line_and_has_no_infinity(folder):
    value = {"b": [1, 2.0, 1e-7, -3], "a": {"d": ["x", "y"], "c": 2 / 3}, "e": []}
    files.write_json(folder / "x.json", value)
    text = (folder / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value | {"a": {"d": ["x", "y"], "c": 0.666667}}
    assert re.findall(r'"(\w)":', text) == ["a", "c", "d", "b", "e"]
    assert '  "b": [1, 2.0, 1e-07, -3],\n' in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(folder / "y.json", {"a": [math.inf]})
    assert not (folder / "y.json").exists()


def test_rows_with_fewer_columns_leave_theirs_empty_and_columns_read_back_as_numbers(folder):
    path = folder / "x.csv"
    files.write_rows(path, [{"a": 1, "b": 2 / 3, "c": "x, y"}, {"c": "z", "a": 2}])
    assert path.read_bytes() == b'a,b,c\n1,0.666667,"x, y"\n2,,z\n'
    files.write_csv(path, ["a", "b"], [[1, 0.5], (2, 1 / 3)])
    assert files.read_csv(path) == {"a": [1.0, 2.0], "b": [0.5, 0.333333]}
