"""The registry of models: each evaluated model becomes a version, and the best one the champion.

The hooks `score` and `judge` of the project decide who becomes champion. The reason is the
description of the version. Without the setting `registered_model`, nothing is registered.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_mlflow import models, schema, store
from dvc_mlflow.hooks import hook, settings
from dvc_mlflow.naming import cut
from dvc_mlflow.result import Result
from dvc_mlflow.schema import CHAMPION
from dvc_mlflow.store import client

Locked = Mapping[str, Result]
LONGEST_DESCRIPTION = 5_000  # characters that every store takes
MOST_TOLD = 3  # versions, the last ones, whose reasons are told


def name() -> str:
    """The name of the registered model, or nothing."""
    return str(settings().get("registered_model", ""))


def card() -> str:
    """The out of an evaluation that describes its models, or nothing."""
    return str(settings().get("model_card", ""))


def _evaluated(evaluation: Result, locked: Locked) -> dict[str, str]:
    """The md5 of each model that an evaluation read, by the name of the model."""
    names = {path: model for result in locked.values() for path, model in result.models.items()}
    return {names[path]: md5 for path, md5 in evaluation.deps.items() if path in names}


def evidence(evaluation: Result, locked: Locked) -> dict[str, Path]:
    """The file by which each model of an evaluation is judged, if somebody judges them."""
    if not name() or not hook("judge"):
        return {}
    return {model: hook("evidence")(model) for model in _evaluated(evaluation, locked)}


def register(evaluation: Result, locked: Locked, run_id: str) -> None:
    """Register the models of an evaluation, and let them compete for champion, the best one first.

    If the champion has lost its alias, it gets it back. Its md5 is also kept in a tag for that.

    Args:
        evaluation: Its outs lie in this folder.
        run_id: Its run, which keeps the evidence.
    """
    if not name() or not hook("judge"):
        return
    registered = _registered()
    if registered is None:
        description = str(settings().get("registered_model_description", ""))
        registered = client().create_registered_model(name(), description=description)
    md5s = _evaluated(evaluation, locked)
    files = evidence(evaluation, locked)
    best_first = sorted(files, key=lambda model: -hook("score")(files[model]))
    versions = {model: _version(model, md5s[model], run_id) for model in best_first}
    noted = registered.tags.get(CHAMPION)
    if noted and champion() is None and (former := version_of(noted)):
        client().set_registered_model_alias(name(), CHAMPION, former.version)
        print(f"restored the alias {CHAMPION}: it is version {former.version} of {name()} again")
    for model, version in versions.items():
        if version is None:
            continue  # its training has no run yet; the next sync comes back to it
        moves, reason = judge(version, files[model])
        if moves:
            client().set_registered_model_alias(name(), CHAMPION, version.version)
        if reason != version.description:
            client().update_model_version(name(), version.version, reason)
    present = champion()
    if present is not None and present.tags.get(schema.MD5, noted) != noted:
        client().set_registered_model_tag(name(), CHAMPION, present.tags[schema.MD5])
    if present is not None and present.tags.get(schema.MD5) in md5s.values():
        _describe(evaluation)


def _describe(evaluation: Result) -> None:
    """Let the registered model have the card of an evaluation, which lies in this folder."""
    if card() in evaluation.outs and Path(card()).is_file():
        text = cut(Path(card()).read_text(encoding="utf-8"), LONGEST_DESCRIPTION)
        if text != _registered().description:
            client().update_registered_model(name(), text)


def _version(model: str, md5: str, run_id: str) -> Any:
    """The version made from a file; registered now if it is new. None without a logged model.

    A version names its logged model for ever. If that was deleted, another version replaces it.
    """
    version, logged = version_of(md5), models.find(md5)
    if not logged or (version is not None and _names_one_of(version, logged)):
        return version
    if version is not None:
        client().delete_model_version(name(), version.version)
    version = client().create_model_version(
        name(),
        source=f"models:/{logged[0].model_id}",
        run_id=logged[0].source_run_id,
        model_id=logged[0].model_id,
        tags={schema.MODEL: model, schema.MD5: md5, schema.EVALUATION: run_id},
    )
    link = json.dumps([{"name": name(), "version": int(version.version)}])
    client().set_logged_model_tags(logged[0].model_id, {schema.VERSIONS: link})
    return version


def _names_one_of(version: Any, logged: Sequence[Any]) -> bool:
    """Whether the model that a version names is one of these."""
    return version.source.removeprefix("models:/") in {model.model_id for model in logged}


def is_behind(evaluation: Result, locked: Locked) -> bool:
    """Whether the registry lacks a model of an evaluation, or the alias of its champion."""
    if not name() or not hook("judge"):
        return False
    registered = _registered()
    if registered is None:
        return True
    md5s = _evaluated(evaluation, locked).values()
    for md5 in md5s:
        version, logged = version_of(md5), models.find(md5)
        if logged and (version is None or not _names_one_of(version, logged)):
            return True
    noted = registered.tags.get(CHAMPION)
    if not noted or champion() is not None:
        return False
    return version_of(noted) is not None


def _registered() -> Any:
    """The registered model, or None."""
    return store.get(client().get_registered_model, name())


def champion() -> Any:
    """The version that is champion, or None."""
    return store.get(client().get_model_version_by_alias, name(), CHAMPION)


def version_of(md5: str) -> Any:
    """The version that was made from the file with this md5, or None."""
    of_file = f"name = '{name()}' and tag.{schema.MD5} = '{md5}'"
    return next(iter(client().search_model_versions(of_file)), None)


def without_champion() -> str:
    """Why there is no champion, and what to do."""
    versions = [*store.every(client().search_model_versions, f"name = '{name()}'")]
    if not versions:
        return f"no model is registered in {store.name()} yet: `dvc repro` does that"
    registered = _registered()
    if registered is not None and version_of(registered.tags.get(CHAMPION, "none")):
        return f"{name()} has lost its alias {CHAMPION}: `dvc-mlflow sync` restores it"
    reasons = "; ".join(
        f"version {version.version} ({version.tags.get(schema.MODEL)}): {version.description}"
        for version in sorted(versions, key=lambda version: int(version.version))[-MOST_TOLD:]
    )
    return f"{name()} has no {CHAMPION} in {store.name()}: {reasons}"


def judge(version: Any, evidence: Path) -> tuple[bool, str]:
    """Whether a version becomes champion, and the reason."""
    present = champion()
    if present is not None and present.version == version.version:
        return False, version.description or hook("judge")(evidence, None, None)[1]
    with tempfile.TemporaryDirectory() as folder:
        against = _evidence_of(present, folder) if present else None
        decision: tuple[bool, str] = hook("judge")(evidence, present and present.version, against)
        return decision


def _evidence_of(version: Any, folder: str) -> Path | None:
    """The evidence of a version, brought into a folder; None if it is lost."""
    from mlflow.exceptions import MlflowException

    try:
        out = hook("evidence")(version.tags[schema.MODEL])
        evaluation = version.tags[schema.EVALUATION]
        return Path(client().download_artifacts(evaluation, out.name, folder))
    except (MlflowException, OSError, KeyError):
        return None
