"""Why something failed: in one line, with the one that is to blame, and with the cure."""

import contextlib
import errno
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dvc_kit.errors import StageError, one_line, shortened
from dvc_mlflow import database, store
from dvc_mlflow.hooks import settings

LONGEST = 600  # characters of a reason

# By the first part of the module of an exception, or of the code that raised it
BLAMED = {
    **dict.fromkeys(("mlflow", "requests", "urllib3", "sqlalchemy", "alembic"), "MLflow"),
    **dict.fromkeys(("botocore", "boto3", "google", "azure"), "MLflow"),
    **dict.fromkeys(("dvc", "dvc_data", "dvc_objects", "scmrepo", "dulwich", "pygit2"), "DVC"),
    "dvc_mlflow": "dvc-mlflow",
}
# What MLflow's stores of artifacts need, by the name of a module
NEEDED = {
    "boto3": "boto3",
    "botocore": "boto3",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
}
REFUSED = (
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
)  # MLflow's codes for a request it does not take
# A server was stopped in the middle of an answer, or drops a request that is too large for it
BROKE_OFF = "Connection aborted|Connection broken|IncompleteRead"

# What the words of a reason mean. The group `why` is shown, too. The first row that fits counts
MEANINGS = (
    (
        r"certificate verify failed: (?P<why>[^(]*?)\.? \(_ssl",
        "the certificate of {server} is not trusted ({why}): "
        "MLFLOW_TRACKING_SERVER_CERT_PATH=FILE names the certificate to trust",
    ),
    (
        "failed with error code 401 ",
        "MLflow: {server} does not let this user in: MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD name the user and the password",
    ),
    (
        "ReadTimeoutError|Read timed out",
        f"MLflow: {{server}} did not answer in {{seconds}} s: {store.TIMEOUT}=60 gives it longer",
    ),
    (
        BROKE_OFF,
        "MLflow: {server} broke off in the middle, and its log says why: when it runs again, "
        "`dvc-mlflow sync` writes what is missing",
    ),
    (
        "NewConnectionError|NameResolutionError|ConnectTimeoutError",
        "MLflow: nothing answers at {server}: start it, or name another in {variable}",
    ),
    (
        "Can't locate revision|out-of-date database schema",
        "MLflow: {store} has the tables of another version of MLflow than this one. {why}",
    ),
    (
        "readonly database|read-only transaction|permission denied for table",
        "MLflow: {store} can only be read: write to another store, or as its owner. {why}",
    ),
    (
        "(?P<why>disk image is malformed|file is not a database|no such (?:table|column))",
        f"{{store}} is damaged, or was replaced meanwhile ({{why}}): move it away, and "
        f"{database.AGAIN}",
    ),
)


class StoreError(StageError):
    """A failure of the store itself, which concerns every run."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error into a :class:`StageError`, one line."""
    try:
        yield
    except StageError as error:
        raise type(error)(store.without_user(str(error))) from None
    except BrokenPipeError:  # who reads our output has read enough
        raise
    except Exception as error:
        raise StageError(explain(error)) from None


def is_refusal(error: BaseException) -> bool:
    """Whether one run could not be written, as opposed to a store that takes none."""
    if isinstance(error, StoreError | BrokenPipeError):
        return False
    if isinstance(error, StageError) or getattr(error, "error_code", "") in REFUSED:
        return True
    if _blamed(error) != "MLflow":
        return True
    reason = one_line(error)
    if _meaning(reason) and not re.search(BROKE_OFF, reason):
        return False
    try:
        store.client().search_experiments(max_results=1)
    except Exception:
        return False
    return True


def explain(error: BaseException) -> str:
    """An error as one line: who is to blame, the reason, and the cure where there is one."""
    reason = store.without_user(one_line(error))
    if isinstance(error, StageError):
        return reason
    if meaning := _meaning(reason):
        return meaning
    blamed = _blamed(error)
    if isinstance(error, OSError) and error.filename and error.strerror and blamed != "MLflow":
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return ": ".join(filter(None, (blamed, type(error).__name__, _short(reason))))


def _blamed(error: BaseException) -> str:
    """Whose failure it is: that of the library of its class, or else of the code that raised it."""
    own = str(settings().get("hooks")).partition(".")[0]
    blamed = {**BLAMED, own: "the hooks of this project"}
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    modules = [module for module in modules if module != __name__]
    roots = (name.partition(".")[0] for name in (type(error).__module__, *reversed(modules)))
    return next((blamed[root] for root in roots if root in blamed), "")


def _short(reason: str) -> str:
    """Not too long, and without the statement that a database refused."""
    return shortened(reason.partition("[SQL: ")[0].strip(), LONGEST)


def _meaning(reason: str) -> str:
    """What is wrong with the server or the file of the store, and the cure; empty for all else."""
    asked = re.search("API request to (http.+?)/(?:ajax-)?api/", reason)
    own = store.name().rstrip("/")
    server = asked[1] if asked else own
    for words, meaning in MEANINGS:
        if match := re.search(words, reason):
            return meaning.format(
                server=server,
                store=store.name(),
                variable=f"MLFLOW_{'TRACKING' if server == own else 'REGISTRY'}_URI",
                seconds=os.environ.get(store.TIMEOUT, store.SETTINGS[store.TIMEOUT]),
                why=match.groupdict().get("why") or _short(reason),
            )
    return ""


# --- artifacts ---


@contextmanager
def artifacts(place: Callable[[], str]) -> Iterator[None]:
    """Explain why artifacts cannot be kept where the store wants them.

    Args:
        place: The URI of that place; asked only if something fails.

    Raises:
        StoreError: No run could keep its artifacts there.
    """
    try:
        yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        code = error.errno if isinstance(error, OSError) and library != "requests" else None
        if isinstance(error, ImportError):
            module = str(error.name).partition(".")[0]
            reason = f"the package {module} is missing: `pip install {NEEDED.get(module, module)}`"
        elif library in NEEDED or code not in (None, errno.ENAMETOOLONG):
            reason = getattr(error, "strerror", "") or shortened(one_line(error), LONGEST)
        else:
            raise
        uri = "an unknown place"
        with contextlib.suppress(Exception):
            uri = place()
        cure = (
            "; or let the server keep them, with `mlflow server --serve-artifacts "
            "--artifacts-destination PLACE` and a new experiment (MLFLOW_EXPERIMENT_NAME)"
        )
        raise StoreError(
            f"the artifacts cannot be kept in {store.without_user(uri)} ({reason})"
            f"{cure if store.is_remote(store.uri()) else ''}"
        ) from None
