"""The database of a store, looked at without MLflow, which changes what it opens.

MLflow makes missing tables, and brings the tables of an older version up to date, as soon as it
opens a database. It also keeps absolute paths of artifacts, which are wrong once a folder is moved.
"""

import contextlib
import functools
import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dvc_kit.errors import StageError, one_line

PREFIX = "sqlite:///"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
AGAIN = "the next `dvc-mlflow sync` writes all runs anew from the results"

# Every column with the path of an artifact, or of a folder of them
PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("trace_tags", "value"),
)


def path_of(uri: str) -> Path | None:
    """The file or folder of a local store or artifact. None for one that lies elsewhere."""
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    path = uri.removeprefix(PREFIX).removeprefix("file:").partition("?")[0]
    return None if "://" in path else Path(unquote(path))


def revision(uri: str) -> str | None:
    """The revision of the tables of a store: None if it has no tables, "" if it needs none.

    Raises:
        StageError: It is a file that cannot be used. MLflow would try for two minutes.
    """
    file = path_of(uri)
    if file and not file.exists() and not os.access(file.parent, os.W_OK):
        raise _unusable(file, f"{file.parent} cannot be written")
    if file and (not file.exists() or (file.is_file() and not file.stat().st_size)):
        return None
    if uri.split("+")[0].split(":")[0] not in DATABASES:
        return ""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            names = sqlalchemy.inspect(connection).get_table_names()
            if "alembic_version" not in names:
                return "0" if "experiments" in names else None
            asked = sqlalchemy.text("SELECT version_num FROM alembic_version")
            return str(connection.execute(asked).scalar() or "0")
    except sqlalchemy.exc.DBAPIError as error:
        if file is None:
            raise
        raise _unusable(file, one_line(str(error.orig))) from None


def _unusable(file: Path, reason: str) -> StageError:
    return StageError(
        f"{file} cannot be used ({reason}): name another store in MLFLOW_TRACKING_URI, or move it "
        f"away, and {AGAIN}"
    )


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


def follow(file: Path, folder: Path, here: Path) -> None:
    """Let a store name ``here`` wherever it names ``folder``, all at once or not at all."""
    pairs = [(str(folder), str(here)), (folder.as_uri(), here.as_uri())]
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        for table, column in PATHS:
            for old, new in pairs:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, len(old) + 1, f"{old}/"],
                )
