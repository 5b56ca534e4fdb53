"""The commands: ``python -m dvc_mlflow COMMAND``, or ``dvc-mlflow COMMAND``."""

from dvc_kit.cli import Program
from dvc_kit.errors import main_function
from dvc_mlflow import projects, reasons


def program() -> Program:
    made = Program("dvc-mlflow", "dvc_mlflow", __doc__)
    command = made.command
    sync = command("sync", "write the runs that MLflow lacks, from dvc.lock", "sync.sync")
    sync.add_argument("--rev", nargs="?", const="HEAD", help="of a commit or a DVC experiment")
    sync.add_argument("--all", action="store_true", help="of every commit and every DVC experiment")
    sync.add_argument("--since", metavar="DATE", help="with --all: of commits since a date")
    sync.add_argument("--dry", action="store_true", help="only say which runs are missing")
    sync.add_argument("--pull", action="store_true", help="fetch what is not in the cache of DVC")
    sync.add_argument("--project", metavar="FOLDER", help="only the runs of the project there")
    sync.add_argument("--address", action="store_true", help="say where the runs are shown")
    status = command(
        "status", "which results have no run, and which runs no commit", "status.status"
    )
    find = command("find", "from a run, model or file to its commits, and back", "find.find")
    find.add_argument("what", help="id of a run or model, models:/NAME@ALIAS, file or commit")
    verify = command("verify", "compute the results of a run anew, compare bytes", "verify.verify")
    verify.add_argument("what", help="id of a run or model, models:/NAME@ALIAS, or commit")
    verify.add_argument("--project", metavar="FOLDER", help="of a commit, only the project there")
    prune = command("prune", "delete the runs whose results nothing in git holds", "prune.prune")
    prune.add_argument("--dry", action="store_true", help="only say which runs these are")
    prune.add_argument("--older", metavar="DATE", help="only runs that began before a date")
    view = command("view", "the pages of MLflow", "view.show")
    view.add_argument("port", nargs="?", default="")
    view.add_argument("--host", default="127.0.0.1", help="where it listens (%(default)s)")
    install = command("install", "let git start sync after a commit or a merge", "install.install")
    install.add_argument("--remove", action="store_true", help="take that back")
    sync.epilog = "example: dvc-mlflow sync --rev HEAD~1"
    status.epilog = "example: dvc-mlflow status || dvc-mlflow sync"
    find.epilog = "example: dvc-mlflow find models:/NAME@champion"
    verify.epilog = "example: dvc-mlflow verify HEAD"
    prune.epilog = "example: dvc-mlflow prune --dry"
    view.epilog = "example: dvc-mlflow view 5001"
    install.epilog = "example: dvc-mlflow install --remove"
    return made


@main_function
def main() -> None:
    call = program().enter(projects.root, projects.named)
    with reasons.explained():
        call()


if __name__ == "__main__":
    main()
