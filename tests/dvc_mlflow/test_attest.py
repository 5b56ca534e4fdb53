"""Statements of rebuilds, with the real ssh-keygen, and sha256sum as in-toto describes it."""

import getpass
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_project

from conftest import ROOT, missing, qemu
from dvc_mlflow import attest, verify
from dvc_mlflow.errors import InputError, StageError

COMMIT = "c" * 40


@pytest.fixture
def rebuilt(tmp_path, monkeypatch) -> Path:
    """A folder with two outs, a file and a folder, and where statements are written."""
    folder = tmp_path / "rebuilt"
    (folder / "figures/more").mkdir(parents=True)
    (folder / "model").write_bytes(b"weights")
    (folder / "figures/b.png").write_bytes(b"b")
    (folder / "figures/more/a.png").write_bytes(b"a")
    shutil.copy(ROOT / "constraints.txt", folder)
    monkeypatch.setattr(attest, "STATEMENTS", tmp_path / "rebuilds")
    return folder


@pytest.fixture
def key(tmp_path) -> str:
    if not shutil.which("ssh-keygen"):
        missing("ssh-keygen is not installed: Debian has it in openssh-client")
    path = tmp_path / "a key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return str(path)


def written(rebuilt: Path, key: str | None = None) -> tuple[Path, dict[str, str]]:
    """A statement about both outs of a commit, and their md5s."""
    content = attest.statement(rebuilt, COMMIT, ["model", "figures"])
    return attest.write(content, key), {
        subject["name"]: subject["digest"]["md5"] for subject in content["subject"]
    }


def read(path: Path, md5s: dict[str, str]) -> attest.Rebuild:
    return attest.read(path, {COMMIT: md5s}.__getitem__)


def test_a_folders_hash_is_the_one_that_in_toto_describes(rebuilt):
    command = (
        "find . -type f | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -f1 -d' '"
    )
    said = subprocess.run(command, shell=True, cwd=rebuilt / "figures", capture_output=True)
    assert attest.digest(rebuilt / "figures")["dirHash"] == said.stdout.decode().strip()


def test_a_statement_names_no_host_path_or_user(rebuilt):
    path, _ = written(rebuilt)
    text = path.read_text(encoding="utf-8") + path.name
    for name in (socket.gethostname(), str(rebuilt.parent), str(ROOT), getpass.getuser()):
        assert name not in text
    assert json.loads(text.removesuffix(path.name))["_type"] == "https://in-toto.io/Statement/v1"


def test_a_signed_statement_names_the_key_and_an_unsigned_one_none(rebuilt, key):
    path, md5s = written(rebuilt, key)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True).stdout
    assert read(path, md5s).signer in shown.split()
    path, md5s = written(rebuilt)
    attest.signature_path(path).unlink()
    assert read(path, md5s).signer is None


@pytest.mark.parametrize("signed", [True, False])
def test_a_changed_statement_does_not_hold(rebuilt, key, signed):
    path, md5s = written(rebuilt, key if signed else None)
    path.write_text(path.read_text().replace(md5s["model"], "0" * 32))
    with pytest.raises(StageError, match="was signed" if signed else "model is 0{32} there"):
        read(path, md5s)


def test_a_statement_about_what_no_lock_has_does_not_hold(tmp_path, monkeypatch):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    outs = ["reports/metrics.json", "code.py"]
    attest.write(attest.statement(project.path, project.git("rev-parse", "HEAD"), outs))
    with pytest.raises(StageError, match=r"code\.py"):
        attest.report()


def test_the_committed_statements_hold_for_their_commits(monkeypatch):
    monkeypatch.chdir(ROOT)
    paths = [*attest.STATEMENTS.glob("*.json")]
    assert paths
    for path in paths:
        assert attest.read(path).outs


def test_a_statement_about_a_commit_that_is_not_here_is_named(rebuilt, monkeypatch):
    path, _ = written(rebuilt)
    monkeypatch.chdir(ROOT)
    with pytest.raises(StageError, match=f"cannot be checked .{COMMIT} is not a commit of this"):
        attest.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"_type": 1, "predicateType": 2}', "\0"])
def test_what_is_no_statement_is_named(rebuilt, text):
    path, md5s = written(rebuilt)
    path.write_text(text)
    with pytest.raises(StageError, match="is no statement"):
        read(path, md5s)


def test_the_same_machine_counts_once_and_a_signature_or_another_machine_once_more():
    def rebuild(kind: str, signer: str | None = None, is_emulated: bool = False) -> attest.Rebuild:
        outs = {"model": "md5 of the model", "figures": "md5 of an older commit"}
        return attest.Rebuild(frozenset(outs.items()), signer, kind, is_emulated)

    amd, intel, arm = rebuild("AMD"), rebuild("Intel", "SHA256:x"), rebuild("qemu", None, True)
    locked = {"model": "md5 of the model", "figures": "md5 of the figures"}
    text = attest.count([amd, amd, intel, rebuild("Intel", "SHA256:y"), arm], locked)
    rows = [line.split() for line in text.splitlines()[:3]]
    assert rows == [
        ["out", "signed", "unsigned", "emulated"],
        ["model", "2", "1", "1"],
        ["figures", "0", "0", "0"],
    ]


def test_a_key_that_is_none_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is nothing to verify
    for key in ("no key", "~/no key", "."):
        with pytest.raises(
            InputError, match=f"^the key is {key}, expected the file of a private key of OpenSSH$"
        ):
            verify.verify(key=key)


def test_an_emulated_processor_is_told_from_a_real_one():
    assert attest.emulator() is None
    command = "import dvc_mlflow.attest as a; print(a.emulator())"
    said = subprocess.run(
        [*qemu("max"), sys.executable, "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "qemu-x86_64", said.stderr
