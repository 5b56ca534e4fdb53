"""A commit in a folder of its own, in which its pipeline runs again. Both houses verify with it.

DVC does not compute data that somebody added or imported, nor a frozen stage. These are brought.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_kit.commands import as_path, output_of
from dvc_mlflow import projects
from dvc_mlflow.content import Content
from dvc_mlflow.declared import Declared, is_in
from dvc_mlflow.hooks import hook

# --force: no stage is skipped because its outs are there. --no-run-cache: none is restored
COMMAND = ["dvc", "repro", "--force", "--no-run-cache"]


@contextlib.contextmanager
def cloned(commit: str = "HEAD") -> Iterator[Path]:
    """A scratch clone of this repository, in which a commit is checked out."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        scratch = Path(folder) / "clone"
        clone = ["clone", "--quiet", "--no-hardlinks", "--no-checkout", ".", str(scratch)]
        output_of(["git", *clone])
        # A clone has no commits of DVC experiments; this version of the protocol gives any commit
        fetch = ["-c", "protocol.version=2", "fetch", "--quiet", "origin", commit]
        output_of(["git", *fetch], scratch)
        output_of(["git", "checkout", "--quiet", "--detach", "FETCH_HEAD"], scratch)
        for kept in hook("downloads", tuple)():  # the stages check them again
            if kept.is_dir():
                shutil.copytree(kept, scratch / kept, dirs_exist_ok=True)
        yield scratch


@dataclass(frozen=True)
class Plan:
    """What has to run for some stages of a project. Paths start in the root."""

    outs: dict[str, list[str]]  # of each stage with a command, in the order of dvc.yaml
    frozen: list[str]  # those of these stages that are not computed
    data: dict[str, str]  # the md5 of each out that is given, by path
    read: list[str]  # the deps of the stages that are computed

    @property
    def computed(self) -> list[str]:
        """The outs that are computed."""
        return [out for name, outs in self.outs.items() if name not in self.frozen for out in outs]

    @property
    def needed(self) -> list[str]:
        """What has to be there before. A dep may lie in a computed out, or may hold one."""
        made = self.computed
        above = {folder.as_posix() for out in made for folder in Path(out).parents}
        read = [dep for dep in self.read if dep not in above and not is_in(dep, made)]
        return list(dict.fromkeys([*self.data, *read]))


def plan(scratch: Path, folder: Path, names: Sequence[str] = ()) -> Plan:
    """What has to run in a project for these stages, or for all.

    Raises:
        DvcException: DVC cannot read the project.
    """
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    with contextlib.chdir(scratch):
        repo = Repo(str(folder))
        declared = Declared(folder, projects.find()[folder], repo)
        stages = {name: stage.dvc for name, stage in declared.stages.items()}

        def paths(stage: Any, entries: list[Any]) -> list[str]:
            names = [its.def_path for its in entries if not isinstance(its, ParamsDependency)]
            return [declared.path(stage, name) for name in names]

        waiting = [stage for name, stage in stages.items() if not names or name in names]
        steps = set[Any]()
        while waiting:
            step = waiting.pop()
            if step not in steps and not step.frozen:
                waiting += repo.index.graph.successors(step)
            steps.add(step)
        running = {name: stage for name, stage in stages.items() if stage in steps}
        frozen = [name for name, stage in running.items() if stage.frozen]
        computed = [stage for name, stage in running.items() if name not in frozen]
        return Plan(
            {name: paths(stage, stage.outs) for name, stage in running.items()},
            frozen,
            {
                path: out.hash_info.value or ""
                for stage in steps.difference(computed)
                for out, path in zip(stage.outs, paths(stage, stage.outs), strict=True)
            },
            [path for stage in computed for path in paths(stage, stage.deps) if "://" not in path],
        )


def bring(scratch: Path, content: Content, paths: Sequence[str]) -> list[str]:
    """Copy contents into the clone, if they are not there; the paths that cannot be had."""
    absent = [path for path in paths if not (scratch / path).exists()]
    with content.laid(absent) as missing:
        for path in absent:
            if path not in missing:
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                copy: Any = shutil.copytree if Path(path).is_dir() else shutil.copyfile
                copy(path, scratch / path)
    return missing


def reproduce(
    scratch: Path,
    folder: Path = projects.MAIN,
    names: Sequence[str] = (),
    *options: str,
    path: str | None = None,
    errors: int | None = None,
) -> tuple[int, dict[str, list[str]]]:
    """Run stages of a project in the clone, or all. Its dvc.lock then has those that ran now only.

    Args:
        options: Of `dvc repro`, beside those of COMMAND.
        path: PATH, if not that of the user.
        errors: Where the standard error goes to, see :mod:`subprocess`.

    Returns:
        The exit code, and what each stage has said.
    """
    files = projects.find(scratch)[folder]
    for lock in projects.locks({folder: files}):
        (scratch / lock).unlink(missing_ok=True)
    # Without a name, DVC takes the file in the folder of the project alone
    named = names or [file.relative_to(folder).as_posix() for file in files]
    own = scratch / folder / ".dvc"
    # Neither a cache that others share nor a store of MLflow gets anything
    (own / "config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    mlflow = f"sqlite:///{scratch.parent / 'mlflow.db'}"
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMAND, *options, *map(as_path, named)],
        cwd=scratch / folder,
        env=kept
        | {"MIRROR": "off", "MLFLOW_TRACKING_URI": mlflow}
        | ({"PATH": path} if path else {}),
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout
    said: dict[str, list[str]] = {}
    lines = said.setdefault("", [])
    try:
        for line in process.stdout:
            if match := re.match("Running (?:callback )?stage '(.*)':$", line.strip()):
                print(line.strip(), flush=True)
                lines = said.setdefault(match[1], [])
            else:
                lines.append(line.strip())
    except BaseException:  # Ctrl-C, or nobody reads this any more
        os.killpg(process.pid, signal.SIGKILL)  # and the processes that it starts
        process.wait()
        raise
    return process.wait(), said
