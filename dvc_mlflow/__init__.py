"""Keeps MLflow in step with DVC, in any repository: ``with dvc_mlflow.run("train") as run: ...``.

The results are the files that DVC keeps. MLflow only shows them: no result is computed from
something that was read from MLflow. A process beside the stage (process.py) writes the run, and the
stage does not wait for it while it computes. If the tracking server is down, slow or broken, a
request to it fails after store.SETTINGS' seconds, and the stage prints a warning. With
``MIRROR=off`` in the environment there is no run at all.

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

PATIENCE = 60.0  # seconds that a stage waits at its end for its run
REQUESTS = 10  # requests to the store that it waits for, if the environment gives them longer


class Run:
    """The run of a stage. Another process writes it.

    Args:
        address: The full name of the stage, if DVC has started it.
    """

    def __init__(self, stage: str, address: str = "") -> None:
        self.stage = stage
        self._process: subprocess.Popen[str] | None = None
        if os.environ.get("MIRROR") == "off":
            return
        self._ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start_process(address or stage, theirs)
        except OSError as error:
            self._warn(f"{error.filename or 'its process'}: {error.strerror}")

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Show one epoch's metrics while the stage runs."""
        self._send({"epoch": dict(row)})

    def _send(self, message: dict[str, Any]) -> None:
        if self._process:
            with contextlib.suppress(OSError):  # the mirror has given up; close() tells why
                # Shorter than a socket's buffer: goes in whole, or not at all where that is full
                self._ours.send(f"{json.dumps(message)}\n".encode(), socket.MSG_DONTWAIT)

    def close(self, status: str, reason: str = "") -> None:
        """End the run and wait until it is written."""
        if not self._process:
            return
        self._send({"end": status, "reason": reason})
        self._ours.close()
        patience = _patience()
        try:
            lines = self._process.communicate(timeout=patience)[0].splitlines()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._warn(f"no answer for {patience:.0f} s")
            return
        code, failure = self._process.returncode, "its process ended"
        if code == 1 and lines:
            failure = lines.pop()
        for line in lines:
            print(line)
        if code:
            self._warn(failure)

    def _warn(self, failure: str) -> None:
        print(
            f"warning: the MLflow run of {self.stage} is not complete "
            f"({store.without_user(failure)}). The results are; `dvc-mlflow sync` logs them",
            file=sys.stderr,
        )


def _patience() -> float:
    """PATIENCE, or longer where the environment gives a request to the server longer."""
    given = os.environ.get(store.TIMEOUT, "")
    allowed = int(given[:6]) if given.isascii() and given.isdecimal() else 0
    return max(PATIENCE, REQUESTS * allowed)


def _start_process(stage: str, theirs: socket.socket) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dvc_mlflow.process", stage],
        stdin=theirs.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
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
