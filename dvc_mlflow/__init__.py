"""Keeps MLflow in step with DVC, in any repository: ``with dvc_mlflow.run("train") as run: ...``.

The results are the files that DVC keeps. MLflow only shows them: no result is computed from
something that was read from MLflow. A process beside the stage (process.py) writes the run, and the
stage does not wait for it while it computes. If the tracking server is down, slow or broken, the
stage prints a warning, and loses at most PATIENCE seconds, or what MLFLOW_HTTP_REQUEST_TIMEOUT
allows a request. With ``MIRROR=off`` in the environment there is no run at all.

``python -m dvc_mlflow`` has the commands for everything else: see __main__.py.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc_kit.errors import one_line, shortened
from dvc_mlflow import projects, store

PATIENCE = 5.0  # seconds without progress that a stage waits for at its end
LOCAL_PATIENCE = 60.0  # the same, while the process does not wait for a server
LONGEST_PATIENCE = 86_400  # the most, because a socket takes no timeout of centuries


class Run:
    """The run of a stage. Another process writes it.

    Args:
        address: The full name of the stage, if DVC has started it.
    """

    def __init__(self, stage: str, address: str = "") -> None:
        self.stage = stage
        self._ours: socket.socket | None = None
        if os.environ.get("MIRROR") == "off":
            return
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._writer = _start_process(address or stage, theirs)
            self._ours = ours
        except OSError as error:
            self._warn(f"{error.filename or 'its process'}: {error.strerror}")

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Show one epoch's metrics while the stage runs."""
        self._send({"epoch": dict(row)})

    def _send(self, message: dict[str, Any]) -> None:
        if self._ours:
            with contextlib.suppress(OSError):  # the mirror has given up; close() tells why
                # Shorter than a socket's buffer: goes in whole, or not at all where that is full
                self._ours.send(f"{json.dumps(message)}\n".encode(), socket.MSG_DONTWAIT)

    def close(self, status: str, reason: str = "") -> None:
        """End the run and wait until it is written, as long as that makes progress."""
        if not self._ours:
            return
        self._send({"end": status, "reason": reason})
        failure = self._wait(self._ours)
        self._ours.close()
        if failure:
            self._warn(failure)

    def _warn(self, failure: str) -> None:
        print(
            f"warning: the MLflow run of {self.stage} is not complete "
            f"({store.without_user(failure)}). The results are; `dvc-mlflow sync` logs them",
            file=sys.stderr,
        )

    def _wait(self, ours: socket.socket) -> str:
        """Read the answers to the last one; why the mirror failed, or nothing."""
        answers, patience = ours.makefile(encoding="utf-8", errors="replace"), LOCAL_PATIENCE
        while True:
            ours.settimeout(patience)
            try:
                answer = answers.readline()
            except TimeoutError:
                self._writer.kill()
                return f"no answer for {patience:.0f} s"
            except OSError:
                answer = ""
            kind, _, text = answer.rstrip("\n").partition(": ")
            if kind == "note":
                print(text)
            elif kind == "failed":
                return text
            elif not answer:
                return "its process ended"
            elif kind == "done":
                return ""
            patience = LOCAL_PATIENCE if kind == "local" else _patience()


def _patience() -> float:
    """PATIENCE, or longer where the environment gives a request to the server longer."""
    given = os.environ.get(store.TIMEOUT, "")
    allowed = int(given) + 1 if given.isascii() and given.isdecimal() else 0
    return max(PATIENCE, min(allowed, LONGEST_PATIENCE))


def _start_process(stage: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dvc_mlflow.process", str(theirs.fileno()), stage],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # if the stage is killed, the process ends the run as KILLED
    )


@contextmanager
def run(stage: str) -> Iterator[Run]:
    """Run the body of ``stage``, and show it as a run in MLflow. At the end the run gets its outs.

    The run ends as FINISHED, as FAILED if the body raises, or as KILLED if it is interrupted.
    """
    address = projects.address() if os.environ.get("DVC_STAGE") else ""
    # A stage may run in another folder, and all paths start in the main one
    with contextlib.chdir(projects.root(Path.cwd()) or Path.cwd()):
        current = Run(stage, address)
    try:
        yield current
    except KeyboardInterrupt:
        current.close("KILLED", "interrupted")
        raise
    except BaseException as error:
        current.close("FAILED", shortened(store.without_user(one_line(error)), 500))
        raise
    current.close("FINISHED")
