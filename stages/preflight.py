"""What has to hold before `dvc` starts, in `make repro`: ``python -m stages.preflight``.

In a copy without history, as in a ZIP file, DVC is told to do without git. DVC removes a stage's
outs before the stage itself can refuse a setting, so params.yaml is checked here. And DVC writes
its lock files in place: one that it was killed in is mended, because with it no `dvc` command
starts.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from stages import alone, files, params, results
from stages.errors import StageError, main_function, one_line

RWLOCK = Path(".dvc", "tmp", "rwlock")
RWLOCKS = (RWLOCK, files.STUDY / RWLOCK)  # of both DVC projects


def check_writable() -> None:
    """DVC calls a read-only folder an unexpected error.

    Raises:
        StageError: Nothing can be written here.
    """
    with files.writing(RWLOCK.parent):
        RWLOCK.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=RWLOCK.parent).close()


def is_in_git() -> bool:
    """Whether this folder, or one above it, is a git repository; needs no git."""
    here = Path.cwd()
    return any((folder / ".git").exists() for folder in (here, *here.parents))


def do_without_git() -> None:
    """Let DVC work in a folder that no git repository holds.

    Raises:
        StageError: DVC's settings cannot be read or written.
    """
    if is_in_git():
        return
    dvc = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm"]
    if subprocess.run(dvc, capture_output=True, text=True).stdout.strip() == "true":
        return
    told = subprocess.run([*dvc, "true"], capture_output=True, text=True)
    if told.returncode:
        raise StageError(f"this is no git repository, and DVC fails: {one_line(told.stderr)}")
    print(
        "this is no git repository: DVC does without (core.no_scm in .dvc/config.local). After a "
        "`git init`: `dvc config --local --unset core.no_scm`"
    )


def mend_dvc_lock(path: Path) -> None:
    """Take back the last readable copy of a torn dvc.lock: `dvc repro` then runs what it lacks."""
    if not path.exists() or is_whole(path):
        return
    kept = alone.kept(path)
    if kept.is_file() and is_whole(kept):
        shutil.copyfile(kept, path)
        origin = "from before its last stage began"
    else:
        try:
            committed = results.git("show", f"HEAD:./{path.as_posix()}")
        except StageError as error:
            raise StageError(
                f"{path} cannot be read, and git gives no older one ({error}): `rm {path}`, then "
                "`dvc repro` computes it anew"
            ) from None
        files.write_text(path, committed)
        if not is_whole(path):
            raise StageError(f"{path} cannot be read, nor can the last commit's: take an older one")
        origin = "of the last commit"
    print(f"{path} could not be read; it is the one {origin} now")


def is_whole(path: Path) -> bool:
    """Whether DVC could read a dvc.lock."""
    try:
        stages = results.load_yaml(path.read_text(encoding="utf-8"))["stages"]
        for stage in stages.values():
            entries = [*stage.get("deps", []), *stage["outs"]]
            if not all(entry["path"] and entry["md5"] for entry in entries):
                return False
    except Exception:  # whatever a cut, empty or binary file leads to
        return False
    return True


def mend_rwlock(path: Path) -> None:
    """Remove DVC's list of running commands if it is torn and no command is at work."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        try:
            with FileLock(path.with_name("lock"), timeout=0):
                path.unlink()
        except Timeout:
            raise StageError(f"{path} is torn, and another `dvc` is at work: end it") from None
        print(f"{path} could not be read; it is removed")


@main_function
def main() -> None:
    params.load()
    check_writable()
    do_without_git()
    for rwlock in RWLOCKS:
        mend_rwlock(rwlock)
    for lock in files.LOCKS:
        mend_dvc_lock(Path(lock))


if __name__ == "__main__":
    main()
