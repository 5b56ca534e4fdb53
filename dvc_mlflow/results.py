"""The results of each stage: the files that DVC keeps, and the files and settings behind them.

DVC itself reads dvc.yaml and dvc.lock, so templates, matrices and `foreach` are resolved as always.
A stage that it cannot read is named, and all others are read.
"""

import functools
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_mlflow import declaration, identity, naming, projects
from dvc_mlflow.errors import InputError, StageError
from dvc_mlflow.files import LARGEST, checked
from dvc_mlflow.git import GitError, git

LONGEST_KEY = 250  # characters that MLflow takes


@dataclass(frozen=True)
class Result:
    """The results of one stage. Paths start in the root; md5s are those of dvc.lock."""

    project: Path
    stage: str  # as `dvc repro` in the folder of the project calls it
    desc: str
    params: dict[str, Any]  # flat, by short names: see naming.py
    outs: dict[str, str]  # md5 by path
    deps: dict[str, str]
    data: dict[str, str] = field(default_factory=dict)  # names of those deps that are no code
    sizes: dict[str, int] = field(default_factory=dict)  # of the outs, in bytes
    metrics: tuple[str, ...] = ()  # files that are outs, or lie in one
    plots: dict[str, dict[str, Any]] = field(default_factory=dict)  # likewise, with their options
    models: dict[str, str] = field(default_factory=dict)  # the name of each model, by path
    chosen: tuple[str, ...] = ()  # the values that the names of the params leave out
    full: dict[str, Any] = field(default_factory=dict)  # the params by names that tell stages apart
    former: dict[str, Any] = field(default_factory=dict)  # the same by those of earlier versions
    state: str = ""  # for the run over all stages, instead of outs: the state of dvc.lock
    identity: str = ""  # see identity.py

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which a run is found: its identity and its links."""
        return {**({"result": self.identity} if self.identity else {}), **self.links}

    @property
    def links(self) -> dict[str, str]:
        """The tags that link a run to its outs; without any, one for everything that it read."""
        if self.state:
            return {"pipeline": self.state}
        return tags_of(self.outs) or {"read": self.read}

    @property
    def read(self) -> str:
        """A hash of everything that the stage read. Runs of earlier versions have it as well."""
        found = [self.project.as_posix(), self.stage, self.deps, self.former or self.params]
        return hashlib.md5(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def made_by(results: Iterable[Result]) -> dict[str, str]:
    """The md5 of each out of these results, by path."""
    return {path: md5 for result in results for path, md5 in result.outs.items()}


def tags_of(outs: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run for the contents of these outs."""
    return {named(f"out:{path}"): md5 for path, md5 in outs.items()}


def named(key: str) -> str:
    """A key as MLflow takes it: other characters become ``_``, and a long one ends in a hash."""
    valid = re.sub(r"[^/\w.\- :]", "_", posixpath.normpath(key).lstrip("/"))
    if not valid.strip("./"):  # an empty key, or one of dots
        valid = "_" * max(1, len(valid))
    valid = re.sub(r"^(\.\./)*\.\.", lambda dots: dots[0].replace(".", "_"), valid)
    if len(valid) <= LONGEST_KEY:
        return valid
    return f"{valid[: LONGEST_KEY - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: MLflow shows a nested mapping as one string."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


# --- one project, as DVC reads it ---


