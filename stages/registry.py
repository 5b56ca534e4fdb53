"""The model registry: both models of an evaluation become versions, the best may become champion.

``champion`` moves only when a version passes the gate in params.yaml: an accuracy of at least
``registry.min_accuracy``, and more right answers than the present champion's on the same test
images, with an exact McNemar p of at most ``registry.max_p``. The reason is each version's
description.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stages import files, runs, scoring, store
from stages.params import MODEL_NAMES, Registry
from stages.results import Result

NAME = "mnist"
CHAMPION = "champion"


def register(result: Result, evaluation: str, gate: Registry) -> None:
    """Register the two models of an evaluation and let them stand for champion, the better first.

    A champion that lost its alias gets it back: which model it is, is also noted in a tag.

    Args:
        result: evaluate's; its outs lie in this folder.
        evaluation: The id of its run, which keeps the predictions.
        gate: What a champion needs today, also when the evaluation is an older commit's.
    """
    client = runs.client()
    registered = _registered()
    if registered is None:
        description = "MNIST digits: uint8 images (N, 28, 28) to ten probabilities."
        registered = client.create_registered_model(NAME, description=description)
    correct = {name: correct_answers(files.predictions_path(name)) for name in MODEL_NAMES}
    versions = {
        name: _version(name, result.deps[files.model_path(name).as_posix()], evaluation)
        for name in sorted(MODEL_NAMES, key=lambda name: -correct[name].sum())
    }
    noted = registered.tags.get(CHAMPION)
    if noted and champion() is None and (former := version_of(noted) or _again(noted)):
        client.set_registered_model_alias(NAME, CHAMPION, former.version)
        print(f"restored the alias {CHAMPION}: it is version {former.version} of {NAME} again")
    for name, version in versions.items():
        if version is None:
            continue  # its training has no run yet; `make sync` writes that and comes back
        moves, reason = judge(version, correct[name], gate)
        if moves:
            client.set_registered_model_alias(NAME, CHAMPION, version.version)
        if reason != version.description:
            client.update_model_version(NAME, version.version, reason)
    present = champion()
    if present is not None and present.tags.get("md5", noted) != noted:
        client.set_registered_model_tag(NAME, CHAMPION, present.tags["md5"])


def _version(name: str, md5: str, evaluation: str) -> Any:
    """The version made from a file of weights, registered where it is not; None without a logged
    model."""
    version, models = version_of(md5), runs.find_models(md5)
    if version is not None or not models:
        return version
    client = runs.client()
    version = client.create_model_version(
        NAME,
        source=f"models:/{models[0].model_id}",
        run_id=models[0].source_run_id,
        model_id=models[0].model_id,
        tags={"model": name, "md5": md5, "evaluation": evaluation},
    )
    link = json.dumps([{"name": NAME, "version": version.version}])
    client.set_logged_model_tags(models[0].model_id, {"mlflow.modelVersions": link})
    return version


def _again(md5: str) -> Any:
    """Register once more the model of an older evaluation, or None where too little is left."""
    import mlflow

    models = runs.find_models(md5)
    if not models:
        return None
    evaluations: Any = mlflow.search_runs(
        filter_string=f"tags.`dep:{models[0].tags['file']}` = '{md5}' and tags.stage = 'evaluate'"
        " and attributes.status = 'FINISHED'",
        search_all_experiments=True,
        output_format="list",
    )
    if not evaluations:
        return None
    version = _version(models[0].name, md5, evaluations[0].info.run_id)
    runs.client().update_model_version(NAME, version.version, "champion: registered once more")
    return version


def is_behind(result: Result) -> bool:
    """Whether the registry lacks a model of an evaluation, or the alias of its champion."""
    registered = _registered()
    if registered is None:
        return True
    md5s = [result.deps[files.model_path(name).as_posix()] for name in MODEL_NAMES]
    if any(version_of(md5) is None for md5 in md5s):
        return True
    noted = registered.tags.get(CHAMPION)
    if not noted or champion() is not None:
        return False
    return bool(version_of(noted) or runs.find_models(noted))


def _registered() -> Any:
    """The registered model, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return runs.client().get_registered_model(NAME)
    except MlflowException as error:
        if error.error_code in store.NOT_THERE:
            return None
        raise


def without_champion() -> str:
    """Why there is no champion, and what to do."""
    versions = runs.client().search_model_versions(f"name = '{NAME}'")
    if not versions:
        return f"no model is registered in {store.name()} yet: `make repro` does that"
    registered = _registered()
    if registered is not None and version_of(registered.tags.get(CHAMPION, "none")):
        return f"{NAME} has lost its alias {CHAMPION}: `make sync` restores it"
    ordered = sorted(versions, key=lambda version: int(version.version))
    reasons = "; ".join(
        f"version {version.version} ({version.tags.get('model')}): {version.description}"
        for version in ordered[-len(MODEL_NAMES) :]
    )
    return f"{NAME} has no {CHAMPION} in {store.name()}: {reasons}"


def version_of(md5: str) -> Any:
    """The version that was made from the file with this md5, or None."""
    found = runs.client().search_model_versions(f"name = '{NAME}' and tag.md5 = '{md5}'")
    return found[0] if found else None


def champion() -> Any:
    """The version that is champion, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return runs.client().get_model_version_by_alias(NAME, CHAMPION)
    except MlflowException as error:
        if error.error_code in store.NOT_THERE:
            return None
        raise


def judge(version: Any, correct: scoring.Bools, gate: Registry) -> tuple[bool, str]:
    """Whether a version becomes champion, and why or why not.

    Args:
        correct: Which of the test images (N,) it gets right.
    """
    from mlflow.exceptions import MlflowException

    present = champion()
    accuracy = f"accuracy {correct.mean():.4f}"
    if present is not None and present.version == version.version:
        return False, version.description or f"champion: {accuracy}"
    if correct.mean() < gate.min_accuracy:
        return False, f"not champion: {accuracy}, needed is {gate.min_accuracy}"
    if present is None:
        return True, f"champion: {accuracy}, at least {gate.min_accuracy}; there was none before"
    try:
        with tempfile.TemporaryDirectory() as folder:
            name = files.predictions_path(present.tags["model"]).name
            path = runs.client().download_artifacts(present.tags["evaluation"], name, folder)
            theirs = correct_answers(Path(path))
    except (MlflowException, OSError, KeyError):
        return False, f"not champion: the predictions of version {present.version} are gone"
    if len(theirs) != len(correct):
        return False, f"not champion: version {present.version} was scored on other test images"
    paired = scoring.paired_difference(correct, theirs)
    against = (
        f"{accuracy}; against version {present.version}, alone right on {paired.only_first} images "
        f"and alone wrong on {paired.only_second} (exact McNemar p = {paired.mcnemar_p:.2g}, "
        f"needed is at most {gate.max_p})"
    )
    moves = paired.only_first > paired.only_second and paired.mcnemar_p <= gate.max_p
    return moves, f"{'champion' if moves else 'not champion'}: {against}"


def correct_answers(predictions: Path) -> scoring.Bools:
    columns = files.read_csv(predictions)
    correct: scoring.Bools = np.array(columns["actual"]) == np.array(columns["predicted"])
    return correct
