"""Statements of rebuilds, in a small repository and of this one."""

import getpass
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from repositories import GUARD, make_repository
from tiny import Project, make_project

from conftest import ROOT, qemu
from dvc_guard import attest
from dvc_kit.errors import StageError

OUT = "models/mlp.safetensors"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """A repository with results in its last commit."""
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    return project


def written(project: Project) -> Path:
    """A statement about some outs of the commit."""
    outs = {path: project.md5(path) for path in (OUT, "reports/figures")}
    return attest.write(project.git("rev-parse", "HEAD"), outs)


def test_a_statement_counts_and_names_no_host_path_or_user(project, capsys):
    path = written(project)
    text = path.read_text(encoding="utf-8") + path.name
    for name in (socket.gethostname(), str(project.path), str(ROOT), getpass.getuser()):
        # as a word: a host may be called "vm", and a library "llvmlite"
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), name
    attest.report()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["out", "machines", "emulated"]
    assert [OUT, "1", "0"] in rows and ["data/prepared", "0", "0"] in rows
    project.write("reports/figures/new.png", "another")
    project.lock()
    attest.report()  # an out that a later state changed
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [OUT, "1", "0"] in rows and ["reports/figures", "0", "0"] in rows


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r'"md5": "(\w+)"\n', "0", f"{OUT} is 0 there and"),
        (rf'"name": "({OUT})"', "code.py", r"code\.py is \w+ there and missing in commit"),
        (r'"gitCommit": "(\w+)"', "HEAD", "HEAD is not the full hash of a commit"),
        (r'"gitCommit": "(\w+)"', "c" * 40, "cannot be checked .c+ is not a commit of this"),
        *((r"(?s)(.*)", text, "is no statement") for text in ("", "[]", "{}", "\0", "[" * 999)),
    ],
)
def test_a_statement_that_says_one_false_thing_does_not_count(project, old, new, reason):
    path = written(project)
    text = path.read_text()
    at = re.search(old, text)
    path.write_text(text[: at.start(1)] + new + text[at.end(1) :])
    with pytest.raises(StageError, match=rf"^{path} [^\n]*{reason}[^\n]*$"):
        attest.report()


def test_the_committed_statements_hold_for_their_commits(monkeypatch):
    monkeypatch.chdir(ROOT)
    rebuilds = [attest.read(path) for path in attest.STATEMENTS.glob("*.json")]
    assert rebuilds and all(rebuild.outs for rebuild in rebuilds)


def test_a_machine_is_of_one_kind_by_its_extensions_and_by_numpys_groups_and_counts_once():
    about = {"emulator": None, "processor": "AMD", "architecture": "x86_64", "python": "3.11"}
    single, groups = (
        attest._kind({**about, "libraries": {}, "vector_extensions": extensions})
        for extensions in (["AVX", "AVX2", "AVX512F"], ["X86_V3", "X86_V4"])
    )
    assert single == groups == "AMD (x86_64, AVX, AVX2, AVX512F), Python 3.11"
    outs = frozenset({("model", "md5")})
    rebuilds = [attest.Rebuild(outs, kind, kind == "qemu") for kind in (single, groups, "qemu")]
    _, row, *_ = attest.count(rebuilds, {"model": "md5"}).splitlines()
    assert row.split() == ["model", "1", "1"]


def test_an_emulated_processor_is_told_from_a_real_one():
    assert attest.emulator() is None
    command = "import dvc_guard.attest as a; print(a.emulator())"
    said = subprocess.run(
        [*qemu("max"), sys.executable, "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "qemu-x86_64", said.stderr


@pytest.mark.slow
def test_only_what_was_computed_just_now_is_compared_and_stated(tmp_path):
    two = "  two: {cmd: cp one.txt two.txt, deps: [one.txt], outs: [two.txt: {cache: false}]}\n"
    one = "stages:\n  one: {cmd: echo 1 > one.txt, outs: [one.txt]}\n"
    repository = make_repository(tmp_path / "a repository", {"dvc.yaml": one + two})
    repository.run("dvc", "repro")
    repository.edit("dvc.yaml", two, two.replace("two", "zwei"))
    repository.run("dvc", "repro")
    repository.commit("a stage has another name")
    said = repository.run(*GUARD, "verify", "--statement").stdout
    assert said.endswith("all 2 outs are the committed ones, to the bit\n")
    [statement] = (repository.path / attest.STATEMENTS).glob("*.json")
    subjects = json.loads(statement.read_text())["subject"]
    assert [subject["name"] for subject in subjects] == ["one.txt", "zwei.txt"]
    repository.edit("dvc.yaml", "outs: [one.txt]", "frozen: true, outs: [one.txt]")
    repository.edit("dvc.yaml", "zwei.txt, deps", "zwei.txt && echo 2 > 3.txt, deps")
    repository.edit("dvc.yaml", "outs: [zwei.txt", "outs: [3.txt, zwei.txt")
    repository.commit("a frozen stage, and an out that was never computed")
    refused = repository.run(*GUARD, "verify", check=False)
    assert "frozen, so not computed: one.txt\n" in refused.stdout
    assert refused.stderr.endswith("error: 2 of 2 outs differ\n")  # of a stage that has another out
    refused = repository.run(*GUARD, "verify", "--statement", check=False)
    assert "are not computed or compared: one\n" in refused.stderr
