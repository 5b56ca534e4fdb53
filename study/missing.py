"""Which cells of the study are missing, how each is kept, and how DVC takes them over."""

import contextlib
import copy
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dvc_guard import alone
from dvc_kit import files
from dvc_kit.errors import StageError
from dvc_mlflow import projects
from stages.base import params
from study import inspection, settings
from study.orders import Order

MODULE = "study.cell"
COMMAND = f"python -m {MODULE} "


@dataclass(frozen=True)
class StaleCell:
    """A stage that is not up to date, as a task for the engine.

    Attributes:
        stage: DVC's object. Its deps are the present ones.
        key: DVC's hash of everything that the cell depends on.
        epochs: Those of its training.
        here: Whether DVC's run cache has had its file.
    """

    stage: Any
    key: str
    epochs: int
    here: bool = False

    @property
    def path(self) -> Path:
        return Path(os.path.relpath(self.stage.outs[0].fs_path))

    @property
    def order(self) -> Order:
        return Order(self.stage.name, MODULE, arguments(self.stage), self.path.as_posix())

    def mistake(self, content: bytes) -> str:
        of_validation = self.order.arguments[-1] == settings.VALIDATION
        return inspection.mistake_in_cell(content, of_validation, self.epochs)

    def check(self) -> None:
        for dep in self.stage.deps:
            present = None
            with contextlib.suppress(OSError):  # it is gone
                present = type(dep).get_hash(dep)
            if present != dep.hash_info:
                raise StageError(
                    f"{dep} was changed while cells were computed: `make study` computes those "
                    "again that depend on it"
                )

    def keep(self, content: bytes) -> None:
        """Write the file, and give it to DVC's run cache."""
        if not is_file(self.path, hashlib.md5(content).hexdigest()):
            files.write_bytes(self.path, content)
        with files.writing(self._kept_in), contextlib.chdir(settings.FOLDER):
            self.stage.save_outs()
            self.stage.repo.stage_cache.save(self.stage)

    def forget(self) -> None:
        with files.writing(self.path):
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self._kept_in, ignore_errors=True)

    @property
    def _kept_in(self) -> Path:
        return Path(self.stage.repo.stage_cache._get_cache_dir(self.key))

    def restored(self) -> "StaleCell":
        """The same, here if its file is in DVC's run cache."""
        from dvc.stage.cache import RunCacheNotFoundError

        if not self._kept_in.is_dir():
            return self
        self.path.unlink(missing_ok=True)  # as `dvc repro` does: DVC replaces no unknown file
        cache = self.stage.repo.stage_cache
        kept: Any = None
        with contextlib.suppress(RunCacheNotFoundError), contextlib.chdir(settings.FOLDER):
            cache.restore(self.stage)
            kept = cache._load(self.stage)
        # DVC believes that an object in its cache has the md5 that is its name
        return replace(self, here=bool(kept) and is_file(self.path, kept["outs"][0]["md5"]))


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """DVC's project of the study, while no `dvc` command works on it."""
    from dvc.repo import Repo

    with Repo(str(settings.FOLDER)) as repo, repo.lock:
        yield repo


def arguments(stage: Any) -> tuple[str, ...]:
    """The recipe, the model, and the seed or `validation` of a cell."""
    return tuple(str(stage.cmd).partition(COMMAND)[2].split())


def stale(repo: Any) -> list[StaleCell]:
    """The cells that are not up to date, in the order in which `dvc repro` would run them."""
    from dvc.repo.reproduce import get_active_graph, plan_repro
    from dvc.stage.cache import _get_stage_hash

    cells: list[StaleCell] = []
    known: dict[Any, Any] = {}
    recipes = params.load_recipes()
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
        recipe, model, _ = arguments(stage)
        epochs = params.of_recipe(recipes, recipe, model).epochs
        cells.append(StaleCell(stage, str(_get_stage_hash(stage)), epochs).restored())
    return cells


def is_file(path: Path, md5: str) -> bool:
    return path.is_file() and files.md5(path) == md5


def take_over(cells: Sequence[StaleCell]) -> None:
    """Let DVC know of the cells, which its run cache has. The lock is written once."""
    lock = settings.FOLDER / projects.LOCK
    if lock.is_file():
        files.write_bytes(alone.copy_of(lock), lock.read_bytes())  # for `mend`, if this is killed
    stages = [cell.stage for cell in cells]
    with contextlib.chdir(settings.FOLDER):
        for stage in stages:
            stage.save_outs()
            stage.md5 = stage.compute_md5()
        if stages:
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
