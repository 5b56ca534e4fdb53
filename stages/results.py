"""The truth that the mirror copies: what dvc.yaml, dvc.lock and git say of a stage's results."""

import functools
import json
import os
import posixpath
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import files, params
from stages.errors import InputError, StageError

LOCK, STUDY_LOCK = files.LOCKS
STUDY_RESULTS = (STUDY_LOCK, files.CELLS.as_posix(), (files.STUDY / "report").as_posix())


@dataclass(frozen=True)
class Result:
    """One stage's results and what they were made from; md5s by path, as in dvc.lock."""

    stage: str
    desc: str
    params: dict[str, Any]  # flattened, without the name of the recipe: `lenet5.epochs` is 20
    recipe: str | None
    outs: dict[str, str]
    deps: dict[str, str]

    @property
    def tags(self) -> dict[str, str]:
        """The content links."""
        outs = {f"out:{path}": md5 for path, md5 in self.outs.items()}
        return outs | {f"dep:{path}": md5 for path, md5 in self.deps.items()}


@functools.cache  # one file is read several times, and parsing it takes 50 ms
def load_yaml(text: str) -> dict[str, Any]:
    content = YAML(typ="safe").load(text)
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise StageError(f"{LOCK} or dvc.yaml names no stages: `git checkout` it")
    return content


