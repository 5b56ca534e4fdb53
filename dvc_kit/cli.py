"""A program with commands: ``python -m dvc_mlflow COMMAND``, ``python -m dvc_guard COMMAND``."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from dvc_kit import commands
from dvc_kit.errors import InputError

STARTED = Path.cwd()


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` shows what is possible")


class Program:
    """A parser with one subparser per command.

    Args:
        name: As a person types it.
        house: The package that has the modules of the commands.
    """

    def __init__(self, name: str, house: str, description: str | None) -> None:
        self._house = house
        self._parser = Parser(prog=name, description=description, allow_abbrev=False)
        self._known = self._parser.add_subparsers(
            dest="command", required=True, parser_class=Parser
        )

    def command(self, name: str, text: str, function: str) -> argparse.ArgumentParser:
        """Add a command, which calls ``function``, named as `module.function`."""
        added = self._known.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(function=function)
        return added

    def enter(
        self, root: Callable[[Path], Path | None], project: Callable[[str, Path], Path]
    ) -> Callable[[], None]:
        """Parse the command line, and go to the root of the repository.

        Args:
            root: The root of the repository that a folder is in.
            project: The project that a person named from a folder.

        Returns:
            The command, which still has to be called.
        """
        given = vars(self._parser.parse_args())
        module, function = given.pop("function").split(".")
        del given["command"]
        folder = root(STARTED)
        if not folder:
            raise InputError(f"{STARTED} is in no DVC repository: run this in one")
        os.environ["PWD"] = str(STARTED)  # for the names of files
        os.chdir(folder)
        commands.started = Path(os.path.relpath(STARTED))
        sys.path.insert(0, str(folder))  # for the hooks

        def call() -> None:
            if given.get("project") is not None:
                given["project"] = project(given["project"], STARTED)
            getattr(importlib.import_module(f"{self._house}.{module}"), function)(**given)

        return call