class Project:
    """A DVC project: of this checkout, or of a commit.

    Attributes:
        problems: One line for each stage or file that cannot be read.
        undeclared: The stages in dvc.lock that dvc.yaml does not declare any more, or with other
            outs.

    Args:
        folder: Its folder, from the root.
        files: Its dvc.yaml files, from the root.
        repo: DVC's object for it, if it is of a commit.
    """

    def __init__(self, folder: Path, files: list[Path], repo: Any = None) -> None:
        from dvc.repo import Repo

        self.folder, self.repo = folder, repo or Repo(str(folder))
        self._of_commit = repo is not None
        self.problems: list[str] = []
        self.undeclared: set[str] = set()
        self._stages: dict[str, Any] = {}
        self._definitions: dict[str, Any] = {}  # the groups in the dvc.yaml of each stage
        self._locked: dict[str, str] = {}  # the identity of the result of each stage in dvc.lock
        self._places: dict[str, tuple[Path, str]] = {}  # of each stage: folder of dvc.lock, name
        self._metrics: list[str] = []  # those that no stage declares
        self._plots: dict[str, dict[str, Any]] = {}
        self._models: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of data that is declared under `artifacts`
        for file in files:
            self._load(file)
        self._made = {*self.outs()}
        self._above = {folder for path in self._made for folder in _above(path)}

    def _check(self, file: Path) -> None:
        """Check that DVC can parse a dvc.yaml and its dvc.lock: its parser recurses."""
        for path in (file, file.with_name(projects.LOCK)):
            full = posixpath.join(self.repo.root_dir, path.relative_to(self.folder).as_posix())
            if self.repo.fs.exists(full):
                with self.repo.fs.open(full, encoding="utf-8") as opened:
                    checked(opened.read(LARGEST + 1), path)

    def _load(self, file: Path) -> None:
        from dvc.dvcfile import ProjectFile

        below = file.relative_to(self.folder)
        path = posixpath.join(self.repo.root_dir, below.as_posix())
        # As for DVC, a copy of a project that is an out of a stage is data
        if declaration.is_ignored(self.repo, path) or is_in(file.as_posix(), self.outs()):
            return
        declared = ProjectFile(self.repo, path)
        with self._noting(file):
            self._check(file)
            groups, left_out = declaration.read(declared)
            self.problems += [f"{file}: {part}; the rest of it is read" for part in left_out]
            self._load_stages(file, declared, groups)
            self._load_sections(file, declared)

    def _load_stages(self, file: Path, declared: Any, groups: set[str]) -> None:
        below = file.relative_to(self.folder)
        at = "" if below.parent == Path() else f"{below.as_posix()}:"
        self._load_lock(declared)
        locked, names = declared.stages.lockfile_data, dict[str, None]()
        for group, definition in declared.resolver.definitions.items():
            with self._noting(f"{file}: {group}"):
                names |= dict.fromkeys(declaration.items(group, definition))
                groups = groups - {group}
        for name in names:
            with self._noting(f"{file}: {name}"):
                self._stages[at + name] = stage = declared.stages[name]
                self._definitions[at + name] = declared.resolver.definitions
                self._places[at + name] = (file.parent, name)
                if name in locked and all(out.hash_info for out in stage.outs):
                    self._locked[at + name] = identity.of_entry(file.parent, name, locked[name])
                elif name in locked:
                    self.undeclared.add(at + name)
        # The stages of the groups that are left cannot be read, which was said
        rest = (name for name in locked if name not in names)
        self.undeclared |= {at + name for name in rest if name.partition("@")[0] not in groups}

    def _load_sections(self, file: Path, declared: Any) -> None:
        at = file.parent.as_posix()
        with self._noting(f"{file}: metrics"):
            self._metrics += [_join(at, name) for name in declared.metrics]
        with self._noting(f"{file}: plots"):
            self._plots |= dict(_top_plots(declared.plots, at))
        with self._noting(f"{file}: artifacts"):
            for name, entry in declared.artifacts.items():
                kind = self._models if entry.get("type") == "model" else self._names
                kind[_join(at, entry["path"])] = name

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

    @contextmanager
    def _noting(self, what: object) -> Iterator[None]:
        """Turn a failure of DVC into a problem."""
        try:
            yield
        except Exception as error:
            self.problems.append(f"{what}: {declaration.reason(error)}")

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def __iter__(self) -> Iterator[str]:
        """The names of the stages, in the order of dvc.yaml."""
        return iter(self._stages)

    def _path(self, stage: Any, path: str) -> str:
        """A path that starts in the working directory of a stage, from the root."""
        if "://" in path or posixpath.isabs(path):
            return path
        wdir = Path(os.path.relpath(stage.wdir, self.repo.root_dir)).as_posix()
        return _join(self.folder.as_posix(), wdir, path)

    def loose(self) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """The metrics and plots that lie in no out of a stage."""
        outs = self.outs()
        plots = {path: plot for path, plot in self._plots.items() if not is_in(path, outs)}
        return [path for path in self._metrics if not is_in(path, outs)], plots

    def outs(self) -> list[str]:
        """The paths of all outs of all stages."""
        return [
            self._path(stage, out.def_path) for stage in self._stages.values() for out in stage.outs
        ]

    def here(self, name: str, with_outs: bool = True) -> Result:
        """The result of a stage from the files as they are now.

        Args:
            with_outs: False for a stage that has just begun.
        """
        return self._result(name, _md5_now, True, with_outs)

    @functools.cache  # noqa: B019 (a project lives as long as its command)
    def locked(self) -> dict[str, Result]:
        """The results in dvc.lock, by stage, without the stages that are not in it."""
        return {
            name: self._result(name, lambda entry: entry.hash_info.value, False, True)
            for name in self
            if name in self._locked
        }

    def _result(
        self, name: str, md5_of: Callable[[Any], str], now: bool, with_outs: bool
    ) -> Result:
        from dvc.dependency.param import ParamsDependency

        from dvc_mlflow import hooks  # which imports this file

        stage = self._stages[name]
        settings: list[naming.Setting] = []
        sections: list[int] = []  # where in the settings the only key of a file is
        deps = {}
        data: set[str] = set()
        read: dict[str, Any] = {"cmd": stage.cmd, "deps": [], "params": {}, "outs": []}
        for dep in stage.deps:
            path = self._path(stage, dep.def_path)
            if not isinstance(dep, ParamsDependency):
                deps[path] = md5_of(dep)
                data |= {path} if deps[path] and self._is_data(path) else set()
                read["deps"].append({"path": dep.def_path, "md5": deps[path]})
                continue
            tracked = (dep.read_params() if now else dep.hash_info.value) or {}
            read["params"][dep.def_path] = tracked
            if Path(path).name == "pyproject.toml":
                continue  # the versions of libraries are not settings
            sections += [len(settings)] if len(tracked) == 1 else []
            is_default = dep.def_path == dep.DEFAULT_PARAMS_FILE
            settings += [
                naming.Setting(path, is_default, key, flat(value)) for key, value in tracked.items()
            ]
        outs = {self._path(stage, out.def_path): out for out in stage.outs}
        own_plots = {path: out.plot for path, out in outs.items() if out.plot}
        plots = {path: plot if isinstance(plot, dict) else {} for path, plot in own_plots.items()}
        md5s = {path: md5_of(out) for path, out in outs.items()} if with_outs else {}
        read["outs"] = [
            {"path": out.def_path, "md5": md5s[path]} for path, out in outs.items() if with_outs
        ]
        item, strip = self._item(name), naming.stripped(hooks.settings())
        full, keys, chosen = naming.names(settings, item, strip)
        alone = [keys[at] for at in sections if ":" not in keys[at]]  # is that of one file
        models = {path: self._models[path] for path in outs if path in self._models}
        return Result(
            project=self.folder,
            stage=name,
            desc=stage.desc or "",
            params=naming.alone(full, alone, [*models.values()]),
            outs=md5s,
            deps={path: found for path, found in deps.items() if found},  # if it was there
            data={path: self._names.get(path, path) for path in deps if path in data},
            sizes={
                path: size
                for path, out in outs.items()
                if (size := _size_now(Path(path)) if now and with_outs else out.meta.size)
            },
            metrics=(
                *(path for path, out in outs.items() if out.metric),
                *(path for path in self._metrics if is_in(path, outs)),
            ),
            plots=plots | {path: plot for path, plot in self._plots.items() if is_in(path, outs)},
            models=models,
            chosen=chosen,
            full=full,
            former=naming.former(settings, item),
            identity=identity.of_entry(*self._places[name], read) if now else self._locked[name],
        )

    def _is_data(self, path: str) -> bool:
        """Whether a dep is the out of a stage, or a file that no commit of git keeps."""
        places = [path, *_above(path)]
        made = path in self._above or any(place in self._made for place in places)
        return "://" in path or made or not self._is_in_git(path)

    def _is_in_git(self, path: str) -> bool:
        if self._of_commit:
            below = os.path.relpath(path, self.folder)
            return bool(self.repo.fs.exists(posixpath.join(self.repo.root_dir, below)))
        return self._in_git is None or path in self._in_git

    @functools.cached_property
    def _in_git(self) -> set[str] | None:
        """The files here that git does not ignore, and their folders. None without git."""
        try:
            names = [
                name
                for name in git(
                    "ls-files", "-z", "--cached", "--others", "--exclude-standard"
                ).split("\0")
                if name
            ]
        except GitError:
            return None
        return {*names, *(folder for name in names for folder in _above(name))}

    def _item(self, name: str) -> naming.Item:
        """The item of a matrix or of a `foreach` that a stage is for, named as in its templates."""
        from dvc.parsing import MatrixDefinition

        group, _, item = name.rpartition(":")[2].partition("@")
        if not item:
            return naming.NONE
        definition = self._definitions[name][group]
        value = definition.normalized_iterable[item]
        value = getattr(value, "value", value)
        if isinstance(definition, MatrixDefinition):
            former = {key: getattr(part, "value", part) for key, part in value.items()}
            return naming.Item(flat(former), flat(former), former)
        keyed, told = isinstance(definition.resolved_iterable, Mapping), {"key": item, "item": item}
        if isinstance(value, Mapping):
            fields = flat(value)
            params = {"key" if "item" in fields else "item": item, **fields}
            told |= {f"item.{name}": part for name, part in fields.items()}
        else:
            params = {"key": item, "item": value} if keyed else {"item": item}
            told["item"] = value
        return naming.Item(params, told, {"item": item})


