"""What MLflow has of a result: its run, its logged models, and what these have lost."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from dvc_mlflow import models, reasons, schema, shown, store
from dvc_mlflow.result import Result
from dvc_mlflow.store import client

FINISHED = f"attributes.status = 'FINISHED' and tags.{schema.STAGE} LIKE '%'"


class Known:
    """The finished runs of all stages and pipelines, read from the store at once.

    Attributes:
        runs: By id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self._by_tag: dict[tuple[str, str], dict[str, None]] = {}  # ids, the newest last
        self._above: dict[str, Any] = {}  # further runs that others lie below
        self._lost: dict[str, list[str]] = {}
        self._moved: dict[str, str] = {}  # ids of parents, by the id of a run
        self._deleted: list[Any] | None = None
        for run in reversed(store.search(FINISHED)):
            self._insert(run)

    def _insert(self, run: Any) -> None:
        self.runs[run.info.run_id] = run
        for link in run.data.tags.items():
            self._by_tag.setdefault(link, {})[run.info.run_id] = None

    def add(self, run_id: str) -> None:
        """Read a run that was written meanwhile."""
        self._lost.pop(run_id, None)
        self._insert(client().get_run(run_id))

    def having(self, link: tuple[str, str]) -> list[Any]:
        """The runs with a tag, the newest first."""
        runs = [self.runs[run_id] for run_id in reversed(self._by_tag.get(link, {}))]
        return [run for run in runs if link in run.data.tags.items()]

    def finished(self, result: Result) -> Any:
        """The newest run that shows a result, or None."""
        return _showing(result, self.having(next(iter(result.tags.items()))))

    def deleted(self, result: Result) -> Any:
        """The newest finished run of a result that was deleted, or None."""
        if self._deleted is None:
            self._deleted = store.search(FINISHED, deleted=True)
        return _showing(result, self._deleted)

    def of(self, result: Result) -> Any:
        """The run of this result, or None.

        It may be a bare run that the stage's own code began (plugin.py): sync completes it. Of
        several such runs, it is the one that ended last and lies below no other run of the stage.
        """
        bare = [
            run
            for run in self.having((schema.READ, result.read))
            if not is_complete(run) and not self._is_child(run)
        ]
        run, begun = self.finished(result), max(bare, key=_ended, default=None)
        return begun if begun and (run is None or _ended(begun) > _ended(run)) else run

    def _is_child(self, run: Any) -> bool:
        above = self.above(run)
        return (
            above is not None and above.data.tags.get(schema.STAGE) == run.data.tags[schema.STAGE]
        )

    def above(self, run: Any) -> Any:
        """The run that another one lies below, whatever its state, or None."""
        run_id = run.data.tags.get(schema.PARENT)
        if not run_id or run_id in self.runs:
            return self.runs.get(run_id)
        if run_id not in self._above:
            self._above[run_id] = store.get(client().get_run, run_id)
        return self._above[run_id]

    def put_below(self, run: Any, parent_id: str) -> None:
        """Let a run lie below another one, in the store after :meth:`settle`."""
        if run.data.tags.get(schema.PARENT) != parent_id:
            run.data.tags[schema.PARENT] = self._moved[run.info.run_id] = parent_id

    def settle(self) -> None:
        """Write which runs lie below which. A sync of many commits moves a run from state to state,
        and the store needs the last place only."""
        while self._moved:
            run_id, parent_id = next(iter(self._moved.items()))
            client().set_tag(run_id, schema.PARENT, parent_id)
            del self._moved[run_id]

    def shows(self, identities: Iterable[str], files: str) -> bool:
        """Whether each result of a state has its whole run, and the state a run that was written
        from these dvc.yaml and dvc.lock files without a problem. False if one has logged models.

        Args:
            files: See :func:`dvc_mlflow.history.files_of`.
        """
        parents = self.having((schema.FILES, files))
        if not parents or self.lost_files(parents[0]):
            return False
        for identity in identities:
            having = self.having((schema.RESULT, identity))
            if not having or not is_complete(having[0]) or schema.PARENT not in having[0].data.tags:
                return False
            if having[0].outputs.model_outputs:
                return False
            if missing_files(having[0]) or self.lost_files(having[0]):
                return False
        return True

    def lost_files(self, run: Any) -> list[str]:
        """See :func:`lost_files`. Each run is looked at once."""
        run_id = run.info.run_id
        if run_id not in self._lost:
            self._lost[run_id] = lost_files(run)
        return self._lost[run_id]

    def is_whole(self, result: Result, may_have: Callable[[str], bool]) -> bool:
        """Whether a result has a finished run with all that could be there.

        Args:
            may_have: Whether a file that the run lacks could be had now.
        """
        run = self.of(result)
        if run is None or not is_complete(run) or self.lost_files(run):
            return False
        missing = missing_files(run)
        if any(may_have(path) for path in missing):
            return False
        logged = (models.find(result.outs[path]) for path in shown.models_of(result)
                  if path not in missing)  # fmt: skip
        return all(its and not models.lost_files(its[0]) for its in logged)


def is_complete(run: Any) -> bool:
    """Whether a run has everything that its result had when it was written."""
    return schema.ARTIFACTS in run.data.tags


def missing_files(run: Any) -> list[str]:
    """The paths that a run lacks because they were not here when it was written."""
    paths: list[str] = json.loads(run.data.tags.get(schema.MISSING, "[]"))
    return paths


def lost_files(run: Any) -> list[str]:
    """The artifacts of a run that are no longer in the store, or have another size."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    noted = json.loads(run.data.tags.get(schema.ARTIFACTS, "{}"))
    if not noted:
        return []
    with reasons.artifacts(lambda: str(run.info.artifact_uri)):
        listed = get_artifact_repository(run.info.artifact_uri).list_artifacts()
    kept = {file.path: file.file_size for file in listed}
    return [
        name for name, size in noted.items() if name not in kept or kept[name] not in (None, size)
    ]


def md5s_of(run: Any) -> frozenset[str]:
    """The md5s of the outs that a run shows."""
    return frozenset(md5 for tag, md5 in run.data.tags.items() if tag.startswith(schema.OUT))


def _showing(result: Result, runs: Iterable[Any]) -> Any:
    """The first of some runs that shows a result, or None."""
    tags = result.tags.items()
    return next((run for run in runs if tags <= run.data.tags.items()), None)


def _ended(run: Any) -> int:
    """When a run ended, or began if nobody knows, in milliseconds."""
    return int(run.info.end_time or run.info.start_time)
