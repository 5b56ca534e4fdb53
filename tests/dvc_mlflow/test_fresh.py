"""Whether `sync` may end at once: real stores, and changes of everything that it depends on."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import CELLS, PIPELINE, make_project, make_results
from world import said_by

from dvc_mlflow import fresh, sync

STUDY = {*(f"cell@{cell}" for cell in CELLS), "report", "pipeline"}


def runs_of(client):
    return client.search_runs([one.experiment_id for one in client.search_experiments()])


def test_whatever_is_lost_or_changed_is_noticed_and_brought_back(
    standing_in, tmp_path, monkeypatch
):
    project = make_project(tmp_path / "project")
    calls, real = [], sync.sync
    monkeypatch.setattr(sync, "sync", lambda **given: calls.append(given) or real(**given))

    def looked(**options) -> bool:
        calls.clear()
        fresh.sync(**options)
        return bool(calls)

    with standing_in(project) as client:
        assert looked() and looked()  # MLflow has set variables in this process meanwhile
        assert not looked() and not looked(project=Path())
        before = {run.info.run_id for run in runs_of(client)}
        run = next(run for run in runs_of(client) if run.data.tags["stage"] == "evaluate")
        [metrics] = (project.path / "mlartifacts").glob(f"{run.info.run_id}/artifacts/metrics.json")
        changes = [
            lambda: client.delete_run(run.info.run_id),
            metrics.unlink,
            lambda: metrics.write_text("{}", encoding="utf-8"),
            lambda: project.git("commit", "--allow-empty", "--message=another"),
            lambda: project.edit("params.yaml", "seed: 0", "seed: 0  # the same"),
            lambda: project.write("code.py", "print(1)\n"),
            lambda: (project.path / "dvc.lock").write_text(
                json.dumps(json.loads((project.path / "dvc.lock").read_text()), indent=1)
            ),
            lambda: project.write(".dvc/config.local", "[core]\n    analytics = false\n"),
            lambda: monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "9"),
        ]
        for at, change in enumerate(changes):
            change()
            assert looked(), at
            assert not looked(), at
            assert {run.info.run_id for run in runs_of(client)} == before
            assert metrics.stat().st_size > 2
        make_results(project, seed=1)
        assert looked() and not looked() and len(runs_of(client)) > len(before)
        for option in ("dry", "all", "pull"):
            assert looked(**{option: True})

        # Nothing is noted while a run goes on or lacks files, or something is wrong
        live = client.create_run(runs_of(client)[0].info.experiment_id)
        assert looked() and looked()
        client.set_terminated(live.info.run_id)
        assert looked() and not looked()

        make_results(project, seed=2)
        for lost in ("models", ".dvc/cache"):
            shutil.rmtree(project.path / lost)
        assert looked() and looked()
        project.write("dvc.yaml", "stages: [")
        for _ in range(2):
            with pytest.raises(Exception, match="problem"):
                looked()


def test_one_project_is_synced_alone(standing_in, tmp_path):
    project = make_project(tmp_path / "project")
    with standing_in(project) as client:
        for folder, stages in ((Path(), {*PIPELINE, "pipeline"}), (Path("study"), STUDY)):
            before = {run.info.run_id for run in runs_of(client)}
            said = said_by(lambda folder=folder: fresh.sync(project=folder))
            new = [run for run in runs_of(client) if run.info.run_id not in before]
            assert {run.data.tags["stage"] for run in new} == stages
        assert said[0] == f"logged {len(CELLS)} runs of study: cell from their results"
    for command in (("dvc-mlflow", "sync"), ("dvc-guard", "mend")):
        refused = project.run(*command, "--project", "studi", check=False)
        assert refused.stderr == (
            "error: studi is not the folder of a DVC project; here are ., study\n"
        )
