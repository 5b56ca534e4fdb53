"""The bytes of results: from the checkout, from DVC's cache, or from a commit."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

from dvc_kit import files
from dvc_kit.files import md5
from dvc_mlflow.declared import is_in
from dvc_mlflow.results import Project
from dvc_mlflow.shown import MOST_FILES, SHOWN, SOME


class Content:
    """Finds contents by path.

    Args:
        project: The project that they belong to.
        made: The md5 of each out.
        commit: Files that git keeps are taken from there, and from this checkout.
        pull: Fetch from the remote of DVC everything that is not in its cache.
    """

    def __init__(
        self,
        project: Project,
        made: Mapping[str, str],
        commit: str | None = None,
        pull: bool = False,
    ) -> None:
        self._root, self._project, self._made = Path.cwd(), project, made
        self._commit, self._pull = commit, pull
        caches = (project.repo.cache.local, project.repo.cache.legacy)
        self._caches = [cache for cache in caches if cache is not None]

    @contextmanager
    def laid(self, paths: Sequence[str]) -> Iterator[list[str]]:
        """A scratch folder as working directory, with links to some contents.

        Args:
            paths: Outs, or files and folders in them. `FOLDER/*` stands for those files of a folder
                that people look at. Other paths are taken as they are here or in the commit.

        Yields:
            The paths whose content cannot be had.
        """
        with tempfile.TemporaryDirectory(prefix="dvc-mlflow-") as scratch, chdir(scratch):
            # A folder before the files in it
            laid = {
                path: self._lay(path) for path in sorted(paths, key=lambda path: path.count("/"))
            }
            yield [path for path in dict.fromkeys(paths) if not laid[path]]

    def may_have(self, path: str) -> bool:
        """Whether an out, or a part of one, is here or in the cache, or may be in the remote."""
        is_out = self._out_of(path.removesuffix(SOME))[0] in self._made
        return is_out and (self._pull or self._files(path) is not None)

    def _lay(self, path: str) -> bool:
        """Link a path into the working directory. False if its content is nowhere."""
        plain = path.removesuffix(SOME)
        if Path(plain).exists():
            return True
        files = self._files(path)
        if files is None and self._commit:
            out, md5_of_out = self._out_of(plain)
            if self._lay_committed(self._commit, out, md5_of_out, plain):
                return True
        if files is None and self._pull and self._fetch(self._out_of(plain)[0]):
            files = self._files(path)
        if files is None:
            return False
        if not files:  # a folder without files that people look at
            Path(plain).mkdir(parents=True)
        for name, file in files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).symlink_to(file)
        return True

    def _lay_committed(self, commit: str, out: str, wanted: str | None, path: str) -> bool:
        """Write a path of an out as git keeps it, if these are the bytes that its stage wrote."""
        from dvc.fs import GitFileSystem
        from dvc.scm import SCM

        kept = GitFileSystem(scm=SCM(str(self._root)), rev=commit)
        with tempfile.TemporaryDirectory() as scratch:
            copy, wanted_path = Path(scratch, out), Path(scratch, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                kept.get(f"/{out}", str(copy))
            if not wanted_path.exists() or (wanted and md5(copy) != wanted):
                return False
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(wanted_path, path)
        return True

    def _out_of(self, path: str) -> tuple[str, str | None]:
        """The out that a path is, or lies in, and its md5."""
        places = [path, *(folder.as_posix() for folder in Path(path).parents)]
        out = next((place for place in places if place in self._made), path)
        return out, self._made.get(out)

    def _files(self, path: str) -> dict[str, Path] | None:
        """The files of a path, from this checkout or the cache. None if one is missing."""
        plain = path.removesuffix(SOME)
        out, wanted = self._out_of(plain)
        listed = self._listing(out, wanted) if wanted else None
        if listed is None:
            here = self._root / plain
            return {plain: here} if self._is_here(out, wanted) and here.exists() else None
        if path == plain:
            chosen = [name for name in listed if is_in(name, [path])]
            if not chosen:
                return None
        else:
            seen = [name for name in listed if Path(name).parent == Path(out)]
            chosen = [name for name in seen if Path(name).suffix in SHOWN][:MOST_FILES]
        found = {name: self._file(name, listed[name]) for name in chosen}
        whole = {name: file for name, file in found.items() if file}
        return whole if len(whole) == len(chosen) else None

    def _is_here(self, out: str, wanted: str | None) -> bool:
        if not (self._root / out).exists():
            return False
        with chdir(self._root):
            return md5(Path(out)) == wanted if wanted else not self._commit

    def _file(self, name: str, wanted: str) -> Path | None:
        """A file with this content: in this checkout, or in the cache of DVC."""
        here = self._root / name
        if here.is_file() and md5(here) == wanted:
            return here
        return self._object(wanted)

    def _object(self, wanted: str) -> Path | None:
        """An object of the cache that is not damaged."""
        from dvc_data.hashfile.hash import file_md5

        for cache in self._caches:
            path = Path(cache.oid_to_path(wanted))
            told = wanted.removesuffix(".dir")
            if path.is_file() and file_md5(str(path), cache.fs, name=cache.hash_name) == told:
                return path
        return None

    def _listing(self, out: str, wanted: str) -> dict[str, str] | None:
        """The md5 of each file in an out by path. None for a folder that no cache lists."""
        if not wanted.endswith(".dir"):
            return {out: wanted}
        if listed := self._object(wanted):
            entries = files.parse_json(listed.read_bytes(), wanted)
            return {f"{out}/{entry['relpath']}": entry["md5"] for entry in entries}
        return None

    def _fetch(self, out: str) -> bool:
        """Bring an out from the remote of DVC into the cache."""
        below = os.path.relpath(out, self._project.folder)
        with chdir(self._root), contextlib.suppress(Exception):  # no remote, or no rights
            self._project.repo.fetch([str(Path(self._project.repo.root_dir, below))])
            return True
        return False
