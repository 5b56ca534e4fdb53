"""The commands: ``python -m dvc_guard COMMAND``, or ``dvc-guard COMMAND``."""

from dvc_kit.cli import Program
from dvc_kit.errors import main_function
from dvc_mlflow import projects


def program() -> Program:
    made = Program("dvc-guard", "dvc_guard", __doc__)
    command = made.command
    verify = command("verify", "compute the last commit anew, compare every out", "verify.verify")
    verify.add_argument("--statement", action="store_true", help="write down that it agrees")
    command("attest", "on how many machines each out was rebuilt", "attest.report")
    text = "files and objects whose bytes are not those of dvc.lock"
    damage = command("damage", text, "damage.damage")
    damage.add_argument("--remove", action="store_true", help="remove the damaged objects")
    mend = command("mend", "repair everything that keeps `dvc` from starting", "mend.mend")
    mend.add_argument("--project", metavar="FOLDER", help="only in the project there")
    return made


@main_function
def main() -> None:
    program().enter(projects.root, projects.named)()


if __name__ == "__main__":
    main()
