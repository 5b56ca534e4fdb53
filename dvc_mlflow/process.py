"""The process that writes the run of a stage: ``python -m dvc_mlflow.process FD STAGE``.

The stage starts it with one end of a pair of sockets, and sends one JSON object per line:
`{"epoch": {...}}` for each epoch, and at last `{"end": STATUS, "reason": ...}`. If the connection
ends before that, the stage was killed. The answer has one line per step: `local` before work of its
own, which may take long, `ready` before and after a request to the store (`local` if that is a
file), `note: LINE` about a value that MLflow does not hold as it is, and at the end `done` or
`failed: REASON`.
"""

import contextlib
import io
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from dvc_mlflow import claims, git, pipeline, reasons, results, runs, schema, store, upkeep
from dvc_mlflow.content import Content
from dvc_mlflow.result import Result, made_by
from dvc_mlflow.state import Known
from dvc_mlflow.store import client
from dvc_mlflow.writers import Say

CLAIM_PATIENCE = 20.0  # seconds that a stage waits while another machine syncs


def attend(stage: str, connection: socket.socket) -> NoReturn:
    """Write the run of the stage that is connected, and end this process."""
    say = answering(connection)
    try:
        say("local")
        store.apply_settings()
        with contextlib.redirect_stdout(Notes(say)):
            follow(stage, messages(connection.makefile("r", encoding="utf-8")), say)
        say("done")
    except BaseException as error:
        say(f"failed: {reasons.explain(error)}")
    # Threads and exit handlers of MLflow may hang where the server does
    os._exit(0)


def answering(connection: socket.socket) -> Say:
    """A function that sends a line to the stage, which reads nothing before its end."""

    def say(line: str) -> None:
        if line == "ready" and store.is_local(store.uri()):
            line = "local"
        # What only shows progress is dropped where the buffer is full
        waits = 0 if ": " in line or line == "done" else socket.MSG_DONTWAIT
        with contextlib.suppress(OSError):  # the run of a killed stage is ended, too
            connection.sendall(f"{line}\n".encode(), waits)

    return say


class Notes(io.TextIOBase):
    """An output whose lines the stage prints."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            self._say(f"note: {line}")
        return len(text)


def messages(stream: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The messages of a stage, until its last one, or until the stage is killed."""
    # If a stage is killed before it has read all answers, the connection is reset, not closed
    with contextlib.suppress(ConnectionError):
        yield from map(json.loads, stream)


def follow(stage: str, sent: Iterator[dict[str, Any]], say: Say) -> None:
    """Write the run of a stage while it runs, from its messages."""
    project, stage = results.project_of(stage)
    experiment_id = upkeep.open_store(project.folder)
    from mlflow.entities import RunTag

    result = project.here(stage, with_outs=False)
    provenance = git.provenance(results.changing())
    say("ready")
    run_id = runs.start(experiment_id, result, provenance)
    say("ready")
    runs.log(run_id, params=result.params)
    say("ready")
    monitor = None
    status, reason = "KILLED", "its process ended"
    for message in sent:
        if "end" in message:
            status, reason = message["end"], message["reason"]
            break
        monitor = monitor or _watch(run_id)  # a stage with epochs takes long enough for that
        runs.log_epoch(run_id, message["epoch"])
        say("ready")
    if monitor:
        monitor.finish()
    if status == "FINISHED":
        say("local")
        result = project.here(stage)  # hashes its outs, however large
        say("ready")
        runs.complete(run_id, result, say=say)
        finish(experiment_id, run_id, result, project, say)
    else:
        client().log_batch(run_id, tags=[RunTag(schema.REASON, reason)])
        client().set_terminated(run_id, status)


def _watch(run_id: str) -> Any:
    """Begin to log the use of the machine."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def finish(
    experiment_id: str, run_id: str, result: Result, project: results.Project, say: Say
) -> None:
    """End a run as FINISHED. If all stages agree now, connect their runs."""
    client().set_terminated(run_id, "FINISHED")
    say("local")
    # dvc.lock gets the results of this stage when the stage has ended
    locked = {**project.locked(), result.stage: result}
    if set(locked) != set(project) or not pipeline.agree(locked):
        return
    ordered = {stage: locked[stage] for stage in project}
    content = Content(project, made_by(ordered.values()))
    wanted = pipeline.wanted(project, ordered)
    with claims.held(patience=CLAIM_PATIENCE, say=say):
        say("local")
        with content.laid(wanted) as missing:
            say("ready")
            pipeline.connect(experiment_id, project, ordered, Known(), missing, say)


if __name__ == "__main__":
    attend(sys.argv[2], socket.socket(fileno=int(sys.argv[1])))
