"""Errors for the user: one line, and an exit code."""

import difflib
import functools
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

PATIENCE = 10.0  # seconds for cleaning up after a Ctrl-C
# Our own commands, whose Ctrl-C is one line already during the imports
PROGRAMS = {"dvc-mlflow", "dvc_mlflow", "dvc-guard", "dvc_guard"}
after_interrupt = ""  # what a program adds to that line


class StageError(Exception):
    """A failure that is reported in one line, without a traceback (exit code 1)."""

    exit_code = 1


class InputError(StageError):
    """A setting, a file or an argument that cannot be used (exit code 2)."""

    exit_code = 2


class WriteError(StageError):
    """A file cannot be written: the disk is full, or the folder read-only (exit code 3)."""

    exit_code = 3


class BusyError(StageError):
    """Another process runs the same stage in this checkout (exit code 4)."""

    exit_code = 4


def one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())


def shortened(text: str, longest: int) -> str:
    """A text without its middle, if it is longer: the end of a reason is often the reason."""
    first, last = (longest - 5) // 2, (longest - 4) // 2
    return text if len(text) <= longest else f"{text[:first]} ... {text[-last:]}"


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """A hint at the most similar name, or nothing."""
    near = difflib.get_close_matches(str(given), list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def open_streams() -> None:
    """Open those of the standard streams that are closed, as after ``>&-``, to nowhere.

    Otherwise the next file that is opened, such as a result, would become the output.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest one that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def on_uncaught(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Ctrl-C is not a mistake in the code: one line, as `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # also while Python ends
        print(f"error: {str(error) or 'interrupted'}{after_interrupt}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


open_streams()  # before anything else opens a file
if PROGRAMS & {Path(sys.argv[0]).name, *sys.orig_argv[:4]}:
    sys.excepthook = on_uncaught

_interrupted = [-PATIENCE]  # when the last Ctrl-C came that was not ignored


def _interrupt(*_: object) -> None:
    """Ctrl-C ends a program. More of them do not disturb it while it cleans up."""
    if time.monotonic() > _interrupted[0] + PATIENCE:
        _interrupted[0] = time.monotonic()
        raise KeyboardInterrupt


def main_function(main: Callable[[], None]) -> Callable[[], None]:
    """Report a :class:`StageError` of ``main`` in one line, with its exit code.

    A Ctrl-C ends it without a traceback, and so do several of them.

    If nobody reads the output any more, as in `dvc-mlflow find HEAD | head -1`, end without a
    message, and with the exit code of a program that is ended by SIGPIPE.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
            sys.excepthook = on_uncaught
        try:
            try:
                main()
            except StageError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(error.exit_code)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
            if not unread:
                raise
            for stream in unread:
                _discard(stream.fileno())  # at its end, Python writes the rest of the buffer
            sys.exit(128 + signal.SIGPIPE)

    return wrapped


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe without a reader."""
    look = select.poll()
    look.register(stream, 0)
    return any(event & select.POLLERR for _, event in look.poll(0))


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Unbroken(io.FileIO):
    """An output that drops everything as soon as there is no reader."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:  # or no space for it, or no terminal any more
            _discard(self.fileno())
            return len(memoryview(content).cast("B"))


def outlive_readers() -> None:
    """Let the process continue if nobody reads its output any more, and write each line at once.

    The results of a stage are files, and `dvc repro | head -1` has to write them. A reader such as
    `dvc repro | tee log` follows a training while it runs.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Unbroken(stream.fileno(), "wb", closefd=False)
            unbroken = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,
                write_through=stream.write_through,
            )
            setattr(sys, name, unbroken)
