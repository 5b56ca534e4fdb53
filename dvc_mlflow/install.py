"""``install``: let git start `dvc-mlflow sync` after each commit and each merge."""

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

from dvc_kit import files
from dvc_kit.commands import visible
from dvc_kit.errors import InputError, one_line
from dvc_mlflow.git import GitError, git

HOOKS = ("post-commit", "post-merge")
SHELLS = ("sh", "ash", "dash", "bash", "ksh", "zsh")
# Git tells a hook where the repository is, which would mislead commands for other folders
COMMAND = "env -u GIT_DIR -u GIT_INDEX_FILE -u GIT_WORK_TREE nohup {} -m dvc_mlflow sync"
IN_BACKGROUND = "</dev/null >/dev/null 2>&1 &"
MARK = b"\n# dvc-mlflow install: the next line writes the missing runs, in the background"
LINES = re.compile(rb"%b\n[^\n]*" % MARK)
MADE = b"#!/bin/sh\n# made by dvc-mlflow install\n"  # a hook with nothing of the user's


def install(remove: bool = False) -> None:
    """Add two lines to two hooks of git, or remove them. The rest of a hook stays as it is.

    Raises:
        InputError: Git takes its hooks from outside of this repository, a hook is no shell script,
            it is not executable, another program writes it, or git tracks it. Nothing is changed
            then.
    """
    folder = Path(git("rev-parse", "--git-path", "hooks").removesuffix("\n"))
    hooks = {}
    for path in (folder / name for name in HOOKS):
        try:
            present = path.read_bytes() if path.exists() else None
        except OSError as error:
            raise InputError(f"{visible(str(path))} cannot be read ({error.strerror})") from None
        hooks[path] = present, _changed(path, present, remove)
    for path, (present, content) in hooks.items():
        at = path.resolve()
        if content is None:
            at.unlink(missing_ok=True)
        elif content != present:
            mode = 0o755 if present is None else stat.S_IMODE(at.stat().st_mode)
            files.write_bytes(at, content)
            at.chmod(mode)
        does = "no longer starts" if remove else "starts"
        print(f"{visible(str(path))} {does} `dvc-mlflow sync`")


def _changed(path: Path, present: bytes | None, remove: bool) -> bytes | None:
    """The content of a hook with our lines, or without them. None where nothing is left of it."""
    line = f"{COMMAND.format(shlex.quote(sys.executable))} {IN_BACKGROUND}"
    name = visible(str(path))
    by_hand = "remove the lines of dvc-mlflow from it" if remove else f"add to it: `{line}`"
    if _is_shared(path):
        raise InputError(
            f"{name} is not of this repository alone (it is a link, or `git config --show-origin "
            f"core.hooksPath` tells): by hand, {by_hand}"
        )
    own = present and LINES.sub(b"", present)
    if remove and own == present:
        return own
    if _is_tracked(path.resolve()):
        raise InputError(f"git tracks {name}: by hand, {by_hand}, and commit that")
    if own == MADE:
        own = None
    if remove:
        return own
    if maker := re.search(rb"lefthook|husky", (own or b"") + os.fsencode(path.parent.parent.name)):
        raise InputError(f"{maker[0].decode()} writes {name}: let it run `{line}`")
    first, end, rest = (MADE if own is None else own).partition(b"\n")
    content = first + MARK + b"\n" + line.encode() + end + rest
    is_run = present is None or os.access(path, os.X_OK)
    if reason := _unfit(first, content) if is_run else "is not executable, so git does not run it":
        raise InputError(f"{name} {reason}: let it start `{line}`")
    return content


def _is_tracked(path: Path) -> bool:
    try:
        return bool(git("ls-files", "--", f":(literal){path}"))
    except GitError:  # it is in the git folder of a worktree or of a submodule
        return False


def _is_shared(path: Path) -> bool:
    """Whether a hook is also of other repositories, because of core.hooksPath or a link."""
    try:
        scope, value = git("config", "--show-scope", "--get", "core.hooksPath").split("\t", 1)
    except GitError:  # it is not set
        scope, value = "", ""
    if scope in ("global", "system") and value.startswith(("/", "~")):
        return True
    asked = git("rev-parse", "--git-common-dir", "--show-toplevel").splitlines()
    return not any(path.resolve().is_relative_to(Path(place).resolve()) for place in asked)


def _unfit(first: bytes, content: bytes) -> str:
    """Why no shell runs a hook with this first line and this content, or nothing."""
    words = [os.fsdecode(word) for word in first.removeprefix(b"#!").split()]
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    is_script = first.startswith(b"#!") and not first.endswith(b"\r")
    if not words or not is_script or Path(words[0]).name not in SHELLS:
        return "is no shell script"
    try:
        checked = subprocess.run([words[0], "-n"], input=content, capture_output=True)
    except OSError as error:
        return f"needs {words[0]} ({error.strerror})"
    reason = one_line(checked.stderr.decode(errors="replace"))
    return f"has an error ({reason})" if checked.returncode else ""