def declared() -> dict[str, Any]:
    """The stages of dvc.yaml, in the order in which they run."""
    stages: dict[str, Any] = load_yaml(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return stages


def declaration(stage: str) -> dict[str, Any]:
    """What dvc.yaml, or study/dvc.yaml, says of one stage; of a cell of the study, filled in."""
    if stage in declared():
        found: dict[str, Any] = declared()[stage]
        return found
    text = (files.STUDY / "dvc.yaml").read_text(encoding="utf-8")
    study = load_yaml(text)["stages"]
    name, _, item = stage.partition("@")
    # `cell@record-mlp-0` is the recipe record, the model mlp and the seed 0
    values = dict(zip(study[name].get("matrix", {}), item.split("-"), strict=False))
    text = json.dumps(study[name])
    for key, value in values.items():
        text = text.replace(f"${{item.{key}}}", value)
    return {**json.loads(text), "matrix": values}


def _folder_of(stage: Mapping[str, Any]) -> str:
    """The folder that a stage's paths start from. The study was not always a DVC project of its
    own; in commits from before, they start from the main folder."""
    return files.STUDY.as_posix() if stage["cmd"].startswith("cd .. &&") else ""


def _from_main(path: str, folder: str) -> str:
    """A path that starts from a folder, from the main folder."""
    return posixpath.normpath(posixpath.join(folder, path))


def _outs_of(declaration: Mapping[str, Any]) -> list[str]:
    """The paths of a stage's outs, metrics and plots among them, as dvc.yaml declares them."""
    entries = [
        entry for kind in ("metrics", "plots", "outs") for entry in declaration.get(kind, [])
    ]
    names = (entry if isinstance(entry, str) else next(iter(entry)) for entry in entries)
    return [_from_main(name, _folder_of(declaration)) for name in names]


def _settings_of(declaration: Mapping[str, Any]) -> list[str]:
    """The keys of params.yaml that a stage declares."""
    keys = []
    for entry in declaration["params"]:
        if isinstance(entry, str):
            keys.append(entry)
        else:
            keys += entry.get(f"../{params.PATH}", [])
    return keys


def of_files(stage: str, with_outs: bool = True) -> Result:
    """The result that lies in the folder, of a stage that has just run or is about to."""
    said = declaration(stage)
    content = params.read()
    values: dict[str, Any] = {}
    for key in _settings_of(said):
        key = key.replace("${recipe}", content["recipe"])
        value: Any = content
        for part in key.split("."):
            value = value[part]
        values[key] = value
    return _result(
        stage,
        values,
        outs={path: files.md5(Path(path)) for path in _outs_of(said)} if with_outs else {},
        deps={
            path: files.md5(Path(path))
            for path in (_from_main(dep, _folder_of(said)) for dep in said["deps"])
        },
    )


def _result(
    stage: str, values: Mapping[str, Any], outs: dict[str, str], deps: dict[str, str]
) -> Result:
    said = declaration(stage)
    values = {**values, **said.get("matrix", {})}
    return Result(stage, said["desc"], _flat(values), values.get("recipe"), outs, deps)


def of_lock(lock_path: str = LOCK) -> dict[str, Result]:
    """The results in dvc.lock, by stage, in the order in which the stages run."""
    try:
        lock = load_yaml(Path(lock_path).read_text(encoding="utf-8"))["stages"]
    except OSError:
        raise StageError(f"there is no {lock_path}: `dvc repro` writes it") from None
    order = [stage for stage in declared() if stage in lock] if lock_path == LOCK else lock
    return {
        stage: _result(
            stage,
            _locked_settings(lock[stage]),
            outs=md5s(lock[stage], "outs"),
            deps=md5s(lock[stage], "deps"),
        )
        for stage in order
    }


def of_lock_if_any(lock_path: str = LOCK) -> dict[str, Result]:
    """The results in dvc.lock, none where nothing has been run yet."""
    return of_lock(lock_path) if Path(lock_path).is_file() else {}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under names that stay comparable: `recipes.published.lenet5` is `lenet5`."""
    recipe = f"recipes.{values.get('recipe')}"
    return {key.removeprefix(f"{recipe}."): value for key, value in params.flatten(values).items()}


def _locked_settings(stage: Mapping[str, Any]) -> dict[str, Any]:
    for path, values in stage.get("params", {}).items():
        if _from_main(path, _folder_of(stage)) == params.PATH.as_posix():
            found: dict[str, Any] = values
            return found
    return {}


def md5s(stage: Mapping[str, Any], kind: str) -> dict[str, str]:
    """The md5s of a locked stage's outs or deps, by path."""
    folder = _folder_of(stage)
    return {_from_main(entry["path"], folder): entry["md5"] for entry in stage.get(kind, [])}


# --- git ---


class GitError(StageError):
    """git refuses; its reason, which is empty where it was asked to be quiet."""


def git(*arguments: str, given: str | None = None) -> str:
    """What git prints.

    Raises:
        GitError: git fails, is not there, or this is no git repository.
    """
    try:
        result = subprocess.run(
            ["git", *arguments], input=given, capture_output=True, text=True, encoding="utf-8"
        )
    except FileNotFoundError:
        raise GitError("there is no git in PATH: install it") from None
    except OSError as error:
        raise GitError(f"git: {error.strerror}") from None
    if result.returncode:
        reason = " ".join(result.stderr.split())
        raise GitError(reason and f"git {arguments[0]}: {reason}")
    return result.stdout


def provenance() -> dict[str, str]:
    """Tags that say which code is running: the commit, whether files differ from it, and DVC's
    experiment. Results are left out, because the pipeline itself is about to change those."""
    tags = {}
    try:
        outs = [path for declaration in declared().values() for path in _outs_of(declaration)]
        excluded = [f":(exclude){path}" for path in (LOCK, *outs, *STUDY_RESULTS)]
        status = git("status", "--porcelain", "--", ".", *excluded)
        tags = {"commit": git("rev-parse", "HEAD").strip(), "dirty": str(bool(status)).lower()}
    except StageError:
        pass  # the project was copied without its history
    names = {"DVC_EXP_NAME": "dvc_experiment", "DVC_EXP_BASELINE_REV": "dvc_experiment_baseline"}
    return tags | {tag: os.environ[name] for name, tag in names.items() if os.environ.get(name)}


def commit_of(rev: str) -> str:
    """The full hash of a commit, by any name that git has for it, or of a DVC experiment.

    Raises:
        InputError: There is no such commit.
        GitError: git cannot tell.
    """
    for name in (rev, *_experiments(rev)):
        try:
            return git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
            ).strip()
        except GitError as error:
            if str(error):
                raise
    raise InputError(f"{rev} is not a commit of this repository")


