"""The commands: ``python -m dvc_guard COMMAND``, or ``dvc-guard COMMAND``."""

import importlib

from dvc_kit.cli import STARTED, Program
from dvc_kit.errors import main_function
from dvc_mlflow import projects


def program() -> Program:
    made = Program("dvc-guard", __doc__)
    command = made.command
    verify = command("verify", "compute the last commit anew, compare every out", "verify.verify")
    verify.add_argument("--statement", action="store_true", help="write down that it agrees")
    verify.add_argument("--key", help="a private key of OpenSSH that signs the statement")
    attest = command("attest", "on how many machines each out was rebuilt", "attest.report")
    attest.add_argument("--signers", metavar="FILE", help="whose keys count, as for ssh-keygen")
    text = "files and objects whose bytes are not those of dvc.lock"
    damage = command("damage", text, "damage.damage")
    damage.add_argument("--remove", action="store_true", help="remove the damaged objects")
    mend = command("mend", "repair everything that keeps `dvc` from starting", "mend.mend")
    mend.add_argument("--project", metavar="FOLDER", help="only in the project there")
    return made


@main_function
def main() -> None:
    module, function, given = program().enter(projects.root)
    if given.get("project") is not None:
        given["project"] = projects.named(given["project"], STARTED)
    getattr(importlib.import_module(f"dvc_guard.{module}"), function)(**given)


if __name__ == "__main__":
    main()
