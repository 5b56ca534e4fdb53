"""``make find``: from a run, a model or a file of weights to the commits that hold it, and back."""

import contextlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import files, registry, results, runs, store, sync
from stages.errors import InputError, StageError
from stages.runs import client


def find(what: str, file: Path) -> None:
    """Print what belongs to ``what``: the id of a run or logged model, `models:/NAME/VERSION`,
    `models:/NAME@ALIAS`, a file of weights, or whatever git or DVC takes for a commit.

    Args:
        file: Where a file of that name would be; a file goes before a commit of the same name.

    Raises:
        InputError: It is none of these, or nothing belongs to it.
    """
    if file.is_file():
        with contextlib.suppress(StageError):
            commit = results.commit_of(what)[:10]
            print(f"{what} names a file and a commit; this is the file, `find {commit}` the other")
        find_content(f"file {what}", files.md5(file))
    elif what.startswith("models:/") or re.fullmatch(r"m-[0-9a-f]{32}", what):
        model = logged_model(what)
        md5 = model.tags.get("md5")
        if md5 is None:
            raise InputError(f"{what} was not logged by this pipeline: it has no tag md5")
        find_content(what, md5)
    elif run := _run(what):
        find_run(run)
    else:
        find_commit(what)


def find_run(run: Any) -> None:
    outs = _outs(run)
    run_id = run.info.run_id
    if run.data.tags.get("stage") == "pipeline":
        children = client().search_runs(
            [run.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'"
        )
        for child in reversed(children):
            outs |= _outs(child)
    if not outs:
        commit = run.data.tags.get("commit")
        ran = f"; it ran on commit {commit[:10]}" if commit else ""
        if "stage" not in run.data.tags:
            raise InputError(f"run {run_id} was not made by this pipeline")
        raise InputError(f"run {run_id} is {run.info.status} and has no results{ran}")
    print(f"run {run_id} {run.data.tags['stage']} ({run.info.status})")
    print(f"  {store.address(run=run)}")
    print_commits(outs, f"run {run_id}")


def _outs(run: Any) -> dict[str, str]:
    """The md5s of the outs that a run's tags carry, by path."""
    tags = run.data.tags
    return {tag.removeprefix("out:"): md5 for tag, md5 in tags.items() if tag.startswith("out:")}


def find_content(name: str, md5: str) -> None:
    """Everything that one model file is in: logged models, versions, runs, commits."""
    models = runs.find_models(md5)
    paths = {
        path for holder in results.holders() for stage in holder.stages.values()
        for path, held in stage.items() if held == md5
    }  # fmt: skip
    if not models and not paths:
        raise InputError(f"{name} (md5 {md5}) is in no commit's {results.LOCK} and in no run")
    print(f"{name}: md5 {md5}")
    version = registry.version_of(md5)
    if version is not None:
        print(f"  models:/{registry.NAME}/{version.version}: {version.description}")
    for model in models:
        print(f"  {store.address(model=model)}")
        print(f"    made by run {model.source_run_id}")
    path = models[0].tags["file"] if models else sorted(paths)[0]
    print_commits({path: md5}, name)


def print_commits(outs: Mapping[str, str], name: str) -> None:
    """The commits whose dvc.lock has these outs, and how to get them back."""
    holding = [holder for holder in results.holders() if holder.holds(outs)]
    here = {
        path: md5
        for lock in (results.LOCK, results.STUDY_LOCK)
        for result in results.of_lock_if_any(lock).values()
        for path, md5 in result.outs.items()
    }
    if outs.items() <= here.items():
        print(f"  {results.LOCK} in this folder holds it: `dvc checkout` brings it back")
    elif not holding:
        raise InputError(f"no commit's {results.LOCK} holds the results of {name}")
    for holder in holding:
        subject = results.git("log", "-1", "--format=%h %cs %s", holder.first).strip()
        others = f"  (and {holder.others} more commits)" if holder.others else ""
        print(f"  commit {subject}{others}")
    if holding:
        commit = holding[0].first[:10]
        print(
            f"  to bring it back: `git checkout {commit} && dvc checkout` (not cached: `dvc pull`)"
        )


def find_commit(rev: str) -> None:
    try:
        commit = results.commit_of(rev)
    except InputError:
        raise InputError(
            f"{rev} is no run or model of {store.name()}, no file and no commit of this repository"
        ) from None
    stages = results.load_yaml(results.lock_of(commit))["stages"]
    print(f"commit {results.git('log', '-1', '--format=%h %cs %s', commit).strip()}")
    found = 0
    for stage, locked in stages.items():
        finished = _finished(locked)
        found += bool(finished)
        for run in finished:
            print(f"  {stage:14}{store.address(run=run)}")
        if not finished:
            print(f"  {stage:14}no run: `make sync REV={commit[:10]}` writes it")
    with contextlib.suppress(InputError):  # a commit from before the study
        found += find_study(commit)
    if not found:
        raise StageError(f"no run in {store.name()} has the results of commit {commit[:10]}")


def find_study(commit: str) -> int:
    """Print the run of the study's report, which stands over those of its cells; how many exist."""
    stages = results.load_yaml(results.lock_of(commit, results.STUDY_LOCK))["stages"]
    known = {stage: _finished(locked) for stage, locked in stages.items()}
    cells = [bool(found) for stage, found in known.items() if "@" in stage]
    report = [store.address(run=run) for run in known.get("report", [])[:1]]
    told = "" if all(cells) else f": `git checkout {commit[:10]} && make sync` writes them"
    print(f"  {'study':14}{(report or ['no run'])[0]}")
    print(f"  {'':14}{sum(cells)} of its {len(cells)} cells have runs{told}")
    return sum(cells) + len(report)


def _finished(locked: Mapping[str, Any]) -> list[Any]:
    known = sync.runs_with(results.md5s(locked, "outs"))
    return [run for run in known if run.info.status == "FINISHED"]


def _run(run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        return None
    try:
        return client().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def logged_model(what: str) -> Any:
    """The logged model behind `models:/NAME/VERSION`, `models:/NAME@ALIAS` or a model's id."""
    from mlflow.exceptions import MlflowException

    name = what.removeprefix("models:/")
    try:
        if re.fullmatch(r"m-[0-9a-f]{32}", name):
            return client().get_logged_model(name)
        if "@" in name:
            version = client().get_model_version_by_alias(*name.split("@", 1))
        else:
            version = client().get_model_version(*name.split("/", 1))
        # A registry in a database tells the model by the version's source only
        return client().get_logged_model(
            version.model_id or version.source.removeprefix("models:/")
        )
    except (MlflowException, TypeError) as error:
        if getattr(error, "error_code", None) in (None, *store.NOT_THERE):
            if name == f"{registry.NAME}@{registry.CHAMPION}" and registry.champion() is None:
                raise StageError(registry.without_champion()) from None
            raise InputError(
                f"{what} is no model of {store.name()}: expected models:/{registry.NAME}/VERSION, "
                f"models:/{registry.NAME}@{registry.CHAMPION} or a model's id"
            ) from None
        raise


# --- whether what the store would run is what a commit holds ---


def check(what: str, folder: Path) -> str:
    """Compare a logged model, byte by byte, with one exported from the weights in a commit's
    dvc.lock. Nothing of the logged model is loaded or run.

    Args:
        folder: Gets the logged model, as it was compared, under the name `logged`.

    Returns:
        What the model is.

    Raises:
        StageError: No commit holds its weights, or a part of it is not what they give.
    """
    from mlflow.artifacts import download_artifacts

    model = logged_model(what)
    md5, path = model.tags.get("md5", ""), model.tags.get("file", "")
    holding = [holder for holder in results.holders() if holder.holds({path: md5})]
    if not holding:
        raise StageError(f"{what} is refused: its bytes match no {results.LOCK} of this history")
    commit = holding[0].first
    lost = runs.lost_model_files(model)
    if lost:
        outs = [found.outs for found in results.of_lock_if_any().values()]
        rev = "" if any(held.get(path) == md5 for held in outs) else f" REV={commit[:10]}"
        raise StageError(
            f"{what} has lost artifacts in {store.name()} ({', '.join(lost)}): "
            f"`make sync{rev}` writes them again"
        )
    logged = Path(download_artifacts(f"models:/{model.model_id}", dst_path=f"{folder}/logged"))
    fresh = folder / "fresh"
    with results.checkout(commit) as bring:
        locked = results.of_lock()
        for needed, needed_md5 in {path: md5, **locked["prepare"].outs}.items():
            bring(needed, needed_md5)
        runs.export(Path(path), fresh)
    parts = (contents(logged), contents(fresh))
    for part in sorted(parts[0].keys() | parts[1].keys()):
        if parts[0].get(part) != parts[1].get(part):
            raise StageError(
                f"{what} is refused: its {part} matches no {results.LOCK} of this history"
            )
    return f"{what} is {path} (md5 {md5}) of commit {commit[:10]}"


def contents(model: Path) -> dict[str, Any]:
    """What a logged model would run, by part, without ids, paths and versions of this machine."""
    parts: dict[str, Any] = {}
    for path in sorted(file for file in model.rglob("*") if file.is_file()):
        name = path.relative_to(model).as_posix()
        if name == "MLmodel":
            described = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
            flavors = described.get("flavors", {})
            for flavor in flavors.values():
                flavor.pop("python_version", None)
                flavor.pop("pytorch_version", None)
            parts[name] = (flavors, described.get("signature"))
        elif name in ("conda.yaml", "python_env.yaml"):
            text = path.read_text(encoding="utf-8")
            parts[name] = re.sub(r"\b(python|pip|setuptools|wheel)([:=<> ]+)[0-9.]+", r"\1", text)
        elif path.suffix == ".pt2":
            try:
                parts |= {f"{name}/{part}": value for part, value in _archived(path).items()}
            except (zipfile.BadZipFile, ValueError):
                parts[name] = "damaged"
        elif name != "registered_model_meta":
            parts[name] = path.read_bytes()
    return parts


def _archived(path: Path) -> dict[str, Any]:
    """The weights and operations in a pt2 archive, by their place in it."""
    parts: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith("models/model.json"):
                parts[member] = _without_metadata(json.loads(archive.read(member)))
            elif not member.endswith(".data/serialization_id"):
                parts[member] = archive.read(member)
    return parts


def _without_metadata(value: Any) -> Any:
    """A graph of operations without what only describes them, where source paths stand."""
    if isinstance(value, dict):
        return {key: _without_metadata(item) for key, item in value.items() if key != "metadata"}
    if isinstance(value, list):
        return [_without_metadata(item) for item in value]
    return value
