"""What the dvc.yaml and dvc.lock files of a project declare.

DVC itself reads them, so templates, matrices and `foreach` are resolved as always. A stage that it
cannot read is named, and all others are read.
"""

import functools
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_kit.errors import StageError
from dvc_mlflow import declaration, identity, projects, schema
from dvc_mlflow.naming import NONE, Item, flat, named


@dataclass(frozen=True)
class Stage:
    """A stage as DVC reads it."""

    dvc: Any  # DVC's object for it
    name: str  # in its dvc.yaml
    folder: Path  # of its dvc.yaml, from the root
    groups: Mapping[str, Any]  # DVC's definitions in its dvc.yaml
    identity: str = ""  # of its result in dvc.lock; empty if that has none
    settings: Mapping[str, Any] = field(default_factory=dict)  # in dvc.lock, by file

    @property
    def item(self) -> Item:
        """The item of a matrix or of a `foreach` that it is for, named as in its templates."""
        from dvc.parsing import MatrixDefinition

        group, _, item = self.name.partition("@")
        if not item:
            return NONE
        definition = self.groups[group]
        value = definition.normalized_iterable[item]
        value = getattr(value, "value", value)
        if isinstance(definition, MatrixDefinition):
            fields = flat({key: getattr(part, "value", part) for key, part in value.items()})
            return Item(fields, fields)
        told = {"key": item, "item": item}
        if isinstance(value, Mapping):
            fields = flat(value)
            told |= {f"item.{name}": part for name, part in fields.items()}
            return Item({"key" if "item" in fields else "item": item, **fields}, told)
        is_keyed = isinstance(definition.resolved_iterable, Mapping)
        params = {"key": item, "item": value} if is_keyed else {"item": item}
        return Item(params, told | {"item": value})


class Declared:
    """What a project declares. Paths start in the root.

    Attributes:
        stages: By name, as `dvc repro` in the folder of the project calls them, in the order of the
            files.
        metrics, plots: Those that no stage declares. The plots have their options.
        models: The name of each model that is declared under `artifacts`, by path.
        names: The same of other data.
        problems: One line for each stage or file that cannot be read.
        undeclared: The stages and outs that are in dvc.lock alone, and the tag of a run that shows
            them.

    Args:
        folder: The folder of the project.
        files: Its dvc.yaml files.
        repo: DVC's object for it.
    """

    def __init__(self, folder: Path, files: Iterable[Path], repo: Any) -> None:
        self.folder, self.repo = folder, repo
        self.stages: dict[str, Stage] = {}
        self.metrics: list[str] = []
        self.plots: dict[str, dict[str, Any]] = {}
        self.models: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.problems: list[str] = []
        self.undeclared: dict[str, tuple[str, str]] = {}
        for file in files:
            self._load(file)

    def path(self, stage: Any, path: str) -> str:
        """A path that starts in the working directory of one of DVC's stages, from the root."""
        if "://" in path or posixpath.isabs(path):
            return path
        return join(_place(self.folder.as_posix(), stage.wdir, self.repo.root_dir), path)

    def outs(self) -> list[str]:
        """The paths of all outs of all stages."""
        every = (stage.dvc for stage in self.stages.values())
        return [self.path(stage, out.def_path) for stage in every for out in stage.outs]

    @contextmanager
    def _noting(self, what: object) -> Iterator[None]:
        """Turn a failure of DVC into a problem."""
        try:
            yield
        except Exception as error:
            self.problems.append(f"{what}: {declaration.reason(error)}")

    def _load(self, file: Path) -> None:
        from dvc.dvcfile import ProjectFile

        path = posixpath.join(self.repo.root_dir, file.relative_to(self.folder).as_posix())
        # As for DVC, a copy of a project that is an out of a stage is data
        if declaration.is_ignored(self.repo, path) or is_in(file.as_posix(), self.outs()):
            return
        declared, problems = ProjectFile(self.repo, path), len(self.problems)
        with self._noting(file):
            left_out = declaration.read(declared)
            self.problems += [f"{file}: {part}; the rest of it is read" for part in left_out]
            self._load_stages(file, declared)
            self._load_sections(file, declared)
            if len(self.problems) == problems:  # else nobody knows what it declares
                self.undeclared |= _undeclared(self, file, declared.stages.lockfile_data)

    def _load_stages(self, file: Path, declared: Any) -> None:
        at = _before_names(file.relative_to(self.folder))
        self._load_lock(declared)
        locked, names = declared.stages.lockfile_data, dict[str, None]()
        definitions = declared.resolver.definitions
        for group, definition in definitions.items():
            with self._noting(f"{file}: {group}"):
                names |= dict.fromkeys(declaration.items(group, definition))
        for name in names:
            with self._noting(f"{file}: {name}"):
                stage, of_lock, entry = _loaded(declared, name), "", locked.get(name, {})
                if name in locked and all(out.hash_info for out in stage.outs):
                    of_lock = identity.of_entry(file.parent, name, entry)
                settings = entry.get("params") or {}
                self.stages[at + name] = Stage(
                    stage, name, file.parent, definitions, of_lock, settings
                )

    def _load_lock(self, declared: Any) -> None:
        """Read dvc.lock. DVC 3 refuses a lock of DVC 1, which only has the stages."""
        lock = declared._lockfile
        if lock.exists():
            text = self.repo.fs.open(lock.path, encoding="utf-8").read()
            if any(line.startswith("<<<<<<< ") for line in text.splitlines()):
                raise StageError(
                    f"{projects.LOCK} has conflict markers: `git checkout --ours` or `--theirs` it"
                )
            if "schema" not in text:
                stages = projects.stages_in(text)
                declared.lockfile_contents = {"schema": "2.0", "stages": stages}

    def _load_sections(self, file: Path, declared: Any) -> None:
        at = file.parent.as_posix()
        with self._noting(f"{file}: metrics"):
            self.metrics += [join(at, name) for name in declared.metrics]
        with self._noting(f"{file}: plots"):
            self.plots |= dict(_top_plots(declared.plots, at))
        with self._noting(f"{file}: artifacts"):
            for name, entry in declared.artifacts.items():
                kind = self.models if entry.get("type") == "model" else self.names
                kind[join(at, entry["path"])] = name


