"""``verify``: does this machine compute the committed results?

First this looks for damage that DVC does not notice: here, in the cache, and in the remote. Then it
clones the last commit into a scratch folder, runs the main project there without any cache, and
compares every out that was computed with dvc.lock, and with the file in this folder. Of the other
projects, it compares the files in this folder with dvc.lock. With `statement` it also writes a
statement that this machine came to the same bytes, see attest.py.

The clone and the run in it are those of `dvc-mlflow verify`, see rerun.py.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from dvc_guard import attest, damage, mend
from dvc_kit.commands import output_of, visible
from dvc_kit.errors import StageError
from dvc_kit.files import md5
from dvc_mlflow import git, projects, rerun
from dvc_mlflow.content import Content
from dvc_mlflow.hooks import hook
from dvc_mlflow.results import Project


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


def bring(scratch: Path, plan: rerun.Plan, committed: damage.Outs) -> None:
    """Bring the data that no stage computes into a clone. `dvc repro` names what lacks."""
    made = {path: md5 for (_, path), md5 in committed.items()} | plan.data
    with damage.repo_of(projects.MAIN) as repo:
        project = Project(projects.MAIN, projects.find()[projects.MAIN], repo)
        rerun.bring(scratch, Content(project, made, git.commit_of("HEAD")), plan.needed)


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(map(visible, names[:3])) + more


def here(path: str) -> str | None:
    return md5(Path(path)) if Path(path).exists() else None


def origin(scratch: Path, wrong: Sequence[Out]) -> str:
    """Where the computation in ``scratch`` first differs from the committed one, which has other
    outs, in the order of the stages."""
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


def verify(statement: bool = False) -> None:
    """Verify the last commit, and print a table of its outs.

    Args:
        statement: Write down that they agree.

    Raises:
        StageError: An out differs, nothing was computed, or a file or object is damaged. Or a
            statement is wanted, and it could not name every out.
    """
    dirty = dirty_files()
    stored = damage.in_stores(damage.locked()) + other_projects()
    for found in stored:
        print(found)
    if dirty:
        print("note: the last commit is verified, not these changes\n" + dirty)
    with rerun.cloned() as scratch:
        plan = rerun.plan(scratch, projects.MAIN)
        still = plan.frozen
        elsewhere = [path for outs in plan.outs.values() for path in outs if "://" in path]
        if statement and (still or elsewhere):
            raise StageError(
                "a statement names every out, and these frozen stages and outs on servers are not "
                f"computed or compared: {listed(still + elsewhere)}"
            )
        committed = damage.locked(scratch)
        bring(scratch, plan, committed)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        code, _ = rerun.reproduce(scratch, path=path)
        if code != 0:
            raise StageError("`dvc repro` failed in the scratch clone, see above")
        computed = damage.locked(scratch)
        if taken := [path for stage, path in computed if stage in still]:
            print(f"frozen, so not computed: {listed(taken)}")
        if elsewhere:
            print(f"not compared, because DVC has no md5 of it: {listed(elsewhere)}")
        outs = [
            Out(stage, path, committed.get((stage, path), "missing"), md5, here(path))
            for (stage, path), md5 in computed.items()
            if stage not in still
        ]
        if not outs:
            raise StageError("no stage has an out that could be compared")
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
            print(origin(scratch, wrong))
        elif statement:
            commit = output_of(["git", "rev-parse", "HEAD"], scratch).strip()
            print(f"wrote {attest.write(commit, {out.path: out.computed for out in outs})}")
    if wrong or damaged:
        raise StageError(f"{len(wrong) + len(damaged)} of {len(outs)} outs differ")
    if stored:
        raise StageError(f"{len(stored)} stored objects or files are damaged, see above")
    print(f"all {len(outs)} outs are the committed ones, to the bit")
