"""What has to hold before `dvc` starts, in `make repro`: ``python -m stages.preflight``.

DVC removes a stage's outs before the stage itself can refuse a setting, so params.yaml is checked
here. And DVC writes its lock files in place: one that it was killed in is mended, because with it
no `dvc` command starts.
"""

import json
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from stages import alone, files, params, results
from stages.errors import StageError, main_function

RWLOCK = Path(".dvc", "tmp", "rwlock")
DVC_RUNS = Path(".dvc", "tmp", "lock")


def mend_dvc_lock(path: Path) -> None:
    """Take back the last readable copy of a torn dvc.lock: `dvc repro` then runs what it lacks."""
    if not path.exists() or is_whole(path):
        return
    kept = alone.kept(path)
    if kept.is_file() and is_whole(kept):
        shutil.copyfile(kept, path)
        origin = "from before its last stage began"
    else:
        files.write_text(path, results.git("show", f"HEAD:{path.as_posix()}"))
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


def mend_rwlock() -> None:
    """Remove DVC's list of running commands if it is torn and no command is at work."""
    try:
        json.loads(RWLOCK.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        try:
            with FileLock(DVC_RUNS, timeout=0):
                RWLOCK.unlink()
        except Timeout:
            raise StageError(f"{RWLOCK} is torn, and another `dvc` is at work: end it") from None
        print(f"{RWLOCK} could not be read; it is removed")


@main_function
def main() -> None:
    params.load()
    mend_rwlock()
    for lock in files.LOCKS:
        mend_dvc_lock(Path(lock))


if __name__ == "__main__":
    main()
