"""Repositories that something is wrong with, and settings that cannot be read: one line each."""

import re
import subprocess
from pathlib import Path

import pytest
from repositories import COMMAND, Here

from dvc_kit.errors import InputError
from dvc_mlflow import hooks


def test_a_folder_without_a_dvc_repository_is_refused(tmp_path):
    (tmp_path / "plain").mkdir()
    subprocess.run(["git", "init", "--quiet", tmp_path / "plain"], check=True)
    told = Here(tmp_path / "plain").run(*COMMAND, "sync", check=False, env={"PYTHONPATH": ""})
    assert told.returncode == 2
    assert told.stderr == f"error: {tmp_path / 'plain'} is in no DVC repository: run this in one\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tool", r"pyproject\.toml: "),
        ('[tool.dvc-mlflow]\nhooks = "no.such"', r"hooks in pyproject\.toml: No module named 'no'"),
        ("[tool.other]\n", None),
        (None, None),
    ],
)
def test_settings_that_cannot_be_read_are_told_and_none_are_needed(
    tmp_path, monkeypatch, text, reason
):
    monkeypatch.chdir(tmp_path)
    if text:
        Path("pyproject.toml").write_text(text, encoding="utf-8")
    if reason is None:
        assert hooks.settings() == {} and hooks.hook("export") is None
    else:
        with pytest.raises(InputError) as told:
            hooks.hook("export")
        assert re.match(reason, str(told.value))
