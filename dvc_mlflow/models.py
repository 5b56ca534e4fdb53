"""Logged models: one for each model that dvc.yaml declares under `artifacts`."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvc_mlflow import reasons, schema, store, values
from dvc_mlflow.hooks import hook
from dvc_mlflow.result import Result
from dvc_mlflow.store import client


def log(run_id: str, result: Result, path: str) -> None:
    """Log the model in an out of a stage, which lies in this folder.

    Not with `log_model` of MLflow: that copies the system metrics of the run to the model, and
    starts a scoring server to try the model.
    """
    from mlflow.entities import LoggedModelOutput

    run = client().get_run(run_id)
    model = client().create_logged_model(
        run.info.experiment_id,
        name=result.models[path],
        source_run_id=run_id,
        tags={schema.MD5: result.outs[path], schema.FILE: path},
        params={
            name: values.param(key, result.params[key])
            for key, name in values.told_apart(result.params).items()
        },
    )
    try:
        log_files(model, result)
        client().finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is reported
            client().delete_logged_model(model.model_id)
        raise
    last = max((metric.step for metric in run.data._metric_objs), default=0)
    client().log_outputs(run_id, [LoggedModelOutput(model.model_id, step=last)])


def log_files(model: Any, result: Result) -> None:
    """Write the files of a logged model, made from an out that lies in this folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "exported"
        export(result, Path(model.tags[schema.FILE]), folder, model)
        with reasons.artifacts(lambda: str(model.artifact_location)):
            client().log_model_artifacts(model.model_id, str(folder))


def export(result: Result, path: Path, folder: Path, model: Any = None) -> None:
    """Write the model in an out into a folder, in the format of MLflow, by the project's hook.

    Without a hook, the folder gets a copy of the out.
    """
    ids = {"run_id": model.source_run_id, "model_id": model.model_id} if model else {}
    if write := hook("export"):
        write(result, path, folder, **ids)
        return
    from mlflow.models import Model

    description = Model(**ids)
    folder.mkdir(parents=True)
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)
    description.save(str(folder / "MLmodel"))


def complete(run_id: str, result: Result, path: str) -> None:
    """Log the model in an out if that was not done yet, or not completely."""
    known = find(result.outs[path])
    if not known:
        log(run_id, result, path)
    elif lost_files(known[0]):
        log_files(known[0], result)


def lost_files(model: Any) -> list[str]:
    """The files that a logged model should have, and that are missing in the store or empty."""
    path, is_folder = Path(model.tags[schema.FILE]), model.tags[schema.MD5].endswith(".dir")
    copied = ["MLmodel", *([] if is_folder else [path.name])]
    wanted = hook("model_files", lambda _: copied)(path)
    folders = {Path(name).parent.as_posix() for name in wanted} - {"."}
    with reasons.artifacts(lambda: str(model.artifact_location)):
        kept = {
            file.path
            for folder in (None, *sorted(folders))
            for file in client().list_logged_model_artifacts(model.model_id, folder)
            if file.file_size
        }
    return sorted({*wanted} - kept)


def find(md5: str) -> Sequence[Any]:
    """The logged models that were made from the file with this md5, the newest first."""
    ready = [model for model in _of(md5) if str(model.status) == "READY"]
    return sorted(ready, key=lambda model: model.creation_timestamp, reverse=True)


def drop_unfinished(md5: str) -> None:
    """Delete the logged models of a file that were not written completely."""
    for model in _of(md5):
        if str(model.status) != "READY":
            run = store.get(client().get_run, model.source_run_id) if model.source_run_id else None
            if run is None or run.info.status != "RUNNING":
                client().delete_logged_model(model.model_id)


def _of(md5: str) -> list[Any]:
    from mlflow.entities import ViewType

    experiments = store.every(client().search_experiments, view_type=ViewType.ACTIVE_ONLY)
    ids = [experiment.experiment_id for experiment in experiments]
    of_file = f"tags.{schema.MD5} = '{md5}'"
    return [*store.every(client().search_logged_models, ids, filter_string=of_file)]
