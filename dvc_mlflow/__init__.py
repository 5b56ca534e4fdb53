"""Keeps MLflow in step with DVC, in any repository: ``with dvc_mlflow.run("train") as run: ...``.

The results are the files that DVC keeps. MLflow only shows them: no result is computed from
something that was read from MLflow. A process beside the stage (process.py) writes the run, and the
stage does not wait for it while it computes. If the tracking server is down, slow or broken, the
stage prints a warning, and loses at most PATIENCE seconds, or what MLFLOW_HTTP_REQUEST_TIMEOUT
allows a request. With ``MIRROR=off`` in the environment there is no run at all.

``python -m dvc_mlflow`` has the commands for everything else: see __main__.py.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from dvc_mlflow import alone, projects, store
from dvc_mlflow.errors import StageError, one_line, shortened
from dvc_mlflow.hooks import settings

PATIENCE = 5.0  # seconds without progress that a stage waits for at its end
LOCAL_PATIENCE = 60.0  # the same, while the process does not wait for a server
NOTE = "note: "  # before a line of the process that the stage prints
LONGEST_PATIENCE = 86_400  # the most, because a socket takes no timeout of centuries


class Run:
    """The run of a stage. Another process writes it."""

    def __init__(self, stage: str, address: str = "") -> None:
        self.stage = stage
        self._process: socket.socket | None = None
        if os.environ.get("MIRROR") == "off":
            return
        try:
            self._process = _connect()
        except OSError as error:
            self._warn(f"{error.filename or 'its process'}: {error.strerror or error}")
        except StageError as error:
            self._warn(str(error))
        self._send({"stage": address or stage, "environment": dict(os.environ)})

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Show one epoch's metrics while the stage runs."""
        self._send({"epoch": dict(row)})

    def _send(self, message: dict[str, Any]) -> None:
        if self._process:
            with contextlib.suppress(OSError):  # the mirror has given up; close() tells why
                # Shorter than a socket's buffer: goes in whole, or not at all where that is full
                self._process.send(f"{json.dumps(message)}\n".encode(), socket.MSG_DONTWAIT)

    def close(self, status: str, reason: str = "") -> None:
        """End the run and wait until it is written, as long as that makes progress."""
        if not self._process:
            return
        self._send({"end": status, "reason": reason})
        failure = self._wait(self._process)
        self._process.close()
        if failure:
            self._warn(failure)

    def _warn(self, failure: str) -> None:
        print(
            f"warning: the MLflow run of {self.stage} is not complete "
            f"({store.without_user(failure)}). The results are; `dvc-mlflow sync` logs them",
            file=sys.stderr,
        )

    def _wait(self, process: socket.socket) -> str:
        """Why the mirror failed, or nothing."""
        lines: list[str] = []
        said, patience, printed = b"", LOCAL_PATIENCE, 0
        while True:
            process.settimeout(patience)
            try:
                chunk = process.recv(65536)
            except TimeoutError:
                if lines and lines[0].startswith("process "):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(lines[0].split()[1]), signal.SIGKILL)
                return f"no answer for {patience:.0f} s"
            except OSError:
                chunk = b""
            said += chunk
            *lines, _ = said.decode(errors="replace").split("\n")
            notes = [line.removeprefix(NOTE) for line in lines if line.startswith(NOTE)]
            lines = [line for line in lines if not line.startswith(NOTE)]
            for note in notes[printed:]:
                print(note)
            printed = len(notes)
            if lines and lines[-1] == "done":
                return ""
            if lines and lines[-1].startswith("failed: "):
                return lines[-1].removeprefix("failed: ")
            if not chunk:
                return "its process ended"
            patience = LOCAL_PATIENCE if lines and lines[-1] == "local" else _patience()


def _patience() -> float:
    """PATIENCE, or longer where the environment gives a request to the server longer."""
    given = os.environ.get(store.TIMEOUT, "")
    allowed = int(given) + 1 if given.isascii() and given.isdecimal() else 0
    return max(PATIENCE, min(allowed, LONGEST_PATIENCE))


def _connect() -> socket.socket:
    """A connection to the process of this folder, which is started if it does not run."""
    # The name depends on the code, so that a process with older code does not answer
    folders = {Path(__file__).parent, Path(str(settings().get("hooks")).partition(".")[0])}
    code = sorted(path for folder in folders for path in folder.rglob("*.py"))
    state = [(str(path), path.stat().st_mtime_ns) for path in code]
    name = hashlib.sha256(f"{sys.executable} {state}".encode()).hexdigest()[:8]
    # A relative path, because the path of a socket may have 107 bytes at most
    path = projects.scratch() / f"mirror-{name}.sock"
    path.parent.mkdir(parents=True, exist_ok=True)
    process = socket.socket(socket.AF_UNIX)
    with FileLock(path.with_name("mirror.lock"), timeout=PATIENCE):
        try:
            process.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen()
                process.connect(str(path))
                _start_process(listener)
    return process


def _start_process(listener: socket.socket) -> None:
    subprocess.Popen(
        [sys.executable, "-m", "dvc_mlflow.process", str(listener.fileno())],
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # if the stage is killed, the process ends the run as KILLED
    )


@contextmanager
def run(stage: str) -> Iterator[Run]:
    """Run the body of ``stage``, and show it as a run in MLflow. At the end the run gets its outs.

    No other process can run the same stage in this checkout meanwhile. The run ends as FINISHED, as
    FAILED if the body raises, or as KILLED if it is interrupted.

    Raises:
        StageError: Another process runs this stage.
    """
    address = alone.address() if os.environ.get("DVC_STAGE") else ""
    with contextlib.ExitStack() as stack:
        # A stage may run in another folder, and all paths start in the main one
        with contextlib.chdir(projects.root(Path.cwd()) or Path.cwd()):
            stack.enter_context(alone.holding(stage))
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
