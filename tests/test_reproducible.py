"""The same bytes on every machine: other paths, languages, cores and processors."""

import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML
from test_pipeline import PIPELINE

from conftest import STAGES, Clone, crashed, flip_bit, make_clone, qemu


@pytest.mark.slow
def test_no_out_holds_a_path_a_host_a_run_or_a_moment(small_run):
    client = MlflowClient(f"sqlite:///{small_run.path / 'mlflow.db'}")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert found
    hidden = [str(small_run.path), small_run.path.name, sys.executable]
    hidden += [run.info.run_id for run in found]
    hidden += [host for host in [socket.gethostname()] if len(host) > 4]  # a shorter one is noise
    moment = re.compile(rb"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d|date|time|duration|seconds", re.I)
    for path in small_run.outs():
        content = (small_run.path / path).read_bytes()
        for text in hidden:
            assert text.encode() not in content, f"{path} holds {text}"
        if not path.endswith((".png", ".safetensors")):
            content = re.sub(rb"[A-Za-z0-9+/]{100,}", b"", content)  # weights and images in a page
            assert not moment.search(content), path
    for path in small_run.path.rglob("*.png"):
        # Of the ancillary chunks of a PNG only the resolution: no text, no time
        chunks = set(re.findall(rb"tEXt|zTXt|iTXt|tIME|eXIf", path.read_bytes()))
        assert not chunks & {b"tIME", b"eXIf"} or "mlartifacts" in path.parts


def run_stages(clone: Clone, *prefix: str) -> dict[str, str]:
    """All five stages, each started with ``prefix``; the outs."""
    for stage in STAGES:
        arguments = PIPELINE["stages"][stage]["cmd"].split()[1:]
        # A choice of kernels for this machine is none for another
        command = ["env", "-u", "OPENBLAS_CORETYPE", *prefix, sys.executable, *arguments]
        for last in (False, False, True):
            result = clone.run(*command, env={"MIRROR": "off"}, check=last)
            if not crashed(result.stderr):
                break
        assert result.returncode == 0, result.stderr
    return clone.outs()


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory) -> dict[str, str]:
    """The outs of the small pipeline, computed here and now."""
    clone = small_clone(tmp_path_factory.mktemp("native") / "a clone")
    outs = run_stages(clone)
    assert len(outs) > 20
    return outs


def small_clone(path: Path, threads: int = 1) -> Clone:
    """Without results: all that is there afterwards was computed."""
    clone = make_clone(path)
    clone.make_small()
    clone.edit("params.yaml", "threads: 0", f"threads: {threads}")
    shutil.rmtree(clone.path / "reports")
    return clone


@pytest.mark.weekly
@pytest.mark.slow
def test_an_emulated_processor_without_avx_computes_the_same_bytes(expected, tmp_path):
    emulator = qemu(os.environ.get("EMULATED_CPU", "Nehalem"))
    assert run_stages(small_clone(tmp_path / "a clone"), *emulator) == expected


@pytest.mark.slow
def test_verify_agrees_with_what_is_committed_and_finds_a_changed_bit_in_each_out(copy):
    copy.commit("the small results")
    good = copy.run("python", "-m", "dvc_guard", "verify")
    assert "outs are the committed ones, to the bit" in good.stdout

    lock = YAML(typ="safe").load(copy.path / "dvc.lock")["stages"]
    outs = [out["path"] for stage in lock.values() for out in stage["outs"]]
    for out in outs:
        path = copy.path / out
        flip_bit(next(path.glob("*.*")) if path.is_dir() else path)
    found = copy.run("python", "-m", "dvc_guard", "verify", check=False)
    assert found.returncode == 1
    for out in outs:
        assert f"{out} in this folder is not the committed one" in found.stdout


@pytest.mark.weekly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "origin"),
    [
        ("stages/mnist/idx.py", "train = train[:", "train = train[1 :",
         "begins with stage prepare"),
        ("stages/arithmetic/numerics.py", "torch.manual_seed(seed)", "torch.manual_seed(seed + 1)",
         "begins with stage train_lenet5: the weights of lenet5, initial"),
        ("stages/learn/training.py", "loss.backward()", "(1.01 * loss).backward()",
         "begins with stage train_lenet5: the weights of lenet5, first batch"),
        ("stages/show/figures.py", "markersize=4", "markersize=5", "begins with stage plot"),
    ],
)  # fmt: skip
def test_verify_says_where_a_difference_begins(copy, file, old, new, origin):
    copy.edit(file, old, new)
    copy.commit("code that does not belong to dvc.lock")
    result = copy.run("python", "-m", "dvc_guard", "verify", check=False)
    assert result.returncode == 1
    assert origin in result.stdout
    assert "DIFFERS" in result.stdout