def _undeclared(
    declared: Declared, file: Path, locked: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """See :class:`Declared`."""
    at = _before_names(file.relative_to(declared.folder))
    for name, entry in locked.items():
        if at + name not in declared.stages:
            of_lock = identity.of_entry(file.parent, name, entry)
            yield f"stage {at + name}", (schema.RESULT, of_lock)
            continue
        stage = declared.stages[at + name].dvc
        paths = {out.def_path for out in stage.outs}
        for out in entry.get("outs") or ():
            if out["path"] not in paths:
                path = declared.path(stage, out["path"])
                tag = (named(f"{schema.OUT}{path}"), str(out.get("md5")))
                yield f"out {path} of stage {at + name}", tag


def _before_names(file: Path) -> str:
    """What `dvc repro` in the folder of a project wants before the name of a stage."""
    return "" if file.parent == Path() else f"{file.as_posix()}:"


_stages: dict[str, Any] = {}  # of commits


def _loaded(declared: Any, name: str) -> Any:
    """DVC's object for a stage. The commits of a history share those that are the same."""
    from dvc.fs import LocalFileSystem

    loader = declared.stages
    if isinstance(declared.repo.fs, LocalFileSystem):
        return loader[name]
    read = loader.resolver.resolve_one(name), loader.lockfile_data.get(name)
    key = repr((declared.repo.root_dir, declared.path, name, read))
    if key not in _stages:
        _stages[key] = loader[name]
    return _stages[key]


@functools.cache
def _place(folder: str, wdir: str, root: str) -> str:
    """A working directory, from the root."""
    return join(folder, Path(os.path.relpath(wdir, root)).as_posix())


def join(*parts: str) -> str:
    return posixpath.normpath(posixpath.join(*parts))


def is_in(path: str, folders: Iterable[str]) -> bool:
    """Whether a path is one of these, or lies below one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _top_plots(plots: list[Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files and folders that the plots of a dvc.yaml show, with their options."""
    for plot in plots:
        for name, given in plot.items() if isinstance(plot, dict) else [(plot, None)]:
            options = given or {}
            y, x = options.get("y"), options.get("x")
            for path in y if isinstance(y, dict) else [name]:
                column = x.get(path) if isinstance(x, dict) else x
                yield join(at, path), {**options, "x": column}
