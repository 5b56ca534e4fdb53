"""The tracking store of MLflow. All copies that DVC makes of a checkout use the same one."""

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dvc_mlflow import database, pages, projects
from dvc_mlflow.commands import quoted
from dvc_mlflow.errors import StageError
from dvc_mlflow.git import git
from dvc_mlflow.hooks import settings

MOST_COMPARED = 10  # runs


@dataclass(frozen=True)
class Experiment:
    """The experiment for one DVC project."""

    name: str
    description: str


def experiment(project: Path = projects.MAIN) -> Experiment:
    """The experiment of a project. Each has its own, because the UI shows 100 runs at first."""
    chosen = os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings().get("experiment")
    name, text = chosen or root().name, f"The runs of the stages in {project / 'dvc.yaml'}"
    return Experiment(
        name if project == projects.MAIN else f"{name}-{project.as_posix()}",
        pages.settings_of(project).get("description", text),
    )


TRAINING = "workflowType=machine_learning"  # the side of the UI that knows runs, not its GenAI side
UI = "http://127.0.0.1:5000"  # where `dvc-mlflow view` opens it

# MLflow's codes for something that the store does not have
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

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
    given = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    prefix, path = "sqlite:///", given.removeprefix("sqlite:///")
    if given.startswith(prefix) and not path.startswith(("/", "file:")):
        return f"{prefix}{root() / path}"
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
    # A proxy of the environment is for other machines
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "127.0.0.1" not in direct and direct != "*":
        os.environ["no_proxy"] = ",".join(filter(None, [direct, "localhost,127.0.0.1,::1"]))
    if registry_uri := os.environ.get("MLFLOW_REGISTRY_URI"):
        os.environ["MLFLOW_REGISTRY_URI"] = _well_formed(registry_uri)


def open_store(project: Path = projects.MAIN) -> str:
    """Point MLflow at the store; the id of the experiment, which is made where there is none."""
    found = find_experiment(project, make=True)
    follow(project)
    if found is None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        ignore()
        try:
            wanted = experiment(project)
            tags = {
                "mlflow.note.content": wanted.description,
                "mlflow.experimentKind": "custom_model_development",  # opened for model training
                **pages.views(project),
            }
            found = MlflowClient().create_experiment(wanted.name, location(), tags)
        except MlflowException:  # another machine was first
            found = find_experiment(project, make=True)
            if found is None:
                raise
    return found


def settle() -> None:
    """Bring the tables of an older MLflow up to date, and follow a folder that was moved. Says so.

    Raises:
        StageError: The tables are those of a newer MLflow, or of a database that others share.
    """
    apply_settings()
    with _creating():
        if _is_older() and is_local(uri()):
            import mlflow

            print(
                f"{name()} has the tables of an older MLflow: they become those of MLflow "
                f"{mlflow.__version__}, and an older one cannot read them any more",
                flush=True,
            )
            database.upgrade(uri())
    for folder in follow():
        print(f"this folder was moved from {folder}: its artifacts are kept here now")


def follow(project: Path = projects.MAIN) -> list[Path]:
    """Keep the artifacts of a folder that was moved where it is now; the folders where it was."""
    found = _moved(project)
    with _creating():
        for folder in found:
            database.follow(uri(), folder, root())
    return found


def _moved(project: Path = projects.MAIN) -> list[Path]:
    if uri().startswith(f"{database.PREFIX}file:"):  # can only be read
        return []
    return database.moved(
        uri(), root(), lambda: {experiment(folder).name for folder in (project, *projects.find())}
    )


def note_move() -> None:
    """For a command that only reads: that the store does not know where its folder is now."""
    for folder in _moved() if is_there() else ():
        print(
            f"note: this folder was moved from {folder}, where {name()} looks for its artifacts: "
            "`dvc-mlflow sync` lets it look here",
            file=sys.stderr,
        )


def _is_older() -> bool:
    """Whether the tables are those of an older MLflow.

    Raises:
        StageError: They are those of a newer one.
    """
    import mlflow

    found = None if is_remote(uri()) else database.revision(uri())
    if not found:
        return False
    newest, older = database.revisions()
    if found == newest:
        return False
    if found not in older:
        raise StageError(
            f"{name()} has the tables of another version of MLflow, which {mlflow.__version__} "
            "does not know: `pip install --upgrade mlflow`"
        )
    return True


def ignore() -> None:
    """Let git ignore what a store without a server writes into the main checkout. No file that git
    tracks is changed."""
    if is_remote(uri()):
        return
    with contextlib.suppress(StageError, OSError):
        path = Path(git("-C", str(root()), "rev-parse", "--git-path", "info/exclude").strip())
        for name in ("/mlflow.db*", "/mlartifacts/"):
            try:
                git("-C", str(root()), "check-ignore", "--quiet", name.strip("/*"))
            except StageError:
                with (root() / path).open("a", encoding="utf-8") as file:
                    file.write(f"{name}\n")


