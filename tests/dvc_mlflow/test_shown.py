"""What a run shows of a result: its files, numbers and curves. No store is needed."""

import hashlib
import json
from pathlib import Path

import pytest

from dvc_kit import files
from dvc_mlflow import schema, shown
from dvc_mlflow.result import Result


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def result(stage: str, outs=(), deps=(), params=(), **more) -> Result:
    described = f"the description of {stage}"
    return Result(Path(), stage, described, dict(params), dict(outs), dict(deps), **more)


def write(path: str, text: str) -> str:
    """Write a file; its md5."""
    files.write_text(Path(path), text)
    return hashlib.md5(text.encode()).hexdigest()


def places(made: Result) -> set[str]:
    return {place.as_posix() for place in shown.of_result(made).files}


def test_curves_of_the_same_column_are_told_apart_by_their_files():
    live = "dvclive/plots/metrics"
    paths = ["logs/train/fit.csv", "logs/test/fit.csv", f"{live}/train/loss.tsv", f"{live}/f1.tsv"]
    for path in paths:
        column, tab = ("f1" if "f1" in path else "loss"), "\t" if path.endswith("tsv") else ","
        write(path, f"step{tab}{column}\n0{tab}2\n1{tab}1\n")
    plots = {path: {"x": "step"} for path in (*paths[:2], live)}
    made = result("fit", dict.fromkeys(plots, "any"), plots=plots)
    names = {name for name, _, _ in shown.of_result(made).points}
    assert names == {"train.fit.loss", "test.fit.loss", "train.loss", "f1"}  # as DVCLive's own


def test_small_outs_are_kept_and_of_a_folder_what_people_look_at(monkeypatch):
    monkeypatch.setattr(shown, "SMALL", 1000)
    seen = ("a.json", "b.csv", "c.md", "d.png", "f.txt", "g.svg", "h.html", "i.yaml")
    for name in (*seen, "e.safetensors", "j.npz", "k", "below/l.png"):
        write(f"folder/{name}", name)
    write("any.npz", "1" * 1000)
    write("large.json", "1" * 1001)
    for at in range(shown.MOST_FILES + 1):
        write(f"many/{at:03}.txt", "")
    folders, sized = dict.fromkeys(["folder", "many"], "any.dir"), ("any.npz", "large.json", "?")
    sizes = {"any.npz": 1000, "large.json": 1001}
    made = result("fit", folders | dict.fromkeys(sized, "any"), sizes=sizes)
    assert set(shown.wanted(made)) == {"folder/*", "any.npz", "many/*"}
    many = {f"{at:03}.txt" for at in range(shown.MOST_FILES)}
    assert places(made) == {*seen, "any.npz"} | many


def test_all_files_of_a_metric_or_a_plot_are_kept_unless_they_are_huge(monkeypatch):
    monkeypatch.setattr(shown, "SMALL", 10)
    monkeypatch.setattr(shown, "LARGEST", 1000)
    write("plots/a/b.jpg", "1" * 1000)
    write("plots/c.npz", "1" * 1001)
    write("plots/roc.json", json.dumps({"curve": [{"fpr": 0.0, "tpr": 0.5}]}))
    write("m.json", "{}")
    outs = {"plots": "any", "m.json": "any"}
    made = result("fit", outs, plots={"plots": {}}, metrics=("m.json",), sizes={"plots": 2001})
    table = f"{schema.TABLES}/plots/roc.json"
    assert places(made) == {"plots/a/b.jpg", "plots/roc.json", table, "m.json"}


def test_files_of_the_same_name_in_two_outs_are_both_kept():
    outs = {path: write(path, path) for path in ("train/a.txt", "test/a.txt", "b/a.txt")}
    made = result("fit", outs, sizes=dict.fromkeys(outs, 1))
    kept = shown.of_result(made).files
    assert sorted(file.read_text() for file in kept.values()) == sorted(outs)
