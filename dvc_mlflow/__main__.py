"""The commands: ``python -m dvc_mlflow COMMAND``, or ``dvc-mlflow COMMAND``.

sync [REV]              write the runs that MLflow lacks, from the results in dvc.lock
status                  how many results have their run
find WHAT               from a run, model or file to its commits; from a commit to its runs
view [PORT]             the pages of MLflow
links                   their addresses
verify [statement [KEY]]  compute the last commit anew, and compare every out
attest                  on how many machines each out was rebuilt
damage [remove]         files and objects whose bytes are not those of dvc.lock
mend                    repair everything that keeps `dvc` from starting
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from dvc_mlflow import projects, store
from dvc_mlflow.errors import InputError, did_you_mean, main_function


def sync(rev: str | None = None) -> None:
    from dvc_mlflow import sync

    sync.sync(rev)


def status() -> None:
    from dvc_mlflow import sync

    sync.status()


def find(what: str = "") -> None:
    from dvc_mlflow import find

    if not what:
        raise InputError(
            "nothing to find: name a run, a model version, a model file or a commit "
            "(`make find WHAT=...`)"
        )
    store.find_experiment()
    find.find(what, STARTED / what)


def view(port: str = "") -> None:
    from dvc_mlflow import view

    view.show(port)


def links() -> None:
    from dvc_mlflow import view

    print(view.links())


def verify(*arguments: str) -> None:
    from dvc_mlflow import verify

    verify.verify(*arguments)


def attest() -> None:
    from dvc_mlflow import attest

    attest.report()


def damage(action: str = "") -> None:
    from dvc_mlflow import damage

    if action not in ("", "remove"):
        raise InputError(f"expected `remove` or nothing, found {action}")
    (damage.remove if action else damage.report)()


def mend() -> None:
    from dvc_mlflow import mend

    mend.mend()


STARTED = Path.cwd()
COMMANDS: dict[str, tuple[Callable[..., None], int]] = {  # and the most arguments
    "sync": (sync, 1),
    "status": (status, 0),
    "find": (find, 1),
    "view": (view, 1),
    "links": (links, 0),
    "verify": (verify, 2),
    "attest": (attest, 0),
    "damage": (damage, 1),
    "mend": (mend, 0),
}


@main_function
def main() -> None:
    command, *arguments = [item for item in sys.argv[1:] if item] or [""]
    if command not in COMMANDS or len(arguments) > COMMANDS[command][1]:
        near = did_you_mean(command, COMMANDS) if command else ""
        raise InputError(f"usage: dvc-mlflow {' | '.join(COMMANDS)}{near}")
    _go_to_main_folder()
    with store.explained():
        COMMANDS[command][0](*arguments)


def _go_to_main_folder() -> None:
    """Change to the main folder of the DVC repository that this folder is in.

    Raises:
        InputError: It is in none.
    """
    found = projects.main_folder(STARTED)
    if not found:
        raise InputError(f"{STARTED} is in no DVC repository: run this in one")
    os.chdir(found)
    sys.path.insert(0, str(found))  # for the hooks


if __name__ == "__main__":
    main()
