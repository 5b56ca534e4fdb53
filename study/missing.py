"""Which cells of the study are missing, those that have come, and how DVC takes them over."""

import contextlib
import copy
import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dvc_mlflow import alone, files, projects
from dvc_mlflow.errors import StageError
from stages.base.strict import Section
from study import settings

JOURNAL = Path(".dvc", "tmp", "engine.jsonl")  # one line per cell that has come
COMMAND = "python -m study.cell "


@dataclass(frozen=True)
class Cell:
    """A stage that is not up to date.

    Attributes:
        stage: DVC's object. Its deps are the present ones.
        key: DVC's hash of everything that the cell depends on.
        here: Whether its file has come already.
    """

    stage: Any
    key: str
    here: bool

    @property
    def path(self) -> Path:
        return Path(os.path.relpath(self.stage.outs[0].fs_path))

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(str(self.stage.cmd).partition(COMMAND)[2].split())


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """DVC's project of the study, while no `dvc` command works on it."""
    from dvc.repo import Repo

    with Repo(str(settings.FOLDER)) as repo, repo.lock:
        yield repo


def stale(repo: Any) -> list[Cell]:
    """The cells that are not up to date, in the order in which `dvc repro` would run them."""
    from dvc.repo.reproduce import get_active_graph, plan_repro
    from dvc.stage.cache import RunCacheNotFoundError, _get_stage_hash

    found, known, journal = [], {}, read_journal()
    for stage in plan_repro(get_active_graph(repo.index.graph)):
        if COMMAND not in str(stage.cmd):
            continue
        locked = [dep.hash_info for dep in stage.deps]
        for dep in stage.deps:
            # All cells depend on the same files, so each is hashed once. A setting is not a file
            at = (dep.fs_path, *getattr(dep, "params", ()))
            if at not in known:
                dep.save()
                known[at] = dep.hash_info, dep.meta, dep.obj
            info, dep.meta, dep.obj = known[at]
            # Copies, because YAML would write one object that is in two places as an alias
            dep.hash_info = copy.deepcopy(info)
            # DVC asks for it three times more, which takes most of the time
            dep.get_hash = functools.partial(copy.deepcopy, info)
        same = not stage.cmd_changed and locked == [dep.hash_info for dep in stage.deps]
        if same and not stage.changed_outs():
            continue
        cell = Cell(stage, str(_get_stage_hash(stage)), here=False)
        noted = journal.get(stage.name)
        here = noted is not None and noted.key == cell.key and is_file(cell.path, noted.md5)
        if not here and Path(repo.stage_cache._get_cache_dir(cell.key)).is_dir():
            cell.path.unlink(missing_ok=True)  # as `dvc repro` does: DVC replaces no unknown file
            kept: Any = None
            with contextlib.suppress(RunCacheNotFoundError), contextlib.chdir(settings.FOLDER):
                repo.stage_cache.restore(stage)
                kept = repo.stage_cache._load(stage)
            # DVC believes that an object in its cache has the md5 that is its name
            here = bool(kept) and is_file(cell.path, kept["outs"][0]["md5"])
        found.append(replace(cell, here=here))
    return found


def is_file(path: Path, wanted: str) -> bool:
    return path.is_file() and files.md5(path) == wanted


def take_over(repo: Any, cells: Sequence[Cell]) -> None:
    """Let DVC know of the cells, whose files are here. The lock is written once."""
    lock = settings.FOLDER / projects.LOCK
    if lock.is_file():
        files.write_bytes(alone.copy_of(lock), lock.read_bytes())  # for `mend`, if this is killed
    stages = [cell.stage for cell in cells]
    with contextlib.chdir(settings.FOLDER):
        for stage in stages:
            stage.save_outs()
            stage.md5 = stage.compute_md5()
            repo.stage_cache.save(stage)
        if stages:
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    JOURNAL.unlink(missing_ok=True)


# --- the journal ---


class Note(Section):
    """A line of the journal."""

    stage: str
    key: str
    md5: str
    worker: str


def read_journal() -> dict[str, Note]:
    """What has come, by stage. A line that is damaged or not written to its end does not count.

    Raises:
        StageError: It cannot be read.
    """
    found: dict[str, Note] = {}
    try:
        lines = JOURNAL.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StageError(f"{JOURNAL} cannot be read ({error.strerror}): remove it") from None
    for line in lines:
        with contextlib.suppress(ValidationError):
            entry = Note.model_validate_json(line)
            found[entry.stage] = entry
    return found


def note(stage: str, key: str = "", digest: str = "", by: str = "") -> None:
    """Add that a cell has come. Without a key, it does not count any more."""
    entry = {"stage": stage, "key": key, "md5": digest, "worker": by}
    with files.writing(JOURNAL), JOURNAL.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(entry)}")  # after a line that was cut short, too
