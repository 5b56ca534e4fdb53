"""``install``: let git start `dvc-mlflow sync` after each commit and each merge."""

import sys
from pathlib import Path

from dvc_mlflow.errors import InputError
from dvc_mlflow.git import git

HOOKS = ("post-commit", "post-merge")
MARK = "# dvc-mlflow: the next line writes the missing runs, in the background"
# Git tells a hook where the repository is, which would mislead commands for other folders
COMMAND = "env -u GIT_DIR -u GIT_INDEX_FILE -u GIT_WORK_TREE nohup '{}' -m dvc_mlflow sync"


def install(remove: bool = False) -> None:
    """Add two lines to two hooks of git, or remove them. The rest of a hook stays as it is.

    Raises:
        InputError: A hook is no shell script, or git tracks it. Nothing is changed then.
    """
    folder = Path(git("rev-parse", "--git-path", "hooks").strip())
    command = COMMAND.format(sys.executable)
    hooks = {}
    for path in (folder / name for name in HOOKS):
        lines = path.read_text("utf-8").splitlines() if path.exists() else ["#!/bin/sh"]
        if not lines[0].startswith("#!") or not lines[0].split()[-1].endswith("sh"):
            raise InputError(
                f"{path} is no shell script: let it start `{command}` in the background"
            )
        if git("ls-files", "--", str(path)) if path.exists() else "":
            raise InputError(f"git tracks {path}: add `{command} &` to it and commit that")
        if MARK in lines:
            at = lines.index(MARK)
            del lines[at : at + 2]
        if not remove:
            lines += [MARK, f"{command} </dev/null >/dev/null 2>&1 &"]
        hooks[path] = lines
    folder.mkdir(parents=True, exist_ok=True)
    for path, lines in hooks.items():
        if lines == ["#!/bin/sh"]:
            path.unlink(missing_ok=True)
        else:
            path.write_text("\n".join(lines) + "\n", "utf-8")
            path.chmod(0o755)
        print(f"{path} {'no longer starts' if remove else 'starts'} `dvc-mlflow sync`")
