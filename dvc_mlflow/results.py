"""The results of each stage: the files that DVC keeps, and the files and settings behind them.

DVC itself reads dvc.yaml and dvc.lock, so templates, matrices and `foreach` are resolved as always.
"""

import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc_mlflow import git, projects
from dvc_mlflow.errors import StageError
from dvc_mlflow.files import md5

LINES = (None, "linear", "simple", "smooth")  # the templates of DVC that draw curves


@dataclass(frozen=True)
class Result:
    """The results of one stage. Paths start in the main folder; md5s are those of dvc.lock."""

    project: Path
    stage: str
    desc: str
    params: dict[str, Any]  # flat, by short names: see :func:`_short`
    outs: dict[str, str]  # md5 by path
    deps: dict[str, str]
    metrics: tuple[str, ...] = ()  # the outs that are metrics for DVC
    curves: dict[str, str] = field(default_factory=dict)  # the x of each plot with lines, by path
    models: dict[str, str] = field(default_factory=dict)  # the name of each model, by path
    chosen: tuple[str, ...] = ()  # the settings that a template of dvc.yaml has in a key

    @property
    def tags(self) -> dict[str, str]:
        """The tags that link a run to the contents of these files."""
        outs = {f"out:{path}": md5 for path, md5 in self.outs.items()}
        return outs | {f"dep:{path}": md5 for path, md5 in self.deps.items()}


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
    """A DVC project: of this folder, or of a commit.

    Args:
        folder: Its folder, from the main one.
        repo: DVC's object for it, if it is of a commit.
    """

    def __init__(self, folder: Path = projects.MAIN, repo: Any = None) -> None:
        from dvc.repo import Repo

        self.folder, self._repo = folder, repo or Repo(str(folder))
        self._stages = {stage.name: stage for stage in self._repo.index.stages if stage.name}
        self._metrics = {("repo", key) for key in self._repo.index.metric_keys["repo"]}
        self._models = {
            self._path(posixpath.dirname(source), artifact.path): name
            for source, artifacts in self._repo.artifacts.read().items()
            for name, artifact in artifacts.items()
            if artifact.type == "model"
        }

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def __iter__(self) -> Iterator[str]:
        """The names of the stages that have outs, in the order of dvc.yaml."""
        return (name for name, stage in self._stages.items() if stage.outs)

    def _path(self, *parts: str) -> str:
        """A path that starts in this project, from the main folder."""
        return posixpath.normpath(posixpath.join(self.folder.as_posix(), *parts))

    def _in_stage(self, stage: Any, path: str) -> str:
        """A path that starts in the working directory of a stage, from the main folder."""
        wdir = os.path.relpath(stage.wdir, self._repo.root_dir)
        return self._path(Path(wdir).as_posix(), path)

    def outs(self) -> list[str]:
        """The paths of all outs of all stages."""
        return [
            self._in_stage(stage, out.def_path)
            for stage in self._stages.values()
            for out in stage.outs
        ]

    def here(self, name: str, with_outs: bool = True) -> Result:
        """The result of a stage from the files as they are now.

        Args:
            with_outs: False for a stage that has just begun.
        """
        return self._result(name, lambda path, _: md5(Path(path)), True, with_outs)

    def locked(self) -> dict[str, Result]:
        """The results in dvc.lock, by stage, without the stages that are not in it."""
        return {
            name: self._result(name, lambda _, entry: entry.hash_info.value, False, True)
            for name in self
            if all(out.hash_info for out in self._stages[name].outs)
        }

    def _result(
        self, name: str, md5_of: Callable[[str, Any], str], now: bool, with_outs: bool
    ) -> Result:
        from dvc.dependency.param import ParamsDependency

        stage = self._stages[name]
        settings: dict[str, Any] = {}
        deps = {}
        for dep in stage.deps:
            path = self._in_stage(stage, dep.def_path)
            if not isinstance(dep, ParamsDependency):
                deps[path] = md5_of(path, dep)
            elif Path(path).name != "pyproject.toml":  # the versions of libraries are not settings
                settings |= (dep.read_params() if now else dep.hash_info.value) or {}
        outs = {self._in_stage(stage, out.def_path): out for out in stage.outs}
        plots = {path: out.plot for path, out in outs.items() if isinstance(out.plot, dict)}
        params, chosen = _short(settings, self._item(name))
        return Result(
            project=self.folder,
            stage=name,
            desc=stage.desc or "",
            params=params,
            outs={path: md5_of(path, out) for path, out in outs.items()} if with_outs else {},
            deps={path: found for path, found in deps.items() if found},  # if it was there
            metrics=tuple(path for path, out in outs.items() if out.index_key in self._metrics),
            curves={
                path: str(plot["x"])
                for path, plot in plots.items()
                if "x" in plot and plot.get("template") in LINES
            },
            models={path: self._models[path] for path in outs if path in self._models},
            chosen=chosen,
        )

    def _item(self, name: str) -> dict[str, Any]:
        """The values of one item of a matrix, by key, or the one of a `foreach`."""
        from dvc.dvcfile import load_file
        from dvc.parsing import MatrixDefinition

        group, _, item = name.partition("@")
        if not item:
            return {}
        resolver = load_file(self._repo, self._stages[name].path).resolver
        definition = resolver.definitions[group]
        if not isinstance(definition, MatrixDefinition):
            return {"item": item}
        values = definition.normalized_iterable[item]
        return {key: getattr(value, "value", value) for key, value in values.items()}