def _experiments(name: str) -> list[str]:
    """The references of the DVC experiments of this name, the one on the checked out commit
    first."""
    if not re.fullmatch(r"[\w.-]+", name):
        return []
    refs = git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").split()
    try:
        head = git("rev-parse", "--verify", "--quiet", "HEAD").strip()
    except GitError:  # nothing is committed yet
        head = ""
    return sorted(refs, key=lambda ref: ref.replace("/", "").find(head) < 0)


def lock_of(commit: str, path: str = LOCK) -> str:
    """dvc.lock, or the study's, as a commit holds it."""
    try:
        return git("show", f"{commit}:{path}")
    except StageError:
        raise InputError(f"commit {commit[:10]} has no {path}") from None


@dataclass(frozen=True)
class Holder:
    """Commits that hold one and the same dvc.lock, the pipeline's or the study's."""

    first: str  # the oldest: the one that brought it
    others: int
    stages: dict[str, dict[str, str]]  # the md5 of each out, by stage and path

    def holds(self, outs: Mapping[str, str]) -> bool:
        """Whether each of these outs is in dvc.lock."""
        held = {path: md5 for stage in self.stages.values() for path, md5 in stage.items()}
        return all(held.get(path) == md5 for path, md5 in outs.items())


@functools.cache
def holders() -> tuple[Holder, ...]:
    """Every dvc.lock of the history, branches and DVC experiments included; the newest first."""
    commits = git("rev-list", "--all", "--date-order").split()
    asked = [(commit, lock) for commit in commits for lock in (LOCK, STUDY_LOCK)]
    names = "".join(f"{commit}:{lock}\n" for commit, lock in asked)
    answers = git("cat-file", "--batch-check=%(objectname) %(objecttype)", given=names)
    by_lock: dict[str, list[str]] = {}
    for (commit, _), answer in zip(asked, answers.splitlines(), strict=True):
        if answer.endswith(" blob"):
            by_lock.setdefault(answer.split()[0], []).append(commit)
    found = []
    for blob, holding in by_lock.items():
        try:
            stages = load_yaml(git("cat-file", "blob", blob))["stages"]
            outs = {name: md5s(stage, "outs") for name, stage in stages.items()}
        except Exception:  # a damaged dvc.lock somewhere in the history holds nothing
            continue
        found.append(Holder(holding[-1], len(holding) - 1, outs))
    return tuple(found)


# --- the files of a commit ---


@contextmanager
def checkout(rev: str | None) -> Iterator[Callable[[str, str], None]]:
    """Stand where the files of ``rev`` are, or stay in this folder where that is None.

    Yields:
        A function that makes sure that a path with this md5 lies there, from the DVC cache or the
        remote; it raises StageError naming the command that brings it.
    """
    if rev is None:
        yield require
        return
    commit = commit_of(rev)
    lock_of(commit)
    from dvc.api import DVCFileSystem

    source = DVCFileSystem(str(Path.cwd()), rev=commit)

    def bring(path: str, md5: str) -> None:
        if Path(path).exists() and files.md5(Path(path)) == md5:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            source.get(path, path, recursive=source.isdir(path))
        except Exception:
            raise StageError(
                f"{path} of commit {commit[:10]} is not in the cache: `git checkout "
                f"{commit[:10]} && dvc pull {path}` brings it"
            ) from None
        if files.md5(Path(path)) != md5:
            raise StageError(f"{path} of commit {commit[:10]} is not what its {LOCK} says")

    with tempfile.TemporaryDirectory(prefix="sync-") as folder, chdir(folder):
        for name in ("dvc.yaml", LOCK, "params.yaml", "pyproject.toml"):
            source.get_file(name, name)
        yield bring


def is_here(path: str, md5: str) -> bool:
    """Whether a path of this folder has this md5."""
    return Path(path).exists() and files.md5(Path(path)) == md5


def require(path: str, md5: str) -> None:
    """Make sure of it, or raise StageError."""
    if not is_here(path, md5):
        raise StageError(
            f"{path} is not the one in {LOCK}: `dvc pull {path}` brings it, or `dvc repro` makes it"
        )
