"""``install``: let git start `dvc-mlflow sync` after each commit and each merge."""

import os
import re
import shlex
import stat
import sys
from pathlib import Path

from dvc_kit import files
from dvc_kit.commands import visible
from dvc_kit.errors import InputError
from dvc_mlflow import git

HOOKS = ("post-commit", "post-merge")
SCRIPT = rb"#!(.*[/ ])?(sh|ash|dash|bash|ksh|zsh)( -\w+)*"  # the first line of a hook
MAKERS = rb"lefthook|husky"  # write hooks anew
# Git tells a hook where the repository is, which would mislead commands for other folders
COMMAND = "env -u GIT_DIR -u GIT_INDEX_FILE -u GIT_WORK_TREE nohup {} -m dvc_mlflow sync"
IN_BACKGROUND = "</dev/null >/dev/null 2>&1 &"
MARK = b"\n# dvc-mlflow install: the next line writes the missing runs, in the background"
LINES = re.compile(rb"%b\n[^\n]*" % MARK)
MADE = b"#!/bin/sh\n# made by dvc-mlflow install\n"  # a hook with nothing of the user's


def install(remove: bool = False) -> None:
    """Add two lines to two hooks of git, or remove them. The rest of a hook stays as it is.

    Raises:
        InputError: A hook is not of this repository alone, git tracks it, another program writes
            it, or it is no script of a shell that git runs. Nothing is changed then.
    """
    folder = Path(git.git("rev-parse", "--git-path", "hooks").removesuffix("\n"))
    line = f"{COMMAND.format(shlex.quote(sys.executable))} {IN_BACKGROUND}"
    changed: dict[Path, bytes | None] = {}
    for path in (folder / name for name in HOOKS):
        present = path.read_bytes() if path.exists() else None
        own = present and LINES.sub(b"", present)
        if (not remove or own != present) and (reason := _refusal(path, own)):
            cure = "remove the lines of dvc-mlflow from it" if remove else f"let it start `{line}`"
            raise InputError(f"{visible(str(path))} {reason}: by hand, {cure}")
        if remove:
            changed[path] = None if own == MADE else own
        else:
            first, end, rest = (MADE if own is None else own).partition(b"\n")
            changed[path] = first + MARK + b"\n" + line.encode() + end + rest
    for path, content in changed.items():
        at = path.resolve()
        if content is None:
            at.unlink(missing_ok=True)
        else:
            mode = stat.S_IMODE(at.stat().st_mode) if at.exists() else 0o755
            files.write_bytes(at, content)
            at.chmod(mode)
        does = "no longer starts" if remove else "starts"
        print(f"{visible(str(path))} {does} `dvc-mlflow sync`")


def _refusal(path: Path, own: bytes | None) -> str:
    """Why a hook with this content is not changed, or nothing."""
    ours = git.git("rev-parse", "--git-common-dir", "--show-toplevel").splitlines()
    if not any(path.resolve().is_relative_to(Path(place).resolve()) for place in ours):
        return "is not of this repository alone (`git config --show-origin core.hooksPath`)"
    if git.content("ls-files", "--", str(path.resolve())):
        return "is tracked by git"
    if maker := re.search(MAKERS, (own or b"") + os.fsencode(path.parent.parent.name)):
        return f"is written by {maker[0].decode()}"
    if own is not None and not re.fullmatch(SCRIPT, own.partition(b"\n")[0]):
        return "is no shell script"
    runs = own is None or os.access(path, os.X_OK)
    return "" if runs else "is not executable, so git does not run it"
