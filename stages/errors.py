"""How a stage says that it cannot go on: one line, and an exit code."""

import functools
import sys
from collections.abc import Callable
from types import TracebackType


class StageError(Exception):
    """A failure that the user is told in one line, without a traceback (exit code 1)."""

    exit_code = 1


class InputError(StageError):
    """A setting or file that the user gave and that cannot be used (exit code 2)."""

    exit_code = 2


def main_function(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a :class:`StageError` that leaves ``main`` into its line and exit code."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except StageError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)

    return wrapped


def on_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """For sys.excepthook: Ctrl-C is no mistake of the code, wherever it comes."""
    if issubclass(kind, KeyboardInterrupt):
        print(
            f"error: {str(error) or 'interrupted'}; `dvc repro` goes on from here", file=sys.stderr
        )
    else:
        sys.__excepthook__(kind, error, traceback)
