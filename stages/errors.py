"""How a stage says that it cannot go on: one line, and an exit code."""

import functools
import sys
from collections.abc import Callable


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
