"""The hooks of git that start `dvc-mlflow sync`, in a real repository."""

import stat
import subprocess
import sys

import pytest
from repositories import COMMAND, make_repository

from conftest import Clone, client_of, wait_for
from dvc_kit.errors import InputError
from dvc_mlflow import install

IDENTITY = {
    f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
FILES = {
    "dvc.yaml": "stages:\n  one:\n    cmd: echo 1 > one.txt\n    outs: [one.txt: {cache: false}]\n",
    ".gitignore": "__pycache__/\n",
}


@pytest.fixture
def repository(tmp_path) -> Clone:
    made = make_repository(tmp_path / "a repository", FILES)
    made.run("dvc", "repro")
    return made


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A repository of git without anything."""
    made = tmp_path / "empty"
    subprocess.run(["git", "init", "--quiet", made], check=True)
    monkeypatch.chdir(made)
    return made


@pytest.mark.slow
def test_a_commit_writes_the_runs_and_a_merge_too_until_that_is_taken_back(repository):
    hooks = repository.path / ".git/hooks"
    own = "#!/usr/bin/env bash\ntouch own-hook\n"
    (hooks / "post-merge").write_text(own)
    (hooks / "post-merge").chmod(0o755)
    for _ in range(2):  # and twice is once
        repository.run(*COMMAND, "install")
    assert (hooks / "post-commit").read_text().count("dvc_mlflow sync") == 1
    repository.commit("the result")
    status = wait_for(lambda: repository.run(*COMMAND, "status"), 120)
    assert status.stdout == "1 of 1 results have their run\n"
    client = client_of(repository)
    found = client.search_runs(["1"], "tags.stage = 'one'")
    assert [run.info.status for run in found] == ["FINISHED"]
    assert repository.run("git", "status", "--porcelain").stdout == ""
    assert (hooks / "post-merge").read_text().endswith("\ntouch own-hook\n")
    repository.run(*COMMAND, "install", "--remove")
    assert (hooks / "post-merge").read_text() == own
    assert not (hooks / "post-commit").exists()


EXEC = b"#!/usr/bin/env bash\n# as pre-commit writes it\nset -eu\nexec true"


@pytest.mark.parametrize(
    "own", [EXEC, b"#!/bin/sh", b"#!/bin/sh -e\nexit 1\n", b"#!/bin/sh\n# \xe9\r\n", None]
)
def test_a_hook_starts_sync_however_it_ends_and_is_the_same_byte_for_byte_afterwards(
    own, empty, monkeypatch
):
    python = empty / "it's a python"
    python.write_text('#!/bin/sh\necho "$@" > started\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    hook = empty / ".git/hooks/post-commit"
    if own is not None:
        hook.write_bytes(own)
        hook.chmod(0o740)
    for _ in range(2):  # and twice is once
        install.install()
    subprocess.run([hook], check=False)
    assert wait_for((empty / "started").read_text) == "-m dvc_mlflow sync\n"
    install.install(remove=True)
    assert (hook.read_bytes() if hook.exists() else None) == own
    assert own is None or stat.S_IMODE(hook.stat().st_mode) == 0o740


@pytest.mark.parametrize("place", ["~/hooks", "../hooks"])
def test_hooks_that_other_repositories_share_are_left_alone(empty, monkeypatch, place):
    monkeypatch.setenv("HOME", str(empty.parent))
    subprocess.run(["git", "config", "core.hooksPath", place], check=True)
    with pytest.raises(InputError, match=r"^[^\n]*core\.hooksPath[^\n]*start `env -u[^\n]*$"):
        install.install()
    install.install(remove=True)
    assert not (empty.parent / "hooks").exists()


@pytest.mark.parametrize(
    "own",
    [
        "",
        "#!/usr/bin/fish\n",
        "#!/bin/sh\r\n",
        "#!/bin/sh\nlefthook",
        "tracked",
        "#!/bin/sh\n# off",
    ],
)
def test_a_hook_that_would_not_start_sync_is_left_alone(empty, own):
    folder = empty / (own if own == "tracked" else ".git/hooks")
    hook = folder / "post-merge"
    folder.mkdir(exist_ok=True)
    hook.write_bytes(own.encode())
    hook.chmod(0o644 if own.endswith("# off") else 0o755)
    if own == "tracked":
        subprocess.run(["git", "config", "core.hooksPath", own], check=True)
        subprocess.run(["git", "add", own], check=True)
    with pytest.raises(InputError, match=r"post-merge[ :][^\n]*`env -u GIT_DIR [^\n]*`"):
        install.install()
    assert hook.read_bytes() == own.encode() and not (folder / "post-commit").exists()
    install.install(remove=True)


def test_a_worktree_has_the_hooks_of_its_repository(empty, monkeypatch):
    Clone(empty).run("git", "commit", "-qm", "x", "--allow-empty", env=IDENTITY)
    Clone(empty).run("git", "worktree", "add", "-q", "../other")
    monkeypatch.chdir("../other")
    for remove in (False, True):
        install.install(remove)
        assert (empty / ".git/hooks/post-merge").exists() != remove