def _short(
    settings: Mapping[str, Any], item: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings under names that can be compared between runs, and the values left out of them.

    A template such as `${recipe}.lenet5` puts the value of a setting into a key. That value is left
    out of the name: with `recipe: published`, `published.lenet5.epochs` becomes `lenet5.epochs`.
    It stays if the name would be empty or that of another setting.
    """
    values = {str(value) for value in (*settings.values(), *item.values())}
    found: dict[str, Any] = {}
    chosen: list[str] = []
    for key, value in settings.items():
        parts = key.split(".")
        left_out = [part for part in parts if part in values]
        short = flat(value, ".".join(part for part in parts if part not in values))
        if {"", *found, *item} & short.keys():
            short, left_out = flat(value, key), []
        found |= short
        chosen += left_out
    return {**found, **item}, tuple(dict.fromkeys(chosen))


def project_of(stage: str) -> Project:
    """The project that declares a stage."""
    return Project(projects.of_stage(stage))


# --- the files of a commit ---

Bring = Callable[[str, str], None]  # makes sure that a path has an md5, or raises StageError


@contextmanager
def checkout(commit: str | None) -> Iterator[tuple[Project, Bring]]:
    """The main project of a commit, in a folder with its settings; or this folder's.

    Args:
        commit: Its full hash, or None for this folder.

    Yields:
        The project, and a function that takes a path and an md5. It makes sure that the file lies
        there, from the DVC cache or the remote. It raises StageError with the command to bring it.
    """
    if commit is None:
        yield Project(), require
        return
    git.lock_of(commit, projects.LOCK)
    from dvc.repo import Repo
    from dvc.repo.brancher import switch

    repo = Repo(str(Path.cwd()))

    def bring(path: str, wanted: str) -> None:
        if is_here(path, wanted):
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            repo.dvcfs.get(path, path, recursive=repo.dvcfs.isdir(path))
        except Exception:
            raise StageError(
                f"{path} of commit {commit[:10]} is not in the cache: `git checkout "
                f"{commit[:10]} && dvc pull {path}` brings it"
            ) from None
        if md5(Path(path)) != wanted:
            raise StageError(
                f"{path} of commit {commit[:10]} is not the one in its {projects.LOCK}"
            )

    with switch(repo, commit), tempfile.TemporaryDirectory(prefix="sync-") as folder, chdir(folder):
        yield Project(repo=repo), bring


def is_here(path: str, wanted: str) -> bool:
    """Whether a path of this folder has this md5."""
    return Path(path).exists() and md5(Path(path)) == wanted


def require(path: str, wanted: str) -> None:
    """Make sure of it, or raise StageError."""
    if not is_here(path, wanted):
        raise StageError(
            f"{path} is not the one in {projects.LOCK}: `dvc pull {path}` brings it, or "
            "`dvc repro` makes it"
        )
