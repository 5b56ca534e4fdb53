"""The runs that the store has, by their tags."""

from collections.abc import Iterable
from typing import Any

from dvc_mlflow import runs, store
from dvc_mlflow.results import Result, named
from dvc_mlflow.store import client

FINISHED = "attributes.status = 'FINISHED' and tags.stage LIKE '%'"
PAGE = 1_000  # runs that are asked for at a time
PARENT = "mlflow.parentRunId"


def search(condition: str, deleted: bool = False) -> list[Any]:
    """The runs of all experiments that meet a condition, the newest first; or the deleted ones.

    MLflow counts the runs of a page from the first run. Runs that come or go meanwhile would move
    others between the pages. So each page begins at the time of the last run of the page before.
    """
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    ids = [one.experiment_id for one in store.every(client().search_experiments)]
    found: dict[str, Any] = {}
    since, token = 0, None
    while ids:
        wanted = f"{condition} and attributes.start_time >= {since}"
        page = client().search_runs(
            ids, wanted, view, PAGE, ["attributes.start_time ASC"], page_token=token
        )
        found |= {run.info.run_id: run for run in page}
        if not page.token:
            break
        last = page[-1].info.start_time
        since, token = (last, None) if last > since else (since, page.token)
    return list(found.values())[::-1]


class Known:
    """The finished runs of all stages and pipelines, read from the store at once."""

    def __init__(self) -> None:
        self._runs: dict[str, Any] = {}  # by id
        self._by_tag: dict[tuple[str, str], dict[str, None]] = {}  # ids, the newest last
        self._above: dict[str, Any] = {}  # further runs that others lie below
        self._lost: dict[str, list[str]] = {}
        self._deleted: list[Any] | None = None
        for run in reversed(search(FINISHED)):
            self._insert(run)

    def _insert(self, run: Any) -> None:
        self._runs[run.info.run_id] = run
        for link in run.data.tags.items():
            self._by_tag.setdefault(link, {})[run.info.run_id] = None

    def add(self, run_id: str) -> None:
        """Read a run that was written meanwhile."""
        self._lost.pop(run_id, None)
        self._insert(client().get_run(run_id))

    def _having(self, link: tuple[str, str]) -> list[Any]:
        """The runs with a tag, the newest first."""
        found = [self._runs[run_id] for run_id in reversed(self._by_tag.get(link, {}))]
        return [run for run in found if link in run.data.tags.items()]

    def finished(self, result: Result) -> Any:
        """The newest run that shows a result, or None."""
        return _showing(result, self._having(next(iter(result.links.items()))))

    def deleted(self, result: Result) -> Any:
        """The newest finished run of a result that was deleted, or None."""
        if self._deleted is None:
            self._deleted = search(FINISHED, deleted=True)
        return _showing(result, self._deleted)

    def all(self) -> list[Any]:
        """Each run once."""
        return list(self._runs.values())

    def of(self, result: Result) -> Any:
        """The run of a result, or None. It may be one that the code of the stage made itself
        (plugin.py) and that lacks everything that DVC knows."""
        run, begun = self.finished(result), self._begun(result)
        return begun if begun and (run is None or _ended(begun) > _ended(run)) else run

    def _begun(self, result: Result) -> Any:
        """The run of the code of a stage that ended last, and lies below no other run of it."""
        own = [run for run in self._having(("read", result.read)) if not runs.is_complete(run)]
        return max((run for run in own if not self._is_child(run)), key=_ended, default=None)

    def _is_child(self, run: Any) -> bool:
        above = self.above(run)
        return above is not None and above.data.tags.get("stage") == run.data.tags["stage"]

    def above(self, run: Any) -> Any:
        """The run that another one lies below, whatever its state, or None."""
        from mlflow.exceptions import MlflowException

        run_id = run.data.tags.get(PARENT)
        if not run_id or run_id in self._runs:
            return self._runs.get(run_id)
        if run_id not in self._above:
            try:
                self._above[run_id] = client().get_run(run_id)
            except MlflowException as error:
                if error.error_code not in store.NOT_THERE:
                    raise
                self._above[run_id] = None
        return self._above[run_id]

    def lost_files(self, run: Any) -> list[str]:
        """See :func:`runs.lost_files`. Each run is looked at once."""
        run_id = run.info.run_id
        if run_id not in self._lost:
            self._lost[run_id] = runs.lost_files(run)
        return self._lost[run_id]


def is_former(run: Any) -> bool:
    """Whether a run was written by an earlier version, whose runs did not have their identity."""
    return "result" not in run.data.tags


def _showing(result: Result, found: Iterable[Any]) -> Any:
    """The first of some runs that shows a result.

    A run of an earlier version shows it if outs and settings are the same.
    """
    linked = [run for run in found if result.links.items() <= run.data.tags.items()]
    for run in linked:
        if run.data.tags.get("result", "") == result.identity:
            return run
    return next((run for run in linked if is_former(run) and _agrees(run, result)), None)


def _agrees(run: Any, result: Result) -> bool:
    """Whether a complete run has the stage and the settings of a result.

    The settings may have had other names. Those that the code of a stage logged may be any.
    """
    tags, shown = run.data.tags, run.data.params
    if not runs.is_complete(run):
        return False
    settings = {named(key): str(value) for key, value in result.params.items()}
    if tags.get("read") == result.read:
        by_code = "process" not in tags
        return by_code or all(shown.get(key, settings[key]) == settings[key] for key in settings)
    of = (tags.get("stage"), tags.get("project"))
    return of == (result.stage, result.project.as_posix()) and shown == settings


def _ended(run: Any) -> int:
    """When a run ended, or began if nobody knows, in milliseconds."""
    return int(run.info.end_time or run.info.start_time)
