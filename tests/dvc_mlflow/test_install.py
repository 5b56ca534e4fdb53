"""The hooks of git that start `dvc-mlflow sync`, in a real repository."""

import pytest
from mlflow import MlflowClient
from test_other_repository import COMMAND, make_repository

from conftest import Clone, wait_for

pytestmark = pytest.mark.slow  # real `dvc` and `mlflow` in real repositories

FILES = {
    "dvc.yaml": "stages:\n  one:\n    cmd: echo 1 > one.txt\n    outs: [one.txt: {cache: false}]\n",
    ".gitignore": "__pycache__/\n",
}


@pytest.fixture
def repository(tmp_path) -> Clone:
    made = make_repository(tmp_path / "a repository", FILES)
    made.run("dvc", "repro")
    return made


def test_a_commit_writes_the_runs_and_a_merge_too_until_that_is_taken_back(repository):
    hooks = repository.path / ".git/hooks"
    own = "#!/usr/bin/env bash\ntouch own-hook\n"
    (hooks / "post-merge").write_text(own)
    for _ in range(2):  # and twice is once
        repository.run(*COMMAND, "install")
    assert (hooks / "post-commit").read_text().count("dvc_mlflow sync") == 1
    repository.commit("the result")
    status = wait_for(lambda: repository.run(*COMMAND, "status"), 120)
    assert status.stdout == "1 of 1 results have their run\n"
    client = MlflowClient(f"sqlite:///{repository.path / 'mlflow.db'}")
    found = client.search_runs(["1"], "tags.stage = 'one'")
    assert [run.info.status for run in found] == ["FINISHED"]
    assert repository.run("git", "status", "--porcelain").stdout == ""
    assert (hooks / "post-merge").read_text().startswith(own)
    repository.run(*COMMAND, "install", "--remove")
    assert (hooks / "post-merge").read_text() == own
    assert not (hooks / "post-commit").exists()


def test_a_hook_that_cannot_be_added_to_is_named_and_nothing_is_changed(repository):
    hooks = repository.path / ".git/hooks"
    (hooks / "post-merge").write_text("#!/usr/bin/env python\n")
    said = repository.run(*COMMAND, "install", check=False)
    assert said.returncode != 0 and "post-merge is no shell script" in said.stderr
    assert not (hooks / "post-commit").exists()
    (repository.path / "hooks").mkdir()
    (repository.path / "hooks/post-merge").write_text("#!/bin/sh\n")
    repository.run("git", "config", "core.hooksPath", "hooks")
    repository.commit("hooks that git tracks")
    said = repository.run(*COMMAND, "install", check=False)
    assert said.returncode != 0 and "git tracks hooks/post-merge" in said.stderr
    assert repository.run("git", "status", "--porcelain").stdout == ""
