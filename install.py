"""Gives the environment the packages of this commit: ``python -IS install.py FOLDER [--check]``.

`make` runs this before every target. What is installed is compared by content, because `git
checkout` changes the times of files that stay equal. An environment that has worked is never
cleared: pip works on it beside a copy (hard links, no space), which comes back if pip fails or is
interrupted. With --check, nothing is changed, and the exit code says whether nothing has to be
done.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECTS = ("dvc_mlflow/pyproject.toml", "pyproject.toml")
EXTRA = "dev"
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt")
PACKAGES = ("-e", "./dvc_mlflow", "-e", f".[{EXTRA}]")


def wanted() -> str:
    """A hash of everything in this commit that decides what is installed."""
    names = [*PROJECTS, "constraints.txt"]
    paths = [*(HERE / name for name in names), *sorted(HERE.glob("requirements/*.txt"))]
    content = b"".join(path.read_bytes() for path in paths)
    return hashlib.sha256(content).hexdigest()


class Environment:
    """A virtual environment, which may not be there yet.

    Attributes:
        folder: Where it is; a link is followed, because its target is what pip changes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.python = self.folder / "bin" / "python"
        self.done = self.folder / ".installed"  # what is installed
        self.begun = self.folder / ".installing"  # while pip works on one that never worked
        self.before = self.folder.with_name(f"{self.folder.name}.before")
        self.trash = self.folder.with_name(f"{self.folder.name}.trash")

    def runs(self, *arguments: str) -> str | None:
        """The output of its Python; None if that fails."""
        try:
            command = [str(self.python), *arguments]
            ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
        except (OSError, subprocess.CalledProcessError):
            return None
        return str(ended.stdout)

    def asks(self, question: str) -> bool:
        """Let its own Python run this script; whether the answer is yes."""
        return self.runs("-IS", __file__, str(self.folder), question) is not None

    def installed(self) -> Any:
        """What it should have, and what it has. Asked in its own Python, whose version counts."""
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = self.folder.glob(f"lib/{python}/site-packages/*.dist-info")
        names = sorted(path.name for path in packages)
        return {"wanted": wanted(), "site": python, "packages": names}

    def is_right(self) -> bool:
        """Whether it has the packages of this commit. Asked in its own Python."""
        try:
            noted, now = json.loads(self.done.read_text(encoding="utf-8")), self.installed()
            same = all(noted[key] == now[key] for key in ("wanted", "site"))
            return same and {*noted["packages"]} <= {*now["packages"]}
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def note(self) -> None:
        """Note what is installed. Called in its own Python."""
        temporary = self.done.with_name(".installed.tmp")
        temporary.write_text(json.dumps(self.installed(), sort_keys=True), encoding="utf-8")
        temporary.replace(self.done)
        self.begun.unlink(missing_ok=True)

    def keep(self) -> None:
        """Copy it by hard links, whole or not at all. pip replaces files and changes none."""
        shutil.copytree(self.folder, self.trash, symlinks=True, copy_function=link)
        self.trash.rename(self.before)

    def restore(self) -> None:
        """Take back what an installation has changed that did not succeed."""
        if self.before.exists():
            shutil.rmtree(self.trash, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(self.trash)
            self.before.rename(self.folder)
        self.tidy()

    def tidy(self) -> None:
        if self.before.exists():
            self.before.rename(self.trash)
        shutil.rmtree(self.trash, ignore_errors=True)


def link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # not every file system has hard links
        shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def alone() -> Iterator[int]:
    """Run the body while no other process installs here; a file that pip keeps open as well."""
    with Path(__file__).open(encoding="utf-8") as file:
        with suppress(OSError):  # some network file systems lock nothing
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("another `make` installs here: waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def make(environment: Environment) -> None:
    """Make what is missing of the environment: all of it, its Python or its pip."""
    for given in (("-m", "pip", "--version"), ("-m", "ensurepip", "--default-pip")):
        if environment.runs(*given) is not None:
            return
    for python in environment.folder.glob("bin/python*"):
        if python.is_symlink():
            python.unlink()  # the Python that it names has gone
    # PATH may have led to the Python of this very environment
    python3 = getattr(sys, "_base_executable", sys.executable)
    print(f"making {environment.folder} with {python3}", flush=True)
    if subprocess.run([python3, "-m", "venv", environment.folder]).returncode:
        sys.exit(f"{environment.folder} cannot be made, see above")


def pip(environment: Environment, lock: int) -> None:
    """Install what is missing, and our own packages."""
    packages = wanted()
    # Nothing is downloaded if only our own packages have changed, or the note on all is missing
    offline = (*PIP, "--no-index", "--no-build-isolation", *PACKAGES)
    can_build = environment.runs("-c", "import setuptools") is not None
    if not can_build or environment.runs(*offline) is None:
        print(f"installing the versions of constraints.txt into {environment.folder}", flush=True)
        command = [str(environment.python), *PIP, *PACKAGES]
        ended = subprocess.run(
            command, cwd=HERE, pass_fds=[lock], stderr=subprocess.PIPE, text=True
        )
        if ended.returncode:
            errors = re.findall(r"^ERROR: (.+)", ended.stderr, re.M) or ended.stderr.splitlines()
            error = errors[-1] if errors else f"exit code {ended.returncode}"
            # Of an index that cannot be reached, pip's last line says that a package is not there
            causes = re.findall(r"connection broken by '(.+)': /", ended.stderr)
            reason = re.sub("<[^>]*>: ", "", ", after ".join([error, *causes[-1:]]))
            sys.exit(f"pip could not install the packages of this commit ({reason})")
    if packages != wanted() or not environment.asks("--note"):
        sys.exit("the files that name the packages changed meanwhile: run this again")


def install(environment: Environment) -> None:
    """Bring the environment up to date, or leave it as it was.

    Raises:
        SystemExit: It could not be. Says so in one line.
    """
    with alone() as lock:
        if environment.before.exists() and not environment.asks("--check"):
            environment.restore()
        environment.tidy()
        if environment.asks("--check"):
            return
        if environment.begun.exists() and not environment.done.exists():
            shutil.rmtree(environment.folder)  # pip takes half a package for a whole one
        worked = environment.folder.exists()
        try:
            if worked:
                environment.keep()
                environment.done.unlink(missing_ok=True)
            make(environment)
            if not worked:
                environment.begun.touch()
            pip(environment, lock)
        except BaseException as error:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the next lines take a moment
            is_stop = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if is_stop else " ".join(str(error).split())[:500]
            if worked:
                environment.restore()
                reason += f"; {environment.folder} is as it was, with those of another commit"
            sys.exit(f"error: {reason}")
        environment.tidy()


def main() -> None:
    environment, question = Environment(Path(sys.argv[1])), "".join(sys.argv[2:])
    if question == "--check":
        sys.exit(not environment.is_right())
    if question == "--note":
        environment.note()
        return
    try:
        install(environment)
    except OSError as error:  # such as a folder that is mounted, and so cannot be renamed
        kept = f"; what it was is in {environment.before}" if environment.before.exists() else ""
        sys.exit(f"error: {environment.folder} cannot be changed ({error}){kept}")


if __name__ == "__main__":
    main()
