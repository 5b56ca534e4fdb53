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
    """The runs of all experiments that meet a condition, the newest first; or the deleted ones.

    MLflow counts the runs of a page from the first run. Runs that come or go meanwhile would move
    others between the pages. So each page begins at the time of the last run of the page before.
    """
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    ids = [experiment.experiment_id for experiment in store.every(client().search_experiments)]
    runs: dict[str, Any] = {}
    since, token = 0, None
    while ids:
        wanted = f"{condition} and attributes.start_time >= {since}"
        page = client().search_runs(
            ids, wanted, view, PAGE, ["attributes.start_time ASC"], page_token=token
        )
        runs |= {run.info.run_id: run for run in page}
        if not page.token:
            break
        last = page[-1].info.start_time
        since, token = (last, None) if last > since else (since, page.token)
    return list(runs.values())[::-1]
