"""Other programs, whose failures are reported in one line."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from dvc_mlflow.errors import StageError, one_line


def output_of(command: Sequence[str], folder: Path = Path(), given: str | None = None) -> str:
    """The output of a command.

    Args:
        folder: Where it runs.
        given: The text of its standard input.

    Raises:
        StageError: It fails, or cannot be started.
    """
    try:
        result = subprocess.run(
            command, cwd=folder, input=given, capture_output=True, text=True, encoding="utf-8"
        )
    except OSError as error:
        raise StageError(
            f"{command[0]} cannot be started ({error.strerror}): is it installed?"
        ) from None
    if result.returncode != 0:
        reason = one_line(result.stderr or result.stdout) or f"exit code {result.returncode}"
        raise StageError(f"`{' '.join(command)}`: {reason}")
    return result.stdout
