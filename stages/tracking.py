"""The mirror, as a stage sees it: ``with tracking.run("prepare") as run: ...``.

The truth is the files that DVC keeps; MLflow only shows them, so nothing is read back from it to
compute a result. The run is written by a process beside the stage (stages/mirror.py), which the
stage never waits for while it computes. A tracking server that is down, slow or broken costs a
warning and at most PATIENCE seconds. ``MIRROR=off`` in the environment makes no run at all.

    python -m stages.tracking sync [REV]    write the runs that MLflow lacks, from the results
    python -m stages.tracking sync-study    the same for the study's
    python -m stages.tracking find WHAT     from a run, model or model file to its commits, and back
    python -m stages.tracking check MODEL   whether a logged model is what a commit's dvc.lock holds
    python -m stages.tracking view          where the UI shows all runs
    python -m stages.tracking ui [PORT]     start the UI, or name the server that has it
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages import store
from stages.errors import InputError, main_function, one_line

PATIENCE = 5.0  # seconds without a sign of progress, once the stage has nothing else to do
LOCAL_PATIENCE = 60.0  # the same while the mirror works on this machine only: imports, export


class Run:
    """One stage's run, written by a process of its own."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._mirror: socket.socket | None = None
        if os.environ.get("MIRROR") == "off":
            return
        try:
            self._mirror = _connect(stage)
        except OSError as error:
            self._warn(f"{error.filename or 'its process'}: {error.strerror or error}")
        self._send({"stage": stage, "environment": dict(os.environ)})

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Show one epoch's metrics while the stage runs."""
        self._send({"epoch": dict(row)})

    def _send(self, message: dict[str, Any]) -> None:
        if self._mirror:
            with contextlib.suppress(OSError):  # the mirror has given up; close() tells why
                # Shorter than a socket's buffer: goes in whole, or not at all where that is full
                self._mirror.send(f"{json.dumps(message)}\n".encode(), socket.MSG_DONTWAIT)

    def close(self, status: str, reason: str = "") -> None:
        """End the run and wait until it is written, as long as that makes progress."""
        if not self._mirror:
            return
        self._send({"end": status, "reason": reason})
        failure = self._wait(self._mirror)
        self._mirror.close()
        if failure:
            self._warn(failure)

    def _warn(self, failure: str) -> None:
        print(
            f"warning: MLflow run of {self.stage} is not complete "
            f"({store.without_user(failure)}). The results are; `make sync` logs them",
            file=sys.stderr,
        )

    def _wait(self, mirror: socket.socket) -> str:
        """Why the mirror failed, or nothing."""
        lines: list[str] = []
        said, patience = b"", LOCAL_PATIENCE
        while True:
            mirror.settimeout(patience)
            try:
                chunk = mirror.recv(65536)
            except TimeoutError:
                if lines and lines[0].startswith("process "):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(lines[0].split()[1]), signal.SIGKILL)
                return f"no answer for {patience:.0f} s"
            except OSError:
                chunk = b""
            said += chunk
            *lines, _ = said.decode(errors="replace").split("\n")
            if lines and lines[-1] == "done":
                return ""
            if lines and lines[-1].startswith("failed: "):
                return lines[-1].removeprefix("failed: ")
            if not chunk:
                return "its process ended"
            patience = LOCAL_PATIENCE if lines and lines[-1] == "local" else PATIENCE


def _connect(stage: str) -> socket.socket:
    """A connection to the mirror of this folder, which is started where none is running."""
    # Named after the code that it runs, so that an edit is not answered by what was before it
    code = sorted(Path(__file__).parent.glob("*.py"))
    state = [(path.name, path.stat().st_mtime_ns) for path in code]
    name = hashlib.sha256(f"{sys.executable} {state}".encode()).hexdigest()[:8]
    # Not the absolute path, because a socket's may have 107 bytes only
    path = Path(".dvc", "tmp", f"mirror-{name}.sock")
    path.parent.mkdir(parents=True, exist_ok=True)
    mirror = socket.socket(socket.AF_UNIX)
    with FileLock(path.with_name("mirror.lock"), timeout=PATIENCE):
        try:
            mirror.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen()
                mirror.connect(str(path))
                _start_mirror(listener, stage)
    return mirror


def _start_mirror(listener: socket.socket, stage: str) -> None:
    subprocess.Popen(
        [sys.executable, "-m", "stages.mirror", str(listener.fileno()), stage],
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a stage that is killed leaves it to end the run as KILLED
    )


@contextmanager
def run(stage: str) -> Iterator[Run]:
    """A run for ``stage`` while its body computes, then a copy of the outs that it wrote.

    The run ends FINISHED, FAILED when the body raises, or KILLED when it is interrupted.
    """
    current = Run(stage)
    try:
        yield current
    except KeyboardInterrupt:
        current.close("KILLED", "interrupted")
        raise
    except BaseException as error:
        current.close("FAILED", store.without_user(one_line(error))[:500])
        raise
    current.close("FINISHED")


USAGE = (
    "usage: python -m stages.tracking sync [REV] | sync-study | find WHAT | check MODEL | view"
    " | ui [PORT]"
)


@main_function
def main() -> None:
    command, arguments = (sys.argv[1:2] or [""])[0], [item for item in sys.argv[2:] if item]
    # A file is named from where the user stands, everything else from the project's folder
    file = Path(*arguments[:1]).absolute()
    os.chdir(Path(__file__).parents[1])
    commands = ("sync", "sync-study", "find", "check", "view", "ui")
    if command not in commands or len(arguments) > 1:
        raise InputError(USAGE)
    if command in ("find", "check") and not arguments:
        what = "a run, a model version, a model file or a commit"
        raise InputError(f"nothing to {command}: name {what} (`make {command} WHAT=...`)")
    try:
        with store.explained():
            _do(command, arguments, file)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output, like `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _do(command: str, arguments: list[str], file: Path) -> None:
    from stages import find, ui

    if command in ("sync", "sync-study"):
        from stages import sync

        experiment = store.STUDY if command == "sync-study" else store.PIPELINE
        experiment_id = store.open_store(experiment)
        if command == "sync":
            sync.sync(experiment_id, *arguments)
        else:
            sync.sync_study(experiment_id)
    elif command == "find":
        store.find_experiment()
        find.find(arguments[0], file)
    elif command == "check":
        store.find_experiment()
        with tempfile.TemporaryDirectory(prefix="check-") as folder:
            print(find.check(arguments[0], Path(folder)))
    elif command == "view":
        print(ui.links())
    else:
        ui.show(*arguments)


if __name__ == "__main__":
    main()
