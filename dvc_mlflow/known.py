"""The runs that the store has, by their tags."""

from collections.abc import Mapping
from typing import Any

from dvc_mlflow import runs, store
from dvc_mlflow.results import Result
from dvc_mlflow.store import client

FINISHED = "attributes.status = 'FINISHED' and tags.stage LIKE '%'"


def search(condition: str, deleted: bool = False) -> list[Any]:
    """The runs of all experiments that meet a condition, the newest first; or the deleted ones."""
    import mlflow
    from mlflow.entities import ViewType

    if not store.is_there():
        return []
    found: list[Any] = mlflow.search_runs(
        filter_string=condition,
        run_view_type=ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
        search_all_experiments=True,
        output_format="list",
    )
    return found


class Known:
    """The finished runs of all stages and pipelines, read from the store at once."""

    def __init__(self) -> None:
        self._by_tag: dict[tuple[str, str], list[Any]] = {}
        self._lost: dict[str, list[str]] = {}
        self._deleted: list[Any] | None = None
        for run in reversed(search(FINISHED)):
            self._insert(run)

    def _insert(self, run: Any) -> None:
        for link in run.data.tags.items():
            self._by_tag.setdefault(link, []).insert(0, run)

    def add(self, run_id: str) -> None:
        """Read a run that was written meanwhile."""
        self._lost.pop(run_id, None)
        self._insert(client().get_run(run_id))

    def finished(self, links: Mapping[str, str]) -> Any:
        """The newest run with all these tags, or None."""
        for run in self._by_tag.get(next(iter(links.items())), []):
            if links.items() <= run.data.tags.items():
                return run
        return None

    def deleted(self, links: Mapping[str, str]) -> Any:
        """The newest finished run with these tags that was deleted, or None."""
        if self._deleted is None:
            self._deleted = search(FINISHED, deleted=True)
        return next((run for run in self._deleted if links.items() <= run.data.tags.items()), None)

    def all(self) -> list[Any]:
        """Each run once."""
        every = {run.info.run_id: run for found in self._by_tag.values() for run in found[::-1]}
        return list(every.values())

    def of(self, result: Result) -> Any:
        """The run of a result, or None. It may be one that the code of the stage made itself
        (plugin.py) and that lacks everything that DVC knows."""
        run, own = self.finished(result.tags), self._by_tag.get(("read", result.read), [])
        begun = next((one for one in own if not runs.is_complete(one)), None)
        if begun and (run is None or begun.info.start_time > run.info.start_time):
            return begun
        return run

    def lost_files(self, run: Any) -> list[str]:
        """See :func:`runs.lost_files`. Each run is looked at once."""
        run_id = run.info.run_id
        if run_id not in self._lost:
            self._lost[run_id] = runs.lost_files(run)
        return self._lost[run_id]
