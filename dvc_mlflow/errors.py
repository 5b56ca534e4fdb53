"""Errors for the user: one line, and an exit code."""

import difflib
import functools
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO


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


def main_function(main: Callable[[], None]) -> Callable[[], None]:
    """Report a :class:`StageError` of ``main`` in one line, with its exit code.

    If nobody reads the output any more, as in `dvc-mlflow find HEAD | head -1`, end without a
    message, and with the exit code of a program that is ended by SIGPIPE.
    """

    @functools.wraps(main)
    def wrapped() -> None:
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
        except BrokenPipeError:
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
