"""A worker computes only in a clone that is the coordinator's, to the byte."""

import threading
from dataclasses import replace

import pytest
from tiny import make_project

from dvc_kit.files import md5
from study import worker
from study.orders import Order, Reply


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small repository as the worker's clone, and an order for which it is fit."""
    project = make_project(tmp_path / "clone")
    monkeypatch.setattr(worker, "ROOT", project.path)
    monkeypatch.chdir(tmp_path)
    prepared = md5(project.path / "data/prepared")
    order = Order(
        "cell@fast-mlp-0",
        "study.cell",
        ("fast", "mlp", "0"),
        "study/cells/fast-mlp-0.json",
        commit=project.git("rev-parse", "HEAD"),
        versions=worker.versions(),
        prepared=prepared,
    )
    return project, order


def test_a_clone_with_the_same_commit_code_libraries_and_images_is_fit(clone):
    project, order = clone
    assert {"Python", "torch", "numpy"} <= {*(order.versions or {})}
    assert worker.unfit(order) == ""
    # Its own results are no changes
    for path in ("study/cells/new-mlp-0.json", "study/dvc.lock", "study/report/study.md"):
        project.write(path, "{}")
    assert worker.unfit(order) == ""


@pytest.mark.parametrize("path", ["params.yaml", "recipes.yaml", "study/cell.py", "stages/new.py"])
def test_a_changed_or_new_file_of_code_or_settings_is_named(clone, path):
    project, order = clone
    project.write(path, "# changed\n")
    assert worker.unfit(order) == f"its clone has changes in {path}: `git stash --all` there"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"commit": "0" * 40},
            "its clone has commit {head}, not 000000000000: `git fetch && git c",
        ),
        ({"versions": {"torch": "1.0"}}, "it has torch "),
        ({"versions": {"numpy": "1.0"}}, ", not 1.0: `make install` there"),
        ({"versions": {"Python": "3.9"}}, "make its .venv with that Python"),
        ({"versions": {"none": "1"}}, "it has none (none), not 1"),
        ({"prepared": "0.dir"}, "its data/prepared is not the one here: `dvc repro prepare` there"),
    ],
)
def test_a_clone_that_differs_says_in_what_and_the_cure(clone, changed, line):
    project, order = clone
    line = line.format(head=project.git("rev-parse", "HEAD")[:12])
    order = replace(order, **changed)
    assert line in worker.unfit(order)
    # No cell is computed then, and the reply names the machine
    reply = Reply.model_validate(worker.answer(vars(order)))
    assert reply.unfit and line in reply.fault and not reply.content
    assert reply.worker.endswith(f":{project.path}")


def test_a_cell_that_fails_is_a_reply_with_its_last_line(clone):
    """This repository has no module study.cell."""
    _, order = clone
    reply = worker.compute(replace(order, commit=""))
    assert not reply.unfit
    assert reply.fault.startswith("`python -m study.cell fast mlp 0`: ")
    assert "\n" not in reply.fault


def test_a_cell_that_nobody_waits_for_is_ended(clone):
    project, order = clone
    project.write("study/__init__.py", "")
    project.write("study/cell.py", "import time\ntime.sleep(20)\n")
    threading.Timer(2, worker.stop.set).start()
    try:
        assert worker.compute(replace(order, commit="")).fault == "its coordinator has gone"
    finally:
        worker.stop.clear()
