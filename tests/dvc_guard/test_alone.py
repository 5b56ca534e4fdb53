"""One process per stage and checkout."""

from pathlib import Path

import pytest

from dvc_guard import alone
from dvc_kit.errors import StageError


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """A repository with a project below its own; nothing waits for long."""
    for folder in (".git", ".dvc", "study/.dvc", "reports/figures"):
        (tmp_path / folder).mkdir(parents=True)
    for config in (".dvc/config", "study/.dvc/config"):
        (tmp_path / config).touch()
    (tmp_path / "study/dvc.yaml").write_text("stages: {report: {cmd: a}}\n")
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("below", ["", "study", "reports/figures"])
def test_a_stage_runs_once_in_a_checkout_wherever_it_is_started(project, monkeypatch, below):
    monkeypatch.chdir(project / below)
    with alone.holding("report"), alone.holding("plot"):  # another one is not in the way
        assert Path.cwd() == project / below  # the body works where it is
        monkeypatch.chdir(project)
        with (
            pytest.raises(StageError, match=r"^report already runs in this folder, started by"),
            alone.holding("report"),
        ):
            pytest.fail("two run it")
    with alone.holding("report"):
        pass
    names = sorted(path.name for path in project.rglob("*.lock"))
    assert names == [".%2Fplot.lock", "study%2Freport.lock"]
    assert (project / ".dvc/tmp/stages/study%2Freport.lock").is_file()


def test_a_stage_that_dvc_did_not_start_is_told_what_to_do(capsys):
    with alone.holding("report"):
        pass
    out, told = capsys.readouterr()
    assert out == "" and told.startswith("note: DVC did not start this and will not know of its")
    assert "`(cd study && dvc repro report)`" in told and told.count("\n") == 1
