"""Questions to the store that MLflow's client answers in pieces, or with an error."""

from collections.abc import Callable
from typing import Any

from dvc_mlflow import store
from dvc_mlflow.store import client

PAGE = 1_000  # runs that are asked for at a time


def get(request: Callable[..., Any], *of: Any) -> Any:
    """What a request for one thing answers, or None if the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return request(*of)
    except MlflowException as error:
        if error.error_code in store.NOT_THERE:
            return None
        raise


def search(condition: str, deleted: bool = False) -> list[Any]:
    """The runs of all experiments that meet a condition, the newest first; or the deleted ones."""
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    ids = [experiment.experiment_id for experiment in store.every(client().search_experiments)]
    return [*store.every(client().search_runs, ids, condition, view, PAGE)] if ids else []
