"""The process that writes the run of a stage: ``python -m dvc_mlflow.process STAGE``.

The stage sends one JSON object per line: `{"epoch": {...}}` for each epoch, and at last
`{"end": STATUS, "reason": ...}`. If the lines end before that, the stage was killed. The output has
a line for each value that MLflow does not hold as it is. If the run could not be written, the exit
code is 1, and the last line says why.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from dvc_mlflow import claims, git, pipeline, reasons, results, runs, store, upkeep
from dvc_mlflow.content import Content
from dvc_mlflow.result import Result, made_by
from dvc_mlflow.state import Known
from dvc_mlflow.store import client

CLAIM_PATIENCE = 20.0  # seconds to wait while another machine syncs


def attend(stage: str) -> NoReturn:
    """Write the run of the stage that sends its lines here, and end this process."""
    code, said = 0, io.StringIO()
    try:
        store.apply_settings()
        with contextlib.redirect_stdout(said):
            follow(stage, map(json.loads, sys.stdin))
    except BaseException as error:
        code = 1
        print(reasons.explain(error), file=said)
    with contextlib.suppress(OSError):  # the stage was killed, so nobody reads this
        print(said.getvalue(), end="", flush=True)
    # Threads and exit handlers of MLflow may hang where the server does
    os._exit(code)


def follow(stage: str, sent: Iterable[dict[str, Any]]) -> None:
    """Write the run of a stage while it runs, from its messages."""
    project, stage = results.project_of(stage)
    experiment_id = upkeep.open_store(project.folder)
    result = project.here(stage, with_outs=False)
    provenance = git.provenance(results.changing())
    run_id = runs.start(experiment_id, result, provenance)
    runs.log(run_id, params=result.params)
    monitor = None
    status, reason = "KILLED", "its process ended"
    for message in sent:
        if "end" in message:
            status, reason = message["end"], message["reason"]
            break
        monitor = monitor or _watch(run_id)  # a stage with epochs takes long enough for that
        runs.log_epoch(run_id, message["epoch"])
    if monitor:
        monitor.finish()
    if status == "FINISHED":
        result = project.here(stage)  # hashes its outs, however large
        runs.complete(run_id, result)
        finish(experiment_id, run_id, result, project)
    else:
        runs.end(client().get_run(run_id), status, reason)


def _watch(run_id: str) -> Any:
    """Begin to log the use of the machine."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def finish(experiment_id: str, run_id: str, result: Result, project: results.Project) -> None:
    """End a run as FINISHED. If all stages agree now, connect their runs."""
    client().set_terminated(run_id, "FINISHED")
    runs.note_successor(client().get_run(run_id))
    # dvc.lock gets the results of this stage when the stage has ended
    locked = {**project.locked(), result.stage: result}
    if set(locked) != set(project) or not pipeline.agree(locked):
        return
    ordered = {stage: locked[stage] for stage in project}
    content = Content(project, made_by(ordered.values()))
    wanted = pipeline.wanted(project, ordered)
    with claims.held(patience=CLAIM_PATIENCE), content.laid(wanted) as missing:
        known = Known()
        pipeline.connect(experiment_id, project, ordered, known, missing)
        known.settle()


if __name__ == "__main__":
    attend(sys.argv[1])
