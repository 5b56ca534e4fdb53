"""``sync`` where nothing has changed since the last one: it ends without importing DVC or MLflow.

A sync that left nothing behind notes a digest of everything that its answer depends on: the files
that declare stages, results and settings, the code, the commit, the variables of DVC and MLflow,
the database of the store, and the files of its artifacts. If the digest is the same, so is the
answer: there is nothing to write. Digests are compared for equality alone, so clocks do not matter.

No digest is noted where that cannot be told: for a store that is no SQLite file here, or whose
artifacts are elsewhere; while a run goes on; while a run lacks files that may come later; after a
warning, which the next sync has to print again.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dvc_kit.errors import StageError
from dvc_kit.files import write_text
from dvc_mlflow import projects, store
from dvc_mlflow.database import PREFIX
from dvc_mlflow.git import GitError, git
from dvc_mlflow.hooks import settings

NOTE = "synced.json"  # the digest by the folder of a project, or ALL
ALL = "*"
HEADER = 100  # bytes of a database, among them a counter of its changes
VARIABLES = ("DVC_", "MLFLOW_")
VERSIONS = ("__init__.py", "version.py", "_version.py")  # pip writes them with each version


def sync(project: Path | None = None, **options: Any) -> None:
    """See :func:`dvc_mlflow.sync.sync`. Nothing is done if the last one left nothing to do.

    Raises:
        StageError: Something could not be read.
    """
    database = None if any(options.values()) else _database()
    given = {key: value for key, value in os.environ.items() if key.startswith(VARIABLES)}
    before = _digest(database, given)
    note, scope = projects.scratch() / NOTE, ALL if project is None else project.as_posix()
    noted = _read(note)
    if before and before in (noted.get(ALL), noted.get(scope)):
        return
    from dvc_mlflow.sync import sync

    if before is None and database is None:
        sync(project=project, **options)
        return
    lasting = sync(project=project)
    after = _digest(database, given)
    if lasting and after != before:
        # Runs were written. Whether another process has deleted some meanwhile is only known if
        # nothing changes while everything is looked at once more
        before, unheard = after, io.StringIO()
        with redirect_stdout(unheard), redirect_stderr(unheard), contextlib.suppress(Exception):
            lasting = False
            lasting = sync(project=project)
        after = _digest(database, given)
    if lasting and after and after == before and database and _settled(database):
        with contextlib.suppress(StageError):  # in a folder that can only be read
            write_text(note, json.dumps({**_read(note), scope: after}))


def _read(note: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        digests = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(digests, dict):
            return digests
    return {}


# --- what the answer depends on ---


def _database() -> Path | None:
    """The file of the store and of its registry, or None."""
    uri, registry = store.uri(), os.environ.get("MLFLOW_REGISTRY_URI")
    is_file = uri.startswith(PREFIX) and not uri.startswith(f"{PREFIX}file:") and "?" not in uri
    return Path(uri.removeprefix(PREFIX)) if is_file and not registry else None


def _digest(database: Path | None, given: Mapping[str, str]) -> str | None:
    """A hash of everything that the answer depends on, or None where that cannot be told."""
    if database is None:
        return None
    try:
        with database.open("rb") as file:
            header = file.read(HEADER)
        parts = [
            sys.version, str(Path.cwd()), sorted(given.items()), header.hex(),
            *(_state(database.with_name(database.name + end)) for end in ("", "-wal", "-journal")),
            *_checkout(), *_code(), *_artifacts(),
        ]  # fmt: skip
    except (OSError, GitError):
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _state(path: Path) -> list[Any]:
    """Another content has another state: no program can set back the time of the last change."""
    try:
        at = path.stat()
    except FileNotFoundError:
        return [str(path)]
    return [str(path), at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]


def _checkout() -> Iterator[Any]:
    """The commit, and each file that git lists, or that declares something and is ignored."""
    yield git("rev-parse", "--verify", "--quiet", "HEAD")
    for folder, files in projects.find().items():
        yield _state(folder / f"{projects.CONFIG}.local")
        for file in files:
            words = re.findall(r"[^\s'\"\[\]{},:]+", file.read_text(encoding="utf-8"))
            named = {file.parent / word for word in (*words, projects.LOCK, "params.yaml")}
            yield from (_state(place) for place in (file, *sorted(named)) if place.is_file())
    yield _state(Path("pyproject.toml"))
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    yield from (_state(Path(name)) for name in sorted({*listed} - {""}))


def _code() -> Iterator[Any]:
    """Code outside of the checkout, or that git ignores: ours, the hooks', and two libraries."""
    hooks = str(settings().get("hooks")).partition(".")[0]
    for module in (__package__, hooks):
        spec = importlib.util.find_spec(module)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from map(_state, sorted(Path(folder).rglob("*.py")))
    for library in ("dvc", "mlflow"):
        spec = importlib.util.find_spec(library)
        if spec and spec.origin:
            yield from (_state(Path(spec.origin).with_name(name)) for name in VERSIONS)


def _folder() -> Path:
    return store.root() / "mlartifacts"


def _artifacts() -> Iterator[Any]:
    """The names and sizes of all artifacts, which is what a sync looks at."""
    for folder, folders, names in os.walk(_folder()):
        folders.sort()
        yield folder, [(name, Path(folder, name).stat().st_size) for name in sorted(names)]


def _settled(database: Path) -> bool:
    """Whether no run goes on, whose process may end, and all artifacts are in one folder here."""
    import sqlite3

    places = (
        "SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM logged_models UNION "
        "SELECT artifact_location FROM experiments WHERE lifecycle_stage = 'active' AND "
        "experiment_id != 0"
    )
    alive = "SELECT 1 FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
    file, below = f"file:{quote(str(database))}?mode=ro", f"{_folder().as_uri()}/"
    try:
        with contextlib.closing(sqlite3.connect(file, uri=True)) as db:
            here = all(f"{place}/".startswith(below) for (place,) in db.execute(places))
            return here and not db.execute(alive).fetchone()
    except sqlite3.Error:  # MLflow has other tables now
        return False
