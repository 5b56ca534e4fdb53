"""The results of each stage of a project: as dvc.lock has them, and as the files are now."""

import functools
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dvc_kit.errors import InputError
from dvc_mlflow import hooks, identity, naming, projects
from dvc_mlflow.declared import Declared, Stage, is_in
from dvc_mlflow.git import GitError, git
from dvc_mlflow.result import Result


class Project:
    """A DVC project: of this checkout, or of a commit.

    Attributes:
        folder: Its folder, from the root.
        repo: DVC's object for it.
        problems: One line for each stage or file that cannot be read.
        undeclared: What is in dvc.lock alone, see :class:`~dvc_mlflow.declared.Declared`.
        files: If it is of a commit, a hash of its files there.

    Args:
        declarations: Its dvc.yaml files, from the root.
        repo, files: If it is of a commit.
    """

    def __init__(
        self, folder: Path, declarations: list[Path], repo: Any = None, files: str = ""
    ) -> None:
        from dvc.repo import Repo

        self.folder, self.repo, self.files = folder, repo or Repo(str(folder)), files
        self._of_commit = repo is not None
        self._declared = Declared(folder, declarations, self.repo)
        self._stages = self._declared.stages
        self.problems = self._declared.problems
        self.undeclared = self._declared.undeclared
        self._made = {*self.outs()}
        self._above = {folder for path in self._made for folder in _above(path)}

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def __iter__(self) -> Iterator[str]:
        """The names of the stages, in the order of dvc.yaml."""
        return iter(self._stages)

    def outs(self) -> list[str]:
        """The paths of all outs of all stages."""
        return self._declared.outs()

    def loose(self) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """The metrics and plots that lie in no out of a stage."""
        outs, declared = self.outs(), self._declared
        plots = {path: plot for path, plot in declared.plots.items() if not is_in(path, outs)}
        return [path for path in declared.metrics if not is_in(path, outs)], plots

    def here(self, name: str, with_outs: bool = True) -> Result:
        """The result of a stage from the files as they are now.

        Args:
            with_outs: False for a stage that has just begun.
        """
        return self._result(name, _md5_now, True, with_outs)

    def locked(self) -> dict[str, Result]:
        """The results in dvc.lock, by stage, without the stages that are not in it."""
        return self._locked

    @functools.cached_property
    def _locked(self) -> dict[str, Result]:
        return {
            name: self._result(name, lambda entry: entry.hash_info.value, False, True)
            for name, stage in self._stages.items()
            if stage.identity
        }

    def _result(
        self, name: str, md5_of: Callable[[Any], str], now: bool, with_outs: bool
    ) -> Result:
        stage, declared = self._stages[name], self._declared
        tracked = _tracked(stage, now)
        deps = {dep.def_path: md5_of(dep) for dep in stage.dvc.deps if not _is_settings(dep)}
        made = {out.def_path: md5_of(out) for out in stage.dvc.outs if with_outs}

        def whole(path: str) -> str:
            return declared.path(stage.dvc, path)

        outs = {whole(out.def_path): out for out in stage.dvc.outs}
        models = {path: declared.models[path] for path in outs if path in declared.models}
        there = {whole(path): md5 for path, md5 in deps.items() if md5}
        settings, strip = self._settings(name, tracked), hooks.settings().get("strip", [])
        full, chosen = naming.names(settings, stage.item, strip)
        model = next(iter(models.values())) if len(models) == 1 else ""
        params = naming.names(settings, stage.item, strip, model)[0] if model else full
        entry = {"deps": _entries(deps), "params": tracked, "outs": _entries(made)}
        entry["cmd"] = stage.dvc.cmd
        return Result(
            project=self.folder,
            stage=name,
            desc=stage.dvc.desc or "",
            params=params,
            outs={whole(path): md5 for path, md5 in made.items()},
            deps=there,
            data={path: declared.names.get(path, path) for path in there if self._is_data(path)},
            sizes={
                path: size
                for path, out in outs.items()
                if (size := _size_now(Path(path)) if now and with_outs else out.meta.size)
            },
            metrics=(
                *(path for path, out in outs.items() if out.metric),
                *(path for path in declared.metrics if is_in(path, outs)),
            ),
            plots={
                **{path: _options(out.plot) for path, out in outs.items() if out.plot},
                **{path: plot for path, plot in declared.plots.items() if is_in(path, outs)},
            },
            models=models,
            chosen=chosen,
            full=full,
            identity=identity.of_entry(stage.folder, stage.name, entry) if now else stage.identity,
        )

    def _settings(self, name: str, tracked: dict[str, dict[str, Any]]) -> list[naming.Setting]:
        """The settings of a stage, without the versions of libraries."""
        from dvc.dependency.param import ParamsDependency as Params

        paths = {file: self._declared.path(self._stages[name].dvc, file) for file in tracked}
        return [
            naming.Setting(path, file == Params.DEFAULT_PARAMS_FILE, key, naming.flat(value))
            for file, path in paths.items()
            if Path(path).name != "pyproject.toml"
            for key, value in tracked[file].items()
        ]

    def _is_data(self, path: str) -> bool:
        """Whether a dep is the out of a stage, or a file that no commit of git keeps."""
        made = path in self._above or any(place in self._made for place in [path, *_above(path)])
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
            listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        except GitError:
            return None
        names = [name for name in listed.split("\0") if name]
        return {*names, *(folder for name in names for folder in _above(name))}


def _is_settings(dep: Any) -> bool:
    from dvc.dependency.param import ParamsDependency

    return isinstance(dep, ParamsDependency)


def _tracked(stage: Stage, now: bool) -> dict[str, dict[str, Any]]:
    """The settings of a stage by file: those that it lists as they are now, or all in dvc.lock."""
    listed = {
        dep.def_path: (dep.read_params() if now else dep.hash_info.value) or {}
        for dep in stage.dvc.deps
        if _is_settings(dep)
    }
    # What ran had also those that dvc.yaml does not list any more
    ran = {} if now else stage.settings
    return {file: {**listed.get(file, {}), **(ran.get(file) or {})} for file in {**listed, **ran}}


def _entries(md5s: dict[str, str]) -> list[dict[str, str]]:
    """Deps or outs as dvc.lock has them."""
    return [{"path": path, "md5": md5} for path, md5 in md5s.items()]


def _md5_now(entry: Any) -> str:
    """The md5 that DVC has for an out or a dep as it is now. DVC remembers those of large files."""
    return entry.get_hash().value if entry.exists else ""


def _options(plot: Any) -> dict[str, Any]:
    return plot if isinstance(plot, dict) else {}


def _above(path: str) -> list[str]:
    """The folders that a path lies in, without the root."""
    return [folder.as_posix() for folder in Path(path).parents][:-1]


def _size_now(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


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