def show_views(
    project: Path, experiment_id: str, metrics: Sequence[str] = (), curves: Sequence[str] = ()
) -> None:
    """Let the page of runs have the views of :func:`pages.views`."""
    present = client().get_experiment(experiment_id).tags
    for tag, value in pages.views(project, metrics, curves).items():
        chosen = tag != pages.TABLE or metrics or "columns" in pages.settings_of(project)
        if chosen and present.get(tag) != value:
            client().set_experiment_tag(experiment_id, tag, value)


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

    from dvc_mlflow import reasons  # which names this store

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    mlflow.set_tracking_uri(uri())
    reasons.require_file()
    with _creating(make):
        if _is_older():
            shared = "" if is_local(uri()) else ' "$MLFLOW_TRACKING_URI"'
            cure = f"mlflow db upgrade{shared}" if shared else "dvc-mlflow sync"
            raise StageError(
                f"{name()} has the tables of an older MLflow, and nothing was changed: `{cure}` "
                "brings them up to date"
            )
        _lacking.discard(uri())
        if not make and not is_remote(uri()) and database.revision(uri()) is None:
            _lacking.add(uri())
            return None
        found = MlflowClient().get_experiment_by_name(experiment(project).name)
    if found is None:
        return None
    experiment_id: str = found.experiment_id
    if found.lifecycle_stage == "deleted":
        raise StageError(
            f"the MLflow experiment {found.name} in {name()} is deleted: "
            f"`mlflow experiments restore --experiment-id {quoted(experiment_id)}` brings it back"
        )
    return experiment_id


def is_there() -> bool:
    """Whether there is a store, as :func:`find_experiment` found it."""
    return uri() not in _lacking


def client() -> Any:
    """MLflow's client. For a store that is not there, it is one that finds nothing."""
    from mlflow import MlflowClient

    return MlflowClient() if is_there() else _Nothing()


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


@contextmanager
def _creating(make: bool = True) -> Iterator[None]:
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


def overview(experiment_id: str, ui: str = UI, view: str = pages.TABLE) -> str:
    """Where the UI shows all runs, with the columns that tell them apart, or their charts.

    Args:
        ui: The address of the UI, for a store that no server keeps.
    """
    mode = "&compareRunsMode=CHART" if view == pages.CHARTS else ""
    key = view.removeprefix(pages.TAG)
    return (
        f"{_ui(ui)}/#/experiments/{experiment_id}/runs?{_query(f'viewStateShareKey={key}{mode}')}"
    )


def print_how_to_open() -> None:
    """Say what opens the addresses of a store without a server: nothing answers there by itself."""
    if not is_remote(uri()):
        opens = settings().get("view", "dvc-mlflow view")
        print(f"note: `{opens}` opens the addresses at {UI}", file=sys.stderr)


def address(*, run: Any = None, model: Any = None) -> str:
    """Where the UI shows a run or a logged model."""
    if run is not None:
        return f"{_ui()}/{page_of(run)}"
    return f"{_ui()}/#/experiments/{model.experiment_id}/models/{model.model_id}?{_query()}"


def page_of(run: Any) -> str:
    """The page of a run, below the address of the UI: its curves, if it has any."""
    tab = "/model-metrics" if curves_of(run) else ""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{tab}?{_query()}"


def curves_of(run: Any) -> list[str]:
    """The names of the metrics of a run that have steps."""
    found = run.data._metric_objs  # `metrics` has no steps
    return [one.key for one in found if one.step > 0 and not one.key.startswith("system/")]


def comparison(runs: Sequence[Any], ui: str = UI) -> str:
    """Where the UI compares those of some runs that have curves; empty if that says nothing."""
    compared = [run for run in runs if curves_of(run)]
    if not 1 < len(compared) <= MOST_COMPARED:
        return ""
    ids = quote(json.dumps([run.info.run_id for run in compared]))
    of = quote(json.dumps([compared[0].info.experiment_id]))
    return f"{_ui(ui)}/#/compare-runs?{_query(f'runs={ids}&experiments={of}')}"


def _query(asked: str = "") -> str:
    """The end of an address: the workspace of a server that has several, and the side of the UI."""
    return "&".join(filter(None, (workspace(), asked, TRAINING)))


def workspace() -> str:
    """What an address says of the workspace; empty for a store that has none."""
    chosen = os.environ.get("MLFLOW_WORKSPACE", "").strip() if is_remote(uri()) else ""
    return f"workspace={quote(chosen, safe='')}" if chosen else ""


def _ui(ui: str = UI) -> str:
    return name().rstrip("/") if is_remote(uri()) else ui
