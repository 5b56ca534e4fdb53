"""The process that writes the runs of the stages: ``python -m dvc_mlflow.process FD``.

The first stage starts it with a listening socket. It imports MLflow once, and forks a process for
each stage that connects. It ends when no stage has connected for a while. On macOS a process must
not fork after it has imported such libraries, so there each stage gets a new process
(``python -m dvc_mlflow.process FD attend``).

A stage sends one JSON object per line: first `{"stage": ..., "environment": {...}}`, then
`{"epoch": {...}}` for each epoch, and at last `{"end": STATUS, "reason": ...}`. If the connection
ends before that, the stage was killed. The answer has one line per step: first `process PID`, then
`local` before work of its own, which may take long, `ready` before and after a request to the store
(`local` if that is a file), `note: LINE` about a value that MLflow does not hold as it is, and at
the end `done` or `failed: REASON`.
"""

import contextlib
import importlib
import io
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from dvc_mlflow import claims, git, pipeline, reasons, results, runs, store
from dvc_mlflow.content import Content
from dvc_mlflow.errors import StageError
from dvc_mlflow.hooks import hook
from dvc_mlflow.known import Known
from dvc_mlflow.results import Result
from dvc_mlflow.runs import Say
from dvc_mlflow.store import client

CLAIM_PATIENCE = 20.0  # seconds that a stage waits while another machine syncs
LINGER = 10.0  # seconds without a stage after which the process ends
# Imported once for all stages
MODULES = ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "dvc.repo")
FORKS = sys.platform != "darwin"


def serve(listener: socket.socket, waiting: list[str]) -> None:
    """Fork a process for each stage that connects, until no more stages come.

    Args:
        waiting: Modules to import when there is nothing else to do.
    """
    path, used, children = Path(listener.getsockname()), time.monotonic(), 0
    while children or waiting or time.monotonic() < used + LINGER:
        while children and os.waitpid(-1, os.WNOHANG) != (0, 0):
            children, used = children - 1, time.monotonic()
        ready, _, _ = select.select([listener], [], [], 0 if waiting else 0.2)
        if ready:
            answer(listener)
            children += 1
        elif waiting:
            with contextlib.suppress(Exception):  # the stage that needs it will report it
                importlib.import_module(waiting.pop(0))
    path.unlink(missing_ok=True)
    while select.select([listener], [], [], 0)[0]:  # late stages
        answer(listener)


def answer(listener: socket.socket) -> None:
    """Take one connection in a new process, so that a run that hangs does not delay the others."""
    connection, _ = listener.accept()
    if not FORKS:
        subprocess.Popen(
            [sys.executable, "-m", "dvc_mlflow.process", str(connection.fileno()), "attend"],
            pass_fds=[connection.fileno()],
        )
    elif os.fork() == 0:
        listener.close()
        attend(connection)
    connection.close()


def attend(connection: socket.socket) -> NoReturn:
    """Write the run of the stage that is connected, and end this process."""
    # Two streams, because writing to one drops the text that it has read ahead
    said = connection.makefile("r", encoding="utf-8")
    answers = connection.makefile("w", encoding="utf-8")

    def say(line: str) -> None:
        if line == "ready" and store.is_local(store.uri()):
            line = "local"
        with contextlib.suppress(OSError):  # the run of a killed stage is ended, too
            print(line, file=answers, flush=True)

    try:
        say(f"process {os.getpid()}")
        say("local")
        with contextlib.redirect_stdout(Notes(say)):
            follow(messages(said), say)
        say("done")
    except BaseException as error:
        say(f"failed: {reasons.explain(error)}")
    # Threads and exit handlers of MLflow may hang where the server does
    os._exit(0)


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


def follow(sent: Iterator[dict[str, Any]], say: Say) -> None:
    """Write the run of a stage while it runs, from its messages."""
    first = next(sent)
    stage: str = first["stage"]
    os.environ.clear()
    os.environ.update(first["environment"])
    project, stage = results.project_of(stage)
    experiment_id = store.open_store(project.folder)
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
        client().log_batch(run_id, tags=[RunTag("reason", reason)])
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
    content = Content(project, results.made_by(ordered.values()))
    wanted = pipeline.wanted(project, ordered)
    with claims.held(patience=CLAIM_PATIENCE, say=say):
        say("local")
        with content.laid(wanted) as missing:
            say("ready")
            pipeline.connect(experiment_id, project, ordered, Known(), missing, say)


def main() -> None:
    given = socket.socket(fileno=int(sys.argv[1]))
    store.apply_settings()
    if sys.argv[2:] == ["attend"]:
        attend(given)
    if not FORKS:
        serve(given, [])
        return
    waiting: list[str] = []
    with contextlib.suppress(ImportError, StageError):  # each stage is told
        for module in MODULES:
            importlib.import_module(module)
        waiting += hook("imports", tuple)()
    serve(given, waiting)


if __name__ == "__main__":
    main()
