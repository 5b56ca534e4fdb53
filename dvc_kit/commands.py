"""Other programs: as they are shown to a person, and their failures in one line."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dvc_kit.errors import StageError, one_line

started = Path()  # where the user is, from the folder that the paths start in


def quoted(word: str) -> str:
    """A word for a shell, in one line also if it has a line break or another control character."""
    if word.isprintable() or word.endswith("\n"):
        return shlex.quote(word)
    written = "".join(
        char
        if char.isalnum() or char in " ./_-"
        else "".join(f"\\{byte:03o}" for byte in char.encode())
        for char in word
    )
    return f"\"$(printf '{written}')\""


def shown(*commands: Sequence[str], folder: Path = Path()) -> str:
    """Commands that work wherever the user is, and do what they say whatever the names are.

    Args:
        folder: Where they have to run.
    """
    text = " && ".join(" ".join(map(quoted, command)) for command in commands)
    way = os.path.relpath(folder, started)
    return text if way == "." else f"(cd {quoted(as_path(way))} && {text})"


def as_path(name: str) -> str:
    """A path that no command takes for an option."""
    return f"./{name}" if name.startswith("-") else name


def at(name: str) -> Path:
    """The file that a person named, from where the command was started."""
    return started / Path(name).expanduser()


def visible(name: str) -> str:
    """A name within a line."""
    return name if name.isprintable() else repr(name)


class CommandError(StageError):
    """Another program fails.

    Attributes:
        reason: What it says about that, in one line. Empty if it was asked to be quiet.
    """

    def __init__(self, command: Sequence[str], code: int, reason: str) -> None:
        super().__init__(f"`{shown(command)}`: {reason or f'exit code {code}'}")
        self.reason = reason


def output_of(command: Sequence[str], folder: Path = Path(), given: str | None = None) -> str:
    """The output of a command.

    Args:
        folder: Where it runs.
        given: The text of its standard input.

    Raises:
        CommandError: It fails, or cannot be started.
    """
    try:
        result = subprocess.run(
            command, cwd=folder, input=given, capture_output=True, text=True, encoding="utf-8"
        )
    except OSError as error:
        reason = f"{command[0]} cannot be started ({error.strerror}): is it installed?"
        raise CommandError(command, 127, reason) from None
    if result.returncode != 0:
        raise CommandError(command, result.returncode, one_line(result.stderr or result.stdout))
    return result.stdout


def bytes_of(command: Sequence[str], folder: Path = Path(), given: bytes = b"") -> bytes | None:
    """The output of a command that may be no text. None if it fails, or cannot be started."""
    try:
        result = subprocess.run(command, cwd=folder, input=given, capture_output=True)
    except OSError:
        return None
    return None if result.returncode else result.stdout
