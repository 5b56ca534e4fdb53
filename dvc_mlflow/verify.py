"""``verify``: from a run to its bytes. Does its commit compute the same results once more?

The commit is cloned into a scratch folder, its data is brought there, and its pipeline runs there
without any cache. Every out is compared with the one that dvc.lock of the commit names.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path

from tabulate import tabulate

from dvc_kit.commands import visible
from dvc_kit.errors import InputError, StageError, shortened
from dvc_mlflow import difference, find, git, projects, rerun, schema, store, sync
from dvc_mlflow.content import Content
from dvc_mlflow.report import name_in
from dvc_mlflow.results import Project

LONGEST = 300  # characters of a reason
SAME = "same"

Said = Mapping[str, Sequence[str]]  # the lines of each stage


def verify(what: str, project: Path | None = None) -> None:
    """Compute the results of a run anew, and compare every out.

    Args:
        what: A run, a model or a commit. For a run of one stage, the stages up to that one run; for
            all else, those of each project.
        project: Only the stages of the project in this folder.

    Raises:
        InputError: There is no such thing, or no commit holds it.
        StageError: Not every out is the same, or something is missing.
    """
    store.find_experiment()
    commit, run = find.commit_with(what)
    stage = ""
    if run is not None:
        project = Path(run.data.tags.get(schema.PROJECT, "."))
        stage = run.data.tags[schema.STAGE]
        print(f"run {run.info.run_id} {stage}")
    print(f"commit {git.described(commit)}", flush=True)
    names = [] if stage in ("", schema.PIPELINE) else [stage]
    verdicts = dict[tuple[str, str], str]()
    with sync.state_of(commit) as state, rerun.cloned(commit) as scratch:
        for read in state.projects:
            if read.locked() and project in (None, read.folder):
                verdicts |= _verified(read, state.made, scratch, commit, names)
    if not verdicts:
        raise StageError(f"no stage of commit {commit[:10]} has an out that could be compared")
    rows = [(stage, visible(out), verdict) for (stage, out), verdict in verdicts.items()]
    print(tabulate(rows, ("stage", "out", ""), "plain", disable_numparse=True))
    if wrong := sum(verdict != SAME for verdict in verdicts.values()):
        raise StageError(f"{wrong} of {len(verdicts)} outs are not computed to the same bytes")
    print(f"all {len(verdicts)} outs are the committed ones, to the bit")


def _verified(
    read: Project, made: Mapping[str, str], scratch: Path, commit: str, names: Sequence[str]
) -> dict[tuple[str, str], str]:
    """The verdict on each out of some stages of a project, by the stage and the path."""
    plan = rerun.plan(scratch, read.folder, names)
    for out in plan.computed:
        if "://" in out or Path(out).is_absolute():
            raise InputError(f"{visible(out)} lies outside of the repository: to compute it again "
                             "would overwrite it")  # fmt: skip
    content = Content(read, {**made, **plan.data}, commit, pull=True)
    if missing := rerun.bring(scratch, content, plan.needed):
        raise StageError(
            f"{visible(missing[0])} of commit {commit[:10]} is neither in git, nor in the cache of "
            f"DVC, nor in {_remote(read)}" + f" (and {len(missing) - 1} more)" * bool(missing[1:])
        )
    options = ("--keep-going",)
    _, said = rerun.reproduce(scratch, read.folder, names, *options, errors=subprocess.STDOUT)
    with chdir(scratch):
        computed = Project(read.folder, projects.find()[read.folder]).locked()
    locked, found = read.locked(), dict[tuple[str, str], str]()
    for stage, outs in plan.outs.items():
        for out in outs:
            wanted = locked[stage].outs.get(out) if stage in locked else None
            if stage in plan.frozen:
                verdict = "not computed: the stage is frozen"
            elif stage not in computed:
                verdict = f"not computed: {_failure(stage, said)}"
            elif not wanted:
                verdict = f"not compared: {projects.LOCK} has no md5 of it"
            else:
                verdict = _compared(out, wanted, computed[stage].outs[out], scratch, content)
            found[name_in(read.folder, stage), out] = verdict
    return found


def _compared(out: str, wanted: str, computed: str, scratch: Path, content: Content) -> str:
    if computed == wanted:
        return SAME
    with content.laid([out]) as missing:
        if missing:
            return f"other bytes: {computed}, was {wanted}, which is not here to compare"
        told = difference.first(Path(out), scratch / out)
    return f"other bytes: {told}" if told else SAME  # DVC 2 hashed texts without their \r


def _failure(stage: str, said: Said) -> str:
    """Why a stage has no result: what DVC and the last line before it say."""
    lines = [line for line in said.get(stage, ()) if line]
    for at, line in enumerate(lines):
        if match := re.match("(?:WARNING|ERROR): (.*)", line):
            before = [f": {lines[at - 1]}"] if at and not lines[at - 1].startswith("> ") else []
            return shortened("".join([match[1], *before]), LONGEST)
    if any(of for of in said if of):
        return "a stage before it failed"
    lines = [line for line in said.get("", ()) if re.match("WARNING|ERROR", line)]
    return shortened((lines or ["the stage did not run"])[0], LONGEST)


def _remote(read: Project) -> str:
    """The default remote of a project, as a message names it."""
    config = read.repo.config
    if not (name := config["core"].get("remote")):
        return "a remote, because none is set as default (`dvc remote default`)"
    url = str(config["remote"].get(name, {}).get("url", ""))
    return f"the remote {name} ({store.without_user(url)}), as far as it can be reached"
