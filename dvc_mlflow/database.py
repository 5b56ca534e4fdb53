"""The database of a store, looked at without MLflow, which changes what it opens.

MLflow makes missing tables, and brings the tables of an older version up to date, as soon as it
opens a database. It also keeps absolute paths of artifacts, which are wrong once a folder is moved.
"""

import contextlib
import functools
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from dvc_kit.commands import output_of
from dvc_kit.errors import StageError

PREFIX = "sqlite:///"
AGAIN = "the next `dvc-mlflow sync` writes all runs anew from the results"
CLOSED = "unable to open database file"
REVISION = "SELECT version_num FROM alembic_version"
# The words of SQLite for files that are no database, or not the one they were
DAMAGED = (
    "database disk image is malformed|file is not a database|malformed database schema"
    "|no such table|no such column|disk I/O error"
)
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# Every column with the path of an artifact, or of a folder of them
PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("trace_tags", "value"),
)
FOLDERS = re.compile(r"/(mlartifacts|mlruns/\d+)/?$")  # of artifacts, beside the database


def file_of(uri: str) -> Path | None:
    """The file or folder of a local store. None for a store that lies elsewhere."""
    if uri.startswith(PREFIX):
        name = uri.removeprefix(PREFIX).partition("?")[0]
        return Path(unquote(name.removeprefix("file:")) if name.startswith("file:") else name)
    if "://" not in uri or uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri)
    return None


def revision(uri: str) -> str | None:
    """The revision of the tables of a store: None if it has no tables, "" if it needs none.

    Raises:
        StageError: It is a file, and no database. MLflow would try for two minutes.
    """
    file = file_of(uri)
    if (
        file
        and not file.exists()
        and uri.startswith(PREFIX)
        and not os.access(file.parent, os.W_OK)
    ):
        raise StageError(
            f"{uri} is not there and {file.parent} cannot be written: name another store in "
            "MLFLOW_TRACKING_URI"
        )
    if file and (not file.exists() or (file.is_file() and not file.stat().st_size)):
        return None
    if uri.split("+")[0].split(":")[0] not in DATABASES:
        return ""
    if not file:
        return _revision_of_server(uri)
    try:
        with _reading(file) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            return _revision(names, lambda: database.execute(REVISION).fetchone())
    except sqlite3.OperationalError as error:
        if file.is_dir() or CLOSED in str(error):
            raise StageError(_closed(file)) from None
        return ""  # MLflow says what is wrong with it
    except sqlite3.DatabaseError as error:
        raise StageError(damaged(file, str(error))) from None


def _revision(names: Container[str], row: Callable[[], Any]) -> str | None:
    """The revision, from the names of all tables and the row that holds it."""
    if "alembic_version" in names:
        return str((row() or ["0"])[0])
    return "0" if "experiments" in names else None


def _revision_of_server(uri: str) -> str | None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        names = sqlalchemy.inspect(connection).get_table_names()
        return _revision(names, lambda: connection.execute(sqlalchemy.text(REVISION)).fetchone())


@functools.cache
def revisions() -> tuple[str, frozenset[str]]:
    """The newest revision that this MLflow has, and all older ones. Alembic needs 0.5 s for it."""
    import mlflow

    names: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for file in Path(mlflow.__file__).parent.glob("store/db_migrations/versions/*.py"):
        for name, value in re.findall(r"^(\w*revision) = (.*)$", file.read_text("utf-8"), re.M):
            names.setdefault(name, set()).update(re.findall("[0-9a-f]{12}", value))
    (newest,) = names["revision"] - names["down_revision"]
    return newest, frozenset(names["down_revision"] | {"0"})


def upgrade(uri: str) -> None:
    """Bring the tables of a store up to date.

    Raises:
        StageError: MLflow refuses.
    """
    output_of([sys.executable, "-m", "mlflow", "db", "upgrade", uri])


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A database that this process cannot change."""
    uri = f"file:{quote(str(file.resolve()))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        yield database


# --- what is wrong with a file ---


def damaged(file: Path, detail: str) -> str:
    return f"{file} is damaged ({detail}): move it away, and {AGAIN}"


def _closed(file: Path) -> str:
    if file.is_dir():
        return f"{file} is a folder, and the store would be a file: move it away, and {AGAIN}"
    return (
        f"{file} cannot be opened ({CLOSED}): give yourself the rights to it and to its folder, "
        "or name another store in MLFLOW_TRACKING_URI"
    )


def meaning(uri: str, reason: str) -> str:
    """What an error of SQLite says of the file of a store, and the cure; empty for all else."""
    if not uri.startswith(PREFIX) or uri.startswith(f"{PREFIX}file:"):
        return ""
    file = Path(uri.removeprefix(PREFIX))
    can_write = file.exists() and os.access(file, os.W_OK)
    is_new = "no such table" in reason and file.is_file() and not file.stat().st_size
    if is_new or ("readonly database" in reason and not can_write):
        if file.exists() and not os.access(file.parent, os.W_OK):
            return ""
        return f"{file} was deleted or replaced while it was in use: {AGAIN}"
    if match := re.search(DAMAGED, reason):
        return damaged(file, match[0])
    if "database or disk is full" in reason:
        return f"{file} cannot grow, because its disk is full: free some space, then {AGAIN}"
    if "database is locked" in reason:
        return f"{file} is locked by another program: try again when that has ended"
    return _closed(file) if CLOSED in reason else ""


# --- a folder that was moved ---


def moved(uri: str, here: Path, experiments: Callable[[], Container[str]]) -> list[Path]:
    """The folders that a checkout had before it was moved or copied to ``here``.

    Those are folders that a store names for artifacts, and whose artifacts lie here now, or which
    are gone. A folder of another checkout with the same store is none of them.

    Args:
        experiments: Gives the names of those of this checkout, also in a store elsewhere.
    """
    file = file_of(uri)
    if not uri.startswith(PREFIX) or not file or not file.is_file():
        return []
    own = file.resolve().is_relative_to(here)
    query = "SELECT experiment_id, name, artifact_location FROM experiments"
    folders: list[Path] = []
    with _reading(file) as database:
        for number, name, location in database.execute(query).fetchall():
            place = _path(location or "")
            if not FOLDERS.search(place):
                continue
            folder = Path(FOLDERS.sub("", place))
            if folder in folders or folder.resolve() == here or not folder.is_absolute():
                continue
            # MLflow makes the experiment 0 itself, wherever it is started
            gone = not folder.exists() and number and (own or name in experiments())
            if gone or _lies_here(database, number, folder, here):
                folders.append(folder)
    return folders


def _lies_here(database: sqlite3.Connection, number: int, folder: Path, here: Path) -> bool:
    """Whether artifacts that an experiment has in another folder lie here."""
    for table, column in PATHS[1:3]:
        rows = database.execute(f"SELECT {column} FROM {table} WHERE experiment_id = ?", [number])
        for (uri,) in rows:
            place = Path(_path(uri or ""))
            if place.is_relative_to(folder) and (here / place.relative_to(folder)).exists():
                return True
    return False


def _path(uri: str) -> str:
    """The path of a local artifact."""
    if uri.startswith("file:"):
        return unquote(urlsplit(uri).path)
    return "" if "://" in uri else uri


def follow(uri: str, folder: Path, here: Path) -> None:
    """Let a store name ``here`` wherever it names ``folder``, all at once or not at all."""
    file = file_of(uri)
    assert file
    pairs = [(str(folder), str(here)), (folder.as_uri(), here.as_uri())]
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        for table, column in PATHS:
            for old, new in pairs:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, len(old) + 1, f"{old}/"],
                )
