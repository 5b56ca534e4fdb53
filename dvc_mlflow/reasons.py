"""Why something failed: in one line, with the one that is to blame, and with the cure."""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dvc_mlflow import store
from dvc_mlflow.database import AGAIN, PREFIX, damaged
from dvc_mlflow.errors import StageError, one_line, shortened
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

# MLflow's codes for a request that it does not take
REFUSED = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")

# The words of requests to a server that is not there, or that does not answer
UNREACHED = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError")
UNANSWERED = ("ReadTimeoutError", "Read timed out")

# The words of databases that refuse a change, and those of SQLite for files that are no database
READ_ONLY = ("readonly database", "read-only transaction", "permission denied for table")
DAMAGED = (
    *("database disk image is malformed", "file is not a database", "malformed database schema"),
    *("no such table", "no such column", "disk I/O error"),
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
    if any(words in str(error) for words in (*UNREACHED, *UNANSWERED, *READ_ONLY, *DAMAGED)):
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
    if cure := _of_server(reason) or _of_file(reason):
        return cure
    kind, blamed = type(error).__name__, _blamed(error)
    if "Can't locate revision" in reason or "out-of-date database schema" in reason:
        blamed, told = "MLflow", f"{store.name()} has the tables of another version of MLflow"
        reason = f"{told} than this one. {reason}"
    if any(refusal in reason for refusal in READ_ONLY):
        blamed, told = "MLflow", f"{store.name()} can only be read: write to another store"
        reason = f"{told}, or as its owner. {reason}"
    if any(words in reason for words in (*UNREACHED, *UNANSWERED)):
        blamed, reason = "MLflow", _no_answer(reason)
    elif isinstance(error, OSError) and error.filename and error.strerror and blamed != "MLflow":
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    reason = shortened(_without_sql(reason), LONGEST)
    return ": ".join(filter(None, (blamed, kind, reason)))


def _blamed(error: BaseException) -> str:
    """Whose failure it is: that of the library of its class, or else of the code that raised it."""
    own = str(settings().get("hooks")).partition(".")[0]
    blamed = {**BLAMED, own: "the hooks of this project"}
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    modules = [module for module in modules if module != __name__]
    for module in (type(error).__module__, *reversed(modules)):
        root = module.partition(".")[0]
        if root in blamed:
            return blamed[root]
        if root not in sys.stdlib_module_names and module == type(error).__module__:
            return ""  # a library whose name says who it is
    return ""


def _without_sql(reason: str) -> str:
    """Without the statement that a database refused, and its values."""
    reason = re.sub(r"\s*\[SQL: .*?\](?= \[parameters| \(Background|$)", "", reason)
    return re.sub(r"\s*(\[parameters: .*\]|\(Background on this error at: \S+\))", "", reason)


# --- servers ---


def _asked(reason: str) -> str:
    """The server that a request was sent to."""
    asked = re.search("API request to (.+?)/(?:ajax-)?api/", reason)
    return asked[1] if asked else store.name().rstrip("/")


def _variable(server: str) -> str:
    return f"MLFLOW_{'TRACKING' if server == store.name().rstrip('/') else 'REGISTRY'}_URI"


def _of_server(reason: str) -> str:
    """What is wrong with the certificate of a server or with its protocol; empty for all else."""
    server = _asked(reason)
    if "TLS CA certificate bundle" in reason:
        given = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH", "")
        return f"MLFLOW_TRACKING_SERVER_CERT_PATH is {given}, where no certificate is: correct it"
    if "Connection aborted" in reason and server.startswith("http://"):
        return f"{server} ended the connection without an answer: is it up, or is it https://?"
    if "SSLError" not in reason and "CERTIFICATE_VERIFY_FAILED" not in reason:
        return ""
    found = re.search(r"certificate verify failed: (.+?)\.? \(_ssl", reason)
    if not found:
        detail = re.search(r"\[SSL[^\]]*\] (.+?) \(_ssl", reason)
        why = detail[1] if detail else shortened(reason, LONGEST)
        return f"{server} does not speak TLS as this machine does ({why}): is it http://?"
    why = found[1]
    if "ismatch" in why:
        cure = f"write the name that its certificate has in {_variable(server)}"
    elif "expired" in why or "not yet valid" in why:
        cure = "its owner has to renew it; or set the clock of this machine"
    else:
        cure = "MLFLOW_TRACKING_SERVER_CERT_PATH=FILE names the certificate to trust"
    return f"the certificate of {server} is not trusted ({why}): {cure}"


def _no_answer(reason: str) -> str:
    """Which server did not answer a request, and what to do."""
    server = _asked(reason)
    if any(words in reason for words in UNANSWERED):
        seconds = os.environ.get(store.TIMEOUT, store.SETTINGS[store.TIMEOUT])
        return f"{server} did not answer in {seconds} s: {store.TIMEOUT}=60 gives it longer"
    return f"nothing answers at {server}: start it, or name another in {_variable(server)}"


# --- the file of SQLite ---


def require_file() -> None:
    """Refuse a file of SQLite that cannot be one: MLflow would try for two minutes.

    Raises:
        StoreError: It is no database, or it is not there and cannot be made.
    """
    file = _file()
    if file is None:
        return
    if file.is_dir():
        raise StoreError(_folder(file))
    if not file.exists():
        if not os.access(file.parent, os.W_OK):
            raise StoreError(
                f"{store.name()} is not there and {file.parent} cannot be written: name another "
                "store in MLFLOW_TRACKING_URI"
            )
        return
    try:
        with file.open("rb") as opened:
            first = opened.read(16)
    except OSError as error:
        raise StoreError(_closed(file, str(error.strerror))) from None
    if first not in (b"", b"SQLite format 3\0"):
        raise StoreError(damaged(file, "file is not a database"))


def _file() -> Path | None:
    """The file of the store, if that is one."""
    uri = store.uri()
    if not uri.startswith(PREFIX) or uri.startswith(f"{PREFIX}file:"):
        return None
    return Path(uri.removeprefix(PREFIX))


def _of_file(reason: str) -> str:
    """What is wrong with the file of the store; empty for all else."""
    file = _file()
    if file is None:
        return ""
    is_new = "no such table" in reason and file.is_file() and not file.stat().st_size
    if is_new or (
        "readonly database" in reason and not (file.exists() and not os.access(file, os.W_OK))
    ):
        if file.exists() and not os.access(file.parent, os.W_OK):
            return ""
        return f"{file} was deleted or replaced while it was in use: {AGAIN}"
    if detail := next((words for words in DAMAGED if words in reason), ""):
        return damaged(file, detail)
    if "database or disk is full" in reason:
        return f"{file} cannot grow, because its disk is full: free some space, then {AGAIN}"
    if "database is locked" in reason:
        return f"{file} is locked by another program: try again when that has ended"
    if "unable to open database file" in reason:
        return _folder(file) if file.is_dir() else _closed(file, "unable to open database file")
    return ""


def _folder(file: Path) -> str:
    return f"{file} is a folder, and the store would be a file: move it away, and {AGAIN}"


def _closed(file: Path, detail: str) -> str:
    return (
        f"{file} cannot be opened ({detail}): give yourself the rights to it and to its folder, "
        "or name another store in MLFLOW_TRACKING_URI"
    )


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
    except ImportError as error:
        module = str(error.name).partition(".")[0]
        needed = NEEDED.get(module, module)
        raise StoreError(
            f"the artifacts lie in {_shown(place)}, and the package for that is missing here "
            f"({module}): `pip install {needed}`, or let the server keep them: "
            "`mlflow server --serve-artifacts --artifacts-destination PLACE`"
        ) from None
    except OSError as error:
        kind = _blamed_class(error)
        if kind == "requests" or error.errno in (errno.ENAMETOOLONG, None):
            raise
        folder, why = _shown(place), error.strerror
        if not store.is_remote(store.uri()):
            raise StoreError(f"the artifacts cannot be written to {folder} ({why})") from None
        raise StoreError(
            f"the server wants the artifacts in {folder}, which cannot be written from here "
            f"({why}): start it as `mlflow server --serve-artifacts --artifacts-destination PLACE`,"
            " and take a new experiment (MLFLOW_EXPERIMENT_NAME)"
        ) from None
    except Exception as error:
        if _blamed_class(error) not in NEEDED:
            raise
        reason = shortened(one_line(error), LONGEST)
        raise StoreError(f"the artifacts cannot be kept in {_shown(place)}: {reason}") from None


def _blamed_class(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _shown(place: Callable[[], str]) -> str:
    """The place of the artifacts of all runs, as people write it."""
    uri = "an unknown place"
    with contextlib.suppress(Exception):
        uri = store.without_user(place())
    uri = re.sub(r"/\d+/(models/m-)?[0-9a-f]{32}/artifacts/?$", "", uri)
    return unquote(urlsplit(uri).path) if uri.startswith("file:") else uri
