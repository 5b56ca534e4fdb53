"""The commands: ``python -m dvc_mlflow COMMAND``, or ``dvc-mlflow COMMAND``."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from dvc_mlflow import commands, projects, reasons
from dvc_mlflow.errors import InputError, main_function

STARTED = Path.cwd()


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` shows what is possible")


def parser() -> Parser:
    made = Parser(prog="dvc-mlflow", description=__doc__, allow_abbrev=False)
    known = made.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, text: str, function: str) -> argparse.ArgumentParser:
        added = known.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(function=function)
        return added

    sync = command("sync", "write the runs that MLflow lacks, from dvc.lock", "fresh.sync")
    sync.add_argument("--rev", nargs="?", const="HEAD", help="of a commit or a DVC experiment")
    sync.add_argument("--all", action="store_true", help="of every commit and every DVC experiment")
    sync.add_argument("--since", metavar="DATE", help="with --all: of commits since a date")
    sync.add_argument("--dry", action="store_true", help="only say which runs are missing")
    sync.add_argument("--pull", action="store_true", help="fetch what is not in the cache of DVC")
    sync.add_argument("--project", metavar="FOLDER", help="only the runs of the project there")
    command("status", "which results have no run, and which runs no commit", "sync.status")
    find = command("find", "from a run, model or file to its commits, and back", "find.find")
    find.add_argument("what", help="id of a run or model, models:/NAME@ALIAS, file or commit")
    view = command("view", "the pages of MLflow", "view.show")
    view.add_argument("port", nargs="?", default="")
    install = command("install", "let git start sync after a commit or a merge", "install.install")
    install.add_argument("--remove", action="store_true", help="take that back")
    command("links", "the addresses of the runs", "view.print_links")
    verify = command(
        "verify", "compute the last commit anew, and compare every out", "verify.verify"
    )
    verify.add_argument("--statement", action="store_true", help="write down that it agrees")
    verify.add_argument("--key", help="a private key of OpenSSH that signs the statement")
    attest = command("attest", "on how many machines each out was rebuilt", "attest.report")
    attest.add_argument("--signers", metavar="FILE", help="whose keys count, as for ssh-keygen")
    damage = command(
        "damage", "files and objects whose bytes are not those of dvc.lock", "damage.damage"
    )
    damage.add_argument("--remove", action="store_true", help="remove the damaged objects")
    mend = command("mend", "repair everything that keeps `dvc` from starting", "mend.mend")
    mend.add_argument("--project", metavar="FOLDER", help="only in the project there")
    return made


@main_function
def main() -> None:
    given = vars(parser().parse_args())
    module, function = given.pop("function").split(".")
    del given["command"]
    root = projects.root(STARTED)
    if not root:
        raise InputError(f"{STARTED} is in no DVC repository: run this in one")
    os.environ["PWD"] = str(STARTED)  # for the names of files
    os.chdir(root)
    commands.started = Path(os.path.relpath(STARTED))
    sys.path.insert(0, str(root))  # for the hooks
    with reasons.explained():
        if given.get("project") is not None:
            given["project"] = projects.named(given["project"], STARTED)
        getattr(importlib.import_module(f"dvc_mlflow.{module}"), function)(**given)


if __name__ == "__main__":
    main()
