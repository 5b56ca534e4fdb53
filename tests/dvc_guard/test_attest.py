"""Statements of rebuilds, with the real ssh-keygen, and sha256sum as in-toto describes it."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from repositories import GUARD, make_repository
from tiny import make_project

from conftest import ROOT, Clone, missing, qemu
from dvc_guard import attest, statements, verify
from dvc_kit import files
from dvc_kit.errors import InputError, StageError


@pytest.fixture
def rebuilt(tmp_path, monkeypatch) -> Path:
    """A repository with two outs, a file and a folder, whose last commit is stated."""
    folder = tmp_path / "rebuilt"
    (folder / "figures/more").mkdir(parents=True)
    (folder / "model").write_bytes(b"weights")
    (folder / "figures/b.png").write_bytes(b"b")
    (folder / "figures/more/a.png").write_bytes(b"a")
    shutil.copy(ROOT / "constraints.txt", folder)
    outs = [{"path": name, "md5": files.md5(folder / name)} for name in ("model", "figures")]
    files.write_text(folder / "dvc.lock", json.dumps({"stages": {"make": {"outs": outs}}}))
    files.write_text(folder / "dvc.yaml", "stages: {make: {cmd: make, outs: [model, figures]}}")
    files.write_text(folder / ".dvc/config", "")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    Clone(folder).commit("results")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def key(tmp_path) -> str:
    if not shutil.which("ssh-keygen"):
        missing("ssh-keygen is not installed: Debian has it in openssh-client")
    path = tmp_path / "a key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return str(path)


def written(rebuilt: Path, key: str | None = None) -> Path:
    """A statement about both outs of the commit."""
    commit = Clone(rebuilt).run("git", "rev-parse", "HEAD").stdout.strip()
    return attest.write(attest.statement(rebuilt, commit, ["model", "figures"]), key)


def test_a_folders_hash_is_the_one_that_in_toto_describes(rebuilt):
    command = (
        "find . -type f | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -f1 -d' '"
    )
    said = subprocess.run(command, shell=True, cwd=rebuilt / "figures", capture_output=True)
    assert attest.digest(rebuilt / "figures")["dirHash"] == said.stdout.decode().strip()


def test_a_statement_names_no_host_path_or_user(rebuilt):
    path = written(rebuilt)
    text = path.read_text(encoding="utf-8") + path.name
    for name in (socket.gethostname(), str(rebuilt.parent), str(ROOT), getpass.getuser()):
        assert name not in text
    assert json.loads(text.removesuffix(path.name))["_type"] == "https://in-toto.io/Statement/v1"


def test_a_signed_statement_names_the_key_and_a_changed_one_is_none(rebuilt, key):
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True).stdout
    path = written(rebuilt, key)
    assert attest.read(path).signer in shown.split()
    path.write_text(path.read_text().replace("rebuild", "re-build"))
    with pytest.raises(StageError, match="is not what was signed"):
        attest.read(path)
    statements.signature_path(path).unlink()
    assert attest.read(path).signer is None


def test_only_the_keys_of_a_file_of_allowed_signers_count_as_signed(rebuilt, key, capsys):
    written(rebuilt, key)
    attest.report()
    said = capsys.readouterr().out
    assert ["model", "1", "0", "0"] in [line.split() for line in said.splitlines()]
    assert "no key was checked against anybody" in said
    public = Path(f"{key}.pub").read_text()
    for line, counted in (
        (f"ann@example.com {public}", "1"),
        (public.replace("AAAAI", "AAAAJ"), "0"),
    ):
        (attest.STATEMENTS / "allowed_signers").write_text(line)
        attest.report()
        said = capsys.readouterr().out
        unsigned = str(1 - int(counted))
        assert ["model", counted, unsigned, "0"] in [line.split() for line in said.splitlines()]
        assert "checked against reports/rebuilds/allowed_signers" in said
        assert (", by ann@example.com" in said) == (counted == "1")
    with pytest.raises(InputError, match=r"^the signers are no file, expected"):
        attest.report(signers="no file")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r'"sha256": "(\w+)"\n   },\n   "name": "model"', "0", "the sha256 of model is 0 there"),
        (r'"md5": "(\w+)",\n    "sha256"', "0", "model is 0 there"),
        (r'"dirHash": "(\w+)"', "0", "the dirHash of figures is 0 there"),
        (r'"sha256": "(\w+)"\n    },\n    "name": "constr', "0", "constraints.txt is 0 there"),
        (r'"gitCommit": "(\w+)"', "HEAD", "HEAD is not the full hash of a commit"),
        (r'"gitCommit": "(\w+)"', "c" * 40, "cannot be checked .c+ is not a commit of this"),
        (r'"processor": "([^"]*)"', r"x\\nsigned: Cray", "a text has a control character"),
        (r'"processor": "([^"]*)"', r"x\\u202e", "a text has a control character"),
        (r'"processor": "([^"]*)"', "AMD, by SHA256:me", "the processor is called 'AMD, by SHA"),
        (r'"python": "([^"]*)"', "3, by SHA256:me", "a text where a version belongs"),
        (r'"emulator": (null)', '""', "the processor is called ''"),
        (r'(?s)"vector_extensions": (\[.*?\])', '"AVX"', "vector_extensions are no list"),
        (r'"command": \[\s*("dvc",)', "", "is about the command .'repro'"),
        (r'"name": "(figures)"', "model", "has a subject twice"),
        (r'(),\n   "name": "model"', ', "name": "model"', "it has a key twice"),
        (r'"(sha256)": "\w+"\n   },\n   "name": "model"', "sha1", "expected .'md5', 'sha256'"),
        *((r"(?s)(.*)", text, "is no statement") for text in ("", "[]", "{}", "\0")),
        (r'"command": \[()', "[" * 100 + "]" * 100 + ",", "nested more than 100 levels"),
    ],
)  # fmt: skip
def test_a_statement_that_says_one_false_thing_does_not_count(rebuilt, old, new, reason):
    path = written(rebuilt)
    text = path.read_text()
    at = re.search(old, text)
    path.write_text(text[: at.start(1)] + new.replace("\\\\", "\\") + text[at.end(1) :])
    with pytest.raises(StageError, match=rf"^{path} [^\n]*{reason}[^\n]*$"):
        attest.read(path)


def test_an_out_whose_bytes_are_nowhere_is_named_and_not_counted(rebuilt, capsys):
    (rebuilt / ".gitignore").write_text("model\n")
    Clone(rebuilt).run("git", "rm", "--quiet", "--cached", "model")
    Clone(rebuilt).commit("an out that git does not keep")
    path = written(rebuilt)
    (rebuilt / "model").write_text("other")
    assert {out for out, _ in attest.read(path).outs} == {"figures"}
    attest.report()
    assert "the bytes are not here: model (`dvc pull`" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("single", "groups", "shown"),
    [
        (["AVX", "AVX2"], ["X86_V2", "X86_V3"], "AVX, AVX2)"),
        (["AVX", "AVX2", "AVX512F"], ["X86_V3", "X86_V4"], "AVX, AVX2, AVX512F)"),
    ],
)
def test_a_machine_is_of_one_kind_by_its_extensions_and_by_numpys_groups(
    rebuilt, single, groups, shown
):
    content = json.loads(written(rebuilt).read_text())
    kinds = set()
    for extensions in (single, groups):
        content["predicate"]["environment"]["vector_extensions"] = extensions
        kinds.add(statements.parse(Path("a.json"), json.dumps(content))[3])
    [kind] = kinds
    assert f", {shown}, Python" in kind


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
    assert "1 outs of stages that no longer declare them, so these entries " in said
    assert "are not compared: two.txt of two\n" in said
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
    assert refused.stderr.endswith("error: 1 of 2 outs differ\n")
    refused = repository.run(*GUARD, "verify", "--statement", check=False)
    assert "frozen stages are not computed: one\n" in refused.stderr
