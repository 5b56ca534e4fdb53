"""Errors for the user: one line, and an exit code."""

import contextlib
import difflib
import functools
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

PATIENCE = 10.0  # seconds for cleaning up after a Ctrl-C


class StageError(Exception):
    """A failure that is reported in one line, without a traceback (exit code 1)."""

    exit_code = 1


class InputError(StageError):
    """A setting, a file or an argument that cannot be used (exit code 2)."""

    exit_code = 2


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


open_streams()  # before anything else opens a file


class _Interrupts:
    """The first Ctrl-C ends a program. More of them do not disturb it while it cleans up."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        if self._first is None or now > self._first + PATIENCE:
            self._first = now if self._first is None else self._first
            raise KeyboardInterrupt


def _on_uncaught(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # also while Python ends
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


# Of our own commands already during the imports. A stage has words of its own
if Path(sys.argv[0]).name == "dvc-mlflow" or "dvc_mlflow" in sys.orig_argv[:4]:
    sys.excepthook = _on_uncaught


@contextlib.contextmanager
def _interruptible(of_dvc_mlflow: bool) -> Iterator[None]:
    """Let a Ctrl-C in the body end the program with one line, as the signal would."""
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    is_ours = in_main and before is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _Interrupts())
    try:
        yield
    except KeyboardInterrupt:
        if is_ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A stage may have words of its own
        if of_dvc_mlflow or sys.excepthook is sys.__excepthook__:
            sys.excepthook = _on_uncaught
        raise
    finally:
        if is_ours and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def main_function(main: Callable[[], None]) -> Callable[[], None]:
    """Report a :class:`StageError` of ``main`` in one line, with its exit code.

    A Ctrl-C ends it without a traceback, and so do several of them.

    If nobody reads the output any more, as in `dvc-mlflow find HEAD | head -1`, end without a
    message, and with the exit code of a program that is ended by SIGPIPE.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            with _interruptible(main.__globals__.get("__package__") == __package__):
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
    if sys.stdout is sys.__stdout__ and sys.stdout:
        sys.stdout = _unbroken(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr:
        sys.stderr = _unbroken(sys.stderr)


def _unbroken(stream: Any) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unbroken(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
        write_through=stream.write_through,
    )
