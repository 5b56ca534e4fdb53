"""The process that writes the stages' runs, beside them: ``python -m stages.mirror FD STAGE``.

stages/tracking.py starts it with a listening socket. It imports MLflow once, forks a process for
each stage that connects, and ends when for a while none has come: one pipeline, one import. On
macOS a process may not fork once it has imported such libraries, so each stage gets a new one there
(``python -m stages.mirror FD``).

A stage sends one JSON object a line: `{"stage": ..., "environment": {...}}`, `{"epoch": {...}}` for
each epoch, and `{"end": STATUS, "reason": ...}`; a connection that ends before that is a stage that
was killed. The answer is a line for each step: `process PID` first, `local` before work that needs
no server, `ready` after every answer of the store, and at the end `done` or `failed: REASON`.
"""

import contextlib
import importlib
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

from stages import claims, files, params, results, runs, store, sync
from stages.results import Result
from stages.runs import Say, client

CLAIM_PATIENCE = 20.0  # seconds for which a stage waits while another machine syncs
LINGER = 10.0  # seconds without a stage after which the process ends
# Imported for all stages that follow, while the first ones have a processor to spare
STORE = ("mlflow", "mlflow.store.tracking.sqlalchemy_store")
EXPORT = ("mlflow.pytorch", "torch.export._trace")
FORKS = sys.platform != "darwin"


def serve(listener: socket.socket, waiting: list[str]) -> None:
    """Fork a process for each stage that connects, until none comes any more.

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
            importlib.import_module(waiting.pop(0))
    path.unlink(missing_ok=True)
    while select.select([listener], [], [], 0)[0]:  # who came before the socket was gone
        answer(listener)


def answer(listener: socket.socket) -> None:
    """Take one connection, in a process of its own: a run that hangs holds up no other."""
    connection, _ = listener.accept()
    if not FORKS:
        subprocess.Popen(
            [sys.executable, "-m", "stages.mirror", str(connection.fileno())],
            pass_fds=[connection.fileno()],
        )
    elif os.fork() == 0:
        listener.close()
        attend(connection)
    connection.close()


def attend(connection: socket.socket) -> NoReturn:
    """Write the run of the stage at the other end, and end this process."""
    # Two, because writing to a stream drops what it has read ahead
    said = connection.makefile("r", encoding="utf-8")
    answers = connection.makefile("w", encoding="utf-8")

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # a killed stage's run is ended all the same
            print(line, file=answers, flush=True)

    try:
        say(f"process {os.getpid()}")
        say("local")
        follow(messages(said), say)
        say("done")
    except BaseException as error:
        say(f"failed: {store.explain(error)}")
    # Threads and exit handlers of MLflow may hang where the server does
    os._exit(0)


def messages(stream: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What a stage sends, to its end or to the stage's own, if that comes first."""
    # A stage that is killed with answers unread resets the connection instead of closing it
    with contextlib.suppress(ConnectionError):
        yield from map(json.loads, stream)


def follow(sent: Iterator[dict[str, Any]], say: Say) -> None:
    """Write the run of a stage that is running, as its messages come in."""
    first = next(sent)
    stage: str = first["stage"]
    os.environ.clear()
    os.environ.update(first["environment"])
    experiment_id = store.open_store(store.PIPELINE if stage in results.declared() else store.STUDY)
    from mlflow.entities import RunTag
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    say("ready")
    result = results.of_files(stage, with_outs=False)
    run_id = runs.start(experiment_id, result, results.provenance())
    say("ready")
    trains = stage.partition("@")[0] in runs.TRAINING
    monitor = SystemMetricsMonitor(run_id) if trains else None  # type: ignore[no-untyped-call]
    if monitor:
        monitor.start()  # type: ignore[no-untyped-call]
    status, reason = "KILLED", "its process ended"
    for message in sent:
        if "end" in message:
            status, reason = message["end"], message["reason"]
            break
        runs.log_epoch(run_id, message["epoch"])
        say("ready")
    if monitor:
        monitor.finish()  # type: ignore[no-untyped-call]
    if status == "FINISHED":
        result = results.of_files(stage)
        runs.log_result(run_id, result, say)
        finish(experiment_id, run_id, result, say)
    else:
        client().log_batch(run_id, tags=[RunTag("reason", reason)])
        client().set_terminated(run_id, status)


def finish(experiment_id: str, run_id: str, result: Result, say: Say) -> None:
    """End a run as FINISHED and, if all stages' results now agree, attach what they share."""
    client().set_terminated(run_id, "FINISHED")
    say("ready")
    if result.stage not in results.declared():
        return
    # dvc.lock does not have this stage's results before the stage has ended
    locked = results.of_lock_if_any()
    locked[result.stage] = result
    if sync.agree(locked) and files.md5(files.METRICS) == locked["evaluate"].outs.get(
        files.METRICS.as_posix()
    ):
        with claims.held(patience=CLAIM_PATIENCE, say=say):
            sync.connect(experiment_id, locked, params.load().registry, say)


def main() -> None:
    given = socket.socket(fileno=int(sys.argv[1]))
    store.apply_settings()
    if not sys.argv[2:]:
        attend(given)
    if not FORKS:
        serve(given, [])
        return
    try:
        for module in STORE:
            importlib.import_module(module)
    except ImportError:
        pass  # each stage is told
    trains = sys.argv[2] == "prepare" or sys.argv[2].startswith("train_")
    serve(given, [*EXPORT] if trains else [])


if __name__ == "__main__":
    main()