def _md5_now(entry: Any) -> str:
    """The md5 that DVC has for an out or a dep as it is now. DVC remembers those of large files."""
    return entry.get_hash().value if entry.exists else ""


def _above(path: str) -> list[str]:
    """The folders that a path lies in, without the root."""
    return [folder.as_posix() for folder in Path(path).parents][:-1]


def _size_now(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _join(*parts: str) -> str:
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
                yield _join(at, path), {**options, "x": column}


def all_projects() -> dict[Path, Project]:
    """The projects of this checkout, by folder, the higher ones first."""
    return {folder: Project(folder, files) for folder, files in projects.find().items()}


def changing(read: Iterable[Project] | None = None) -> list[str]:
    """The files that a pipeline changes: the outs and dvc.lock files of all projects."""
    found = all_projects().values() if read is None else read
    outs = [out for project in found for out in project.outs()]
    return [*map(str, projects.locks(projects.find())), *outs]


def project_of(stage: str) -> tuple[Project, str]:
    """The project that declares a stage, and the full name of the stage.

    `dvc` names its project in the environment. Without it, the first one with the stage is taken.
    """
    own, found = os.environ.get("DVC_ROOT"), projects.find()
    if own and Path(own).resolve().is_relative_to(Path().resolve()):
        folder = Path(own).resolve().relative_to(Path().resolve())
        if folder in found and stage in (project := Project(folder, found[folder])):
            return project, stage
    for project in all_projects().values():
        if stage in project:
            return project, stage
    raise InputError(f"no dvc.yaml of this repository declares the stage {stage}")
