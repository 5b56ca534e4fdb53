"""``verify``: does this machine compute the committed results?

First this looks for damage that DVC does not notice: here, in the cache, and in the remote. Then it
clones the last commit into a scratch folder, runs the main project there without any cache, and
compares every out with dvc.lock, and with the file in this folder. Of the other projects, it
compares the files in this folder with dvc.lock. With `statement` it also writes a statement that
this machine came to the same bytes, see attest.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc_mlflow import attest, damage, mend, projects, tables
from dvc_mlflow.commands import output_of, visible
from dvc_mlflow.errors import InputError, StageError
from dvc_mlflow.files import md5
from dvc_mlflow.hooks import hook


@dataclass(frozen=True)
class Out:
    """One out, by its md5 in the committed dvc.lock, computed anew, and in this folder."""

    stage: str
    path: str
    committed: str
    computed: str
    here: str | None  # None: not in this folder, as in a clone before `dvc pull`

    @property
    def verdict(self) -> str:
        if self.computed != self.committed:
            return "DIFFERS"
        if self.here not in (None, self.committed):
            return "the file here differs"
        return "same"


def reproduce(scratch: Path) -> tuple[damage.Outs, damage.Outs]:
    """Clone the last commit to ``scratch`` and run it; the committed and the computed md5s."""
    output_of(["git", "clone", "--quiet", "--no-hardlinks", ".", str(scratch)])
    committed = damage.locked(scratch)
    for folder in hook("downloads", tuple)():  # the stages check them again
        if folder.is_dir():
            shutil.copytree(folder, scratch / folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # --force: no stage is skipped because its outs are there. --no-run-cache: none is restored
    process = subprocess.Popen(
        [sys.executable, "-m", *attest.COMMAND],
        cwd=scratch,
        env=os.environ | {"PATH": path, "MIRROR": "off"},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    assert process.stdout
    try:
        for line in process.stdout:
            if line.startswith("Running stage"):
                print(line.strip(), flush=True)
    except BaseException:  # Ctrl-C, or nobody reads this any more
        os.killpg(process.pid, signal.SIGKILL)  # and the processes that it starts
        process.wait()
        raise
    if process.wait() != 0:
        raise StageError("`dvc repro` failed in the scratch clone, see above")
    return committed, damage.locked(scratch)


def here(path: str) -> str | None:
    return md5(Path(path)) if Path(path).exists() else None


def origin(scratch: Path, outs: Sequence[Out]) -> str:
    """Where the computation in ``scratch`` first differs from the committed one.

    Args:
        outs: All outs, in the order of the stages.
    """
    wrong = [out for out in outs if out.verdict == "DIFFERS"]
    first = [out for out in wrong if out.stage == wrong[0].stage]
    for out in first:
        explain, path = hook("explain"), scratch / out.path
        if explain and path.is_file() and output_of(["git", "ls-files", out.path], scratch):
            committed = output_of(["git", "show", f"HEAD:{out.path}"], scratch)
            if reason := explain(out.path, committed, path.read_text(encoding="utf-8")):
                return f"it begins with stage {out.stage}: {reason}"
    return f"it begins with stage {wrong[0].stage}"


def dirty_files() -> str:
    """The files that differ from the last commit.

    Raises:
        StageError: There is no commit.
    """
    if not mend.is_in_git():
        raise StageError(
            "the last commit is verified, and this is no git repository: `git init && git add . && "
            "git commit -m copied` first"
        )
    output_of(["git", "cat-file", "-e", f"HEAD:./{projects.LOCK}"])
    return output_of(["git", "status", "--porcelain"]).strip()


def other_projects() -> list[damage.Damage]:
    """The damaged files in this folder of all projects but the main one."""
    return [
        found
        for folder in damage.projects_that_ran()
        if folder != projects.MAIN
        for found in damage.in_folder(damage.locked(project=folder), folder)
    ]


def verify(statement: bool = False, key: str | None = None) -> None:
    """Verify the last commit, and print a table of its outs.

    Args:
        statement: Write down that they agree.
        key: The file of a private key of OpenSSH, which signs the statement.

    Raises:
        InputError: There is no such key.
        StageError: An out differs, or a file or object is damaged.
    """
    if key and not Path(key).expanduser().is_file():
        raise InputError(f"the key is {key}, expected the file of a private key of OpenSSH")
    dirty = dirty_files()
    stored = damage.in_stores(damage.locked()) + other_projects()
    for found in stored:
        print(found)
    if dirty:
        print("note: the last commit is verified, not these changes\n" + dirty)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        scratch = Path(folder) / "clone"
        committed, computed = reproduce(scratch)
        outs = [
            Out(stage, path, wanted, computed.get((stage, path), "missing"), here(path))
            for (stage, path), wanted in committed.items()
        ]
        rows = [(out.path, out.committed, out.computed, out.verdict) for out in outs]
        print(tables.text([("out", "dvc.lock", "computed", ""), *rows]))
        wrong = [out for out in outs if out.verdict == "DIFFERS"]
        damaged = [out for out in outs if out.verdict == "the file here differs"]
        for out in damaged:
            print(
                f"{visible(out.path)} in this folder is not the committed one (stage {out.stage}): "
                f"`{damage.cure(out.stage, out.path, out.committed)}`"
            )
        if wrong:
            print(origin(scratch, outs))
        elif statement or key:
            commit = output_of(["git", "rev-parse", "HEAD"], scratch).strip()
            content = attest.statement(scratch, commit, [out.path for out in outs])
            print(f"wrote {attest.write(content, key and str(Path(key).expanduser()))}")
    if wrong or damaged:
        raise StageError(f"{len(wrong) + len(damaged)} of {len(outs)} outs differ")
    if stored:
        raise StageError(f"{len(stored)} stored objects or files are damaged, see above")
    print(f"all {len(outs)} outs are the committed ones, to the bit")
