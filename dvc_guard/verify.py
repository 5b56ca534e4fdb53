"""``verify``: does this machine compute the committed results?

First this looks for damage that DVC does not notice: here, in the cache, and in the remote. Then it
clones the last commit into a scratch folder, runs the main project there without any cache, and
compares every out that was computed with dvc.lock, and with the file in this folder. Of the other
projects, it compares the files in this folder with dvc.lock. With `statement` it also writes a
statement that this machine came to the same bytes, see attest.py.

DVC does not compute data that somebody added or imported, nor a frozen stage. These are taken from
its cache.
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

from tabulate import tabulate

from dvc_guard import attest, damage, mend, statements
from dvc_kit.commands import as_path, at, output_of, visible
from dvc_kit.errors import InputError, StageError
from dvc_kit.files import md5
from dvc_mlflow import projects
from dvc_mlflow.hooks import hook


@dataclass(frozen=True)
class Out:
    """An out that was computed, by its md5 in the committed dvc.lock, computed anew, and in this
    folder."""

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


def clone(scratch: Path) -> None:
    """Clone the last commit, with the data that no stage computes."""
    output_of(["git", "clone", "--quiet", "--no-hardlinks", ".", str(scratch)])
    for folder in hook("downloads", tuple)():  # the stages check them again
        if folder.is_dir():
            shutil.copytree(folder, scratch / folder)
    others = {folder for folder in projects.find(scratch) if folder != projects.MAIN}
    tracked = output_of(["git", "ls-files", "-z", "--", ":(glob)**/?*.dvc"], scratch).split("\0")
    added = [name for name in tracked if name and not others.intersection(Path(name).parents)]
    if given := [as_path(name) for name in (*frozen(scratch), *added)]:
        with damage.repo_of(projects.MAIN) as repo:
            settings = f"[cache]\n    dir = {repo.cache.local_cache_dir}\n    type = copy\n"
        local = scratch / ".dvc" / "config.local"
        local.write_text(settings, encoding="utf-8")
        checkout = [sys.executable, "-m", "dvc", "checkout", "--quiet", *given]
        subprocess.run(checkout, cwd=scratch, capture_output=True)  # `dvc repro` names what lacks
        local.unlink()


def frozen(scratch: Path) -> list[str]:
    """The frozen stages, or groups of stages, of the main project."""
    return [
        damage.address(file, name)
        for file in projects.find(scratch)[projects.MAIN]
        for name, stage in projects.stages_in((scratch / file).read_text("utf-8")).items()
        if stage.get("do", stage).get("frozen")
    ]


def reproduce(scratch: Path) -> None:
    """Run the main project in ``scratch``. Its dvc.lock then has the stages of this run only."""
    files = projects.find(scratch)[projects.MAIN]
    for file in files:
        (scratch / file).with_name(projects.LOCK).unlink(missing_ok=True)
    # Without a name, DVC takes the file in the main folder alone
    named = [as_path(str(file)) for file in files] if files[1:] else []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # --force: no stage is skipped because its outs are there. --no-run-cache: none is restored
    process = subprocess.Popen(
        [sys.executable, "-m", *statements.COMMAND, *named],
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
            if line.startswith(("Running stage", "Running callback stage")):
                print(line.strip(), flush=True)
    except BaseException:  # Ctrl-C, or nobody reads this any more
        os.killpg(process.pid, signal.SIGKILL)  # and the processes that it starts
        process.wait()
        raise
    if process.wait() != 0:
        raise StageError("`dvc repro` failed in the scratch clone, see above")


def without_md5(scratch: Path) -> list[str]:
    """The outs that were computed, and of which DVC has no md5: they are on a server."""
    locks = [file.with_name(projects.LOCK) for file in projects.find(scratch)[projects.MAIN]]
    return [
        str(out["path"])
        for lock in locks
        if (scratch / lock).is_file()
        for stage in projects.stages_in((scratch / lock).read_text("utf-8")).values()
        for out in stage.get("outs", [])
        if "md5" not in out
    ]


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(map(visible, names[:3])) + more


def not_computed(
    committed: damage.Outs, computed: damage.Outs, still: Sequence[str]
) -> damage.Outs:
    """Print which outs of dvc.lock were not computed; the outs that were.

    Args:
        still: The frozen stages.
    """
    items = tuple(f"{name}@" for name in still)
    taken = {key for key in computed if key[0] in still or key[0].startswith(items)}
    left = [f"{path} of {stage}" for stage, path in committed if (stage, path) not in computed]
    if taken:
        print(f"frozen, so not computed: {listed([path for _, path in taken])}")
    if left:
        print(
            f"{projects.LOCK} has {len(left)} outs of stages that no longer declare them, so these "
            f"entries are not compared: {listed(left)}"
        )
    return {key: md5 for key, md5 in computed.items() if key not in taken}


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
        listed = ["git", "--literal-pathspecs", "ls-files", "--", out.path]
        if explain and path.is_file() and output_of(listed, scratch):
            committed = output_of(["git", "show", f"HEAD:./{out.path}"], scratch)
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
        StageError: An out differs, nothing was computed, or a file or object is damaged. Or a
            statement is wanted, and it could not name every out.
    """
    if key and not at(key).is_file():
        raise InputError(f"the key is {key}, expected the file of a private key of OpenSSH")
    dirty = dirty_files()
    stored = damage.in_stores(damage.locked()) + other_projects()
    for found in stored:
        print(found)
    if dirty:
        print("note: the last commit is verified, not these changes\n" + dirty)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        scratch = Path(folder) / "clone"
        clone(scratch)
        committed, still = damage.locked(scratch), frozen(scratch)
        if still and (statement or key):
            raise StageError(
                f"a statement names every out, and frozen stages are not computed: {listed(still)}"
            )
        reproduce(scratch)
        computed = not_computed(committed, damage.locked(scratch), still)
        order = {key: at for at, key in enumerate(committed)}
        outs = [
            Out(stage, path, committed.get((stage, path), "missing"), md5, here(path))
            for (stage, path), md5 in sorted(
                computed.items(), key=lambda item: order.get(item[0], len(order))
            )
        ]
        if not outs:
            raise StageError("no stage has an out that could be compared")
        if elsewhere := without_md5(scratch):
            print(f"not compared, because DVC has no md5 of it: {listed(elsewhere)}")
            if statement or key:
                raise StageError("a statement names every out, and this one cannot be compared")
        rows = [(visible(out.path), out.committed, out.computed, out.verdict) for out in outs]
        titles = ("out", "dvc.lock", "computed", "")
        print(tabulate(rows, titles, "plain", disable_numparse=True))
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
            print(f"wrote {attest.write(content, key and str(at(key)))}")
    if wrong or damaged:
        raise StageError(f"{len(wrong) + len(damaged)} of {len(outs)} outs differ")
    if stored:
        raise StageError(f"{len(stored)} stored objects or files are damaged, see above")
    print(f"all {len(outs)} outs are the committed ones, to the bit")
