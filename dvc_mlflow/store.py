"""The tracking store of MLflow. All copies that DVC makes of a checkout use the same one."""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

from dvc_kit.commands import quoted
from dvc_kit.errors import StageError
from dvc_mlflow import database, projects
from dvc_mlflow.hooks import settings
from dvc_mlflow.tracker import Tracker


def experiment(project: Path = projects.MAIN) -> str:
    """The name of the experiment of a project. Each has its own, because MLflow first shows only
    100 runs."""
    chosen = os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings().get("experiment")
    own = "" if project == projects.MAIN else f"-{project.as_posix()}"
    return f"{chosen or root().name}{own}"


# MLflow's codes for something that the store does not have
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

PAGE = 1_000  # runs that are asked for at a time

NONE, OLDER, RIGHT = "none", "older", "right"  # tables in a store

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# A dead server must not hold a stage up: with MLflow's own settings one call may wait for minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    TIMEOUT: "4",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # also of a run that is deleted next
}


@functools.cache  # `sync` of a commit stands in another folder for a while
def root() -> Path:
    """The checkout that keeps the store: DVC names the main one, also in a copy that it made."""
    project = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    return projects.root(project) or project


def uri() -> str:
    """The tracking URI. A relative SQLite file is taken from the main checkout, not from a copy."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{database.PREFIX}mlflow.db"
    path = given.removeprefix(database.PREFIX)
    if given != path and not path.startswith(("/", "file:")):
        return f"{database.PREFIX}{root() / path}"
    return _well_formed(given)


def _well_formed(given: str) -> str:
    """A URI whose user and password are quoted: an unquoted @ or # would end up in its host, and
    from there in error messages."""
    match = re.fullmatch(r"([^/]+://)([^/]*)@(.*)", given, re.DOTALL)
    if match is None:
        return given
    scheme, user_info, rest = match.groups()
    quoted = ":".join(quote(unquote(part), safe="") for part in user_info.split(":", 1))
    return f"{scheme}{quoted}@{rest}"


def without_user(text: str) -> str:
    """A text whose URIs have lost user and password; all that is printed or logged goes through."""
    return re.sub(r"""(?<=://)[^/\s"']*@""", "", text)


def name() -> str:
    """The store, as messages call it."""
    return without_user(uri())


def is_remote(tracking_uri: str) -> bool:
    """Whether a server keeps the store, and then the artifacts too."""
    return tracking_uri.startswith(("http://", "https://"))


def is_local(tracking_uri: str) -> bool:
    """Whether the store is a file or a folder, whose answer may be slow but always comes."""
    return "://" not in tracking_uri or tracking_uri.startswith(("sqlite:", "file:"))


def apply_settings() -> None:
    """Set MLflow's settings, before it is imported. Those of the environment win."""
    for variable, value in SETTINGS.items():
        os.environ.setdefault(variable, value)
    if registry_uri := os.environ.get("MLFLOW_REGISTRY_URI"):
        os.environ["MLFLOW_REGISTRY_URI"] = _well_formed(registry_uri)


def tables() -> str:
    """What the tables of the store are: NONE, OLDER than this MLflow's, or RIGHT.

    Raises:
        StageError: They are those of a newer MLflow.
    """
    import mlflow

    revision = "" if is_remote(uri()) else database.revision(uri())
    if not revision:
        return NONE if revision is None else RIGHT
    newest, older = database.revisions()
    if revision == newest:
        return RIGHT
    if revision in older:
        return OLDER
    raise StageError(
        f"{name()} has the tables of another version of MLflow, which {mlflow.__version__} "
        "does not know: `pip install --upgrade mlflow`"
    )


_lacking: set[str] = set()  # the stores that were not there when they were last looked at


def find_experiment(project: Path = projects.MAIN, make: bool = False) -> str | None:
    """Point MLflow at the store; the id of the experiment, or None where there is none yet.

    Args:
        make: Make the store if it is not there. Otherwise nothing is written.

    Raises:
        StageError: It was deleted, or the store is one of an older MLflow; names the command that
            helps.
    """
    apply_settings()
    import mlflow
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    mlflow.set_tracking_uri(uri())
    with creating(make):
        state = tables()
        if state == OLDER:
            upgrade = 'mlflow db upgrade "$MLFLOW_TRACKING_URI"'
            raise StageError(
                f"{name()} has the tables of an older MLflow, and nothing was changed: "
                f"`{'dvc-mlflow sync' if is_local(uri()) else upgrade}` brings them up to date"
            )
        _lacking.discard(uri())
        if state == NONE and not make:
            _lacking.add(uri())
            return None
        present = MlflowClient().get_experiment_by_name(experiment(project))
    if present is None:
        return None
    experiment_id: str = present.experiment_id
    if present.lifecycle_stage == "deleted":
        raise StageError(
            f"the MLflow experiment {present.name} in {name()} is deleted: "
            f"`mlflow experiments restore --experiment-id {quoted(experiment_id)}` brings it back"
        )
    return experiment_id


def client() -> Tracker:
    """MLflow's client. For a store that is not there, it is one that finds nothing."""
    from mlflow import MlflowClient

    return cast(Tracker, _Nothing()) if uri() in _lacking else MlflowClient()


class _Nothing:
    """MLflow's client for a store that is not there. MLflow's own would make it."""

    def __getattr__(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
        from mlflow.store.entities import PagedList

        def ask(*arguments: Any, **named: Any) -> Any:
            if name.startswith("search_"):
                return PagedList([], None)
            raise MlflowException(nothing(), RESOURCE_DOES_NOT_EXIST)

        return ask


def nothing() -> str:
    """That there are no runs, and what to do."""
    return f"no runs in {name()} yet: `dvc-mlflow sync` writes them"


def every(search: Callable[..., Any], *of: Any, **more: Any) -> Iterator[Any]:
    """All that a search of MLflow finds, page by page."""
    token = None
    while True:
        page = search(*of, **more, page_token=token)
        yield from page
        if not (token := page.token):
            return


def get(request: Callable[..., Any], *of: Any) -> Any:
    """What a request for one thing answers, or None if the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return request(*of)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise


def search(condition: str, deleted: bool = False) -> list[Any]:
    """The runs of all experiments that meet a condition, the newest first; or the deleted ones."""
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    ids = [experiment.experiment_id for experiment in every(client().search_experiments)]
    return [*every(client().search_runs, ids, condition, view, PAGE)] if ids else []


@contextmanager
def creating(make: bool = True) -> Iterator[None]:
    """Two processes that create a store's tables at the same time can break each other's work.

    Args:
        make: False for one that only waits for the others.
    """
    from filelock import FileLock

    file = projects.scratch(root()) / "mlflow.lock"
    if is_remote(uri()) or not (make or file.exists()):
        yield
        return
    lock = FileLock(file, timeout=60)
    try:
        lock.acquire()
    except OSError:  # in a folder that can only be read, nothing is created
        yield
        return
    try:
        yield
    finally:
        lock.release()


def location() -> str | None:
    """Where the artifacts of a new experiment are kept; None where the server decides it."""
    return None if is_remote(uri()) else (root() / "mlartifacts").as_uri()
