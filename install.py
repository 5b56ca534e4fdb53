"""Gives the environment the packages of this commit: ``python -IS install.py FOLDER [--check]``.

`make` runs this before every target. What is installed is compared by content, because `git
checkout` changes the times of files that stay equal. An environment that has worked is never
cleared: pip works on it beside a copy (hard links, no space), which comes back if pip fails or is
interrupted. An environment that never worked is begun anew. With --check, nothing is changed, and
the exit code says whether nothing has to be done.
"""

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
PROJECTS = ("dvc_mlflow/pyproject.toml", "pyproject.toml")
KEYS = ("name", "version", "requires-python", "dependencies", "scripts", "entry-points")
EXTRA = "dev"
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
PACKAGES = ["-e", "./dvc_mlflow", "-e", f".[{EXTRA}]"]
ELSEWHERE = ("target", "prefix", "root")  # settings of pip: where it puts packages


def fail(text: str) -> NoReturn:
    sys.exit(f"error: {text}")


def wanted() -> Any:
    """Everything in this commit that decides what is installed."""
    found: dict[str, Any] = {}
    for name in PROJECTS:
        try:
            content = tomllib.loads((HERE / name).read_text(encoding="utf-8"))
        except ValueError as error:
            fail(f"{name} cannot be read ({error})")
        project = content.get("project", {})
        found[name] = [
            {key: project[key] for key in KEYS if key in project},
            project.get("optional-dependencies", {}).get(EXTRA),
            content.get("build-system"),
            content.get("tool", {}).get("setuptools"),
        ]
    for path in [HERE / "constraints.txt", *sorted((HERE / "requirements").glob("*.txt"))]:
        lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
        found[path.name] = [line for line in lines if line]
    return found


class Environment:
    """A virtual environment, which may not be there yet.

    Attributes:
        folder: Where it is; a link is followed, because its target is what pip changes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.python = self.folder / "bin" / "python"
        self.done = self.folder / ".installed"  # once an installation has succeeded
        self.begun = self.folder / ".installing"  # by an installation that has not succeeded
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

    def site(self) -> Path:
        """Where its packages are. Only its own Python knows which version it is."""
        return self.folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

    def packages(self) -> list[str]:
        return sorted(path.name for path in self.site().glob("*.dist-info"))

    def is_right(self) -> bool:
        """Whether it has the packages of this commit. Asked in its own Python."""
        try:
            noted = json.loads(self.done.read_text(encoding="utf-8"))
            same = noted["wanted"] == wanted() and noted["site"] == self.site().parent.name
            return bool(same and {*noted["packages"]} <= {*self.packages()})
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def note(self) -> None:
        """Note what is installed. Called in its own Python."""
        noted = {"wanted": wanted(), "site": self.site().parent.name, "packages": self.packages()}
        temporary = self.done.with_name(".installed.tmp")
        temporary.write_text(json.dumps(noted, sort_keys=True), encoding="utf-8")
        temporary.replace(self.done)
        self.begun.unlink(missing_ok=True)

    def broken(self) -> list[str]:
        """The packages with files that are missing or have another size. pip takes half a package
        for a whole one. Called in its own Python."""
        found = []
        for package in self.packages():
            try:
                with (self.site() / package / "RECORD").open(encoding="utf-8", newline="") as file:
                    listed = [(name, size) for name, _, size in csv.reader(file) if size]
                sizes = [one for one in listed if not one[0].startswith("..")]  # scripts may move
                whole = all(
                    (self.site() / name).stat().st_size == int(size) for name, size in sizes
                )
            except (OSError, ValueError):
                whole = False
            found += [] if whole else [package]
        return found

    def keep(self) -> None:
        """Copy it by hard links, whole or not at all. pip replaces files and changes none."""
        shutil.rmtree(self.trash, ignore_errors=True)
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

    def asks(self, question: str) -> bool:
        """Let its own Python run this script; whether the answer is yes."""
        return self.runs("-IS", __file__, str(self.folder), question) is not None


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
    if environment.runs("-m", "pip", "--version") is not None:
        return
    if environment.runs("-m", "ensurepip", "--default-pip") is not None:
        return
    for python in environment.folder.glob("bin/python*"):
        if python.is_symlink():
            python.unlink()  # the Python that it names has gone
    # PATH may have led to the Python of this very environment
    python3 = getattr(sys, "_base_executable", sys.executable)
    print(f"making {environment.folder} with {python3}", flush=True)
    if subprocess.run([python3, "-m", "venv", environment.folder]).returncode:
        fail(f"{environment.folder} cannot be made, see above")


def pip(environment: Environment, lock: int) -> None:
    """Install what is missing, and our own packages."""
    given = environment.runs("-m", "pip", "config", "list") or ""
    places = tuple(f".{name}" for name in ELSEWHERE)
    for setting in given.splitlines():
        if not setting.partition("=")[0].endswith(places):
            continue
        fail(
            f"pip's setting {setting} puts packages elsewhere: take it back with `pip config "
            "unset`, or leave all of them out with PIP_CONFIG_FILE=/dev/null"
        )
    packages = wanted()
    # Nothing is downloaded if only our own packages have changed, or the note on all is missing
    offline = [*PIP, "--no-index", "--no-build-isolation", *PACKAGES]
    if environment.runs("-c", "import setuptools") is None or environment.runs(*offline) is None:
        print(f"installing the versions of constraints.txt into {environment.folder}", flush=True)
        command = [str(environment.python), *PIP, *PACKAGES]
        ended = subprocess.run(
            command, cwd=HERE, pass_fds=[lock], stderr=subprocess.PIPE, text=True
        )
        if ended.returncode:
            lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
            told = [line for line in lines if line.startswith("ERROR: ")] or lines
            reason = told[-1].removeprefix("ERROR: ") if told else f"exit code {ended.returncode}"
            # Of an index that cannot be reached, pip's last line says that a package is not there
            for cause in re.findall(r"connection broken by '(.+)': /", ended.stderr)[-1:]:
                reason += f", after {re.sub('<[^>]*>: ', '', cause)}"
            fail(f"pip could not install the packages of this commit ({reason})")
    if packages != wanted() or not environment.asks("--note"):
        fail("the files that name the packages changed meanwhile: run this again")


def install(environment: Environment) -> None:
    """Bring the environment up to date, or leave it as it was.

    Raises:
        SystemExit: It could not be. Says so in one line.
    """
    with alone() as lock:
        if environment.before.exists() and not environment.asks("--check"):
            environment.restore()
        environment.tidy()
        if environment.asks("--check") or environment.asks("--whole"):
            return
        worked = environment.folder.exists()
        if worked and environment.begun.exists() and not environment.done.exists():
            print(f"{environment.folder} was cut short at first: it is begun anew", flush=True)
            shutil.rmtree(environment.folder)
            worked = False
        try:
            if worked:
                environment.keep()
                environment.done.unlink(missing_ok=True)
                if environment.begun.exists():  # by the Makefile of an older commit
                    environment.asks("--mend")
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
            sys.exit(f"error: {reason.removeprefix('error: ')}")
        environment.tidy()


def main() -> None:
    environment, question = Environment(Path(sys.argv[1])), "".join(sys.argv[2:])
    if question == "--check":
        sys.exit(not environment.is_right() or environment.begun.exists())
    elif question == "--whole":  # after an installation by the Makefile of an older commit
        if not environment.is_right() or environment.broken():
            sys.exit(1)
        environment.begun.unlink(missing_ok=True)
    elif question == "--mend":
        for package in environment.broken():
            shutil.rmtree(environment.site() / package)  # pip installs it again, over what is left
    elif question == "--note":
        environment.note()
    else:
        try:
            install(environment)
        except OSError as error:  # such as a folder that is mounted, and so cannot be renamed
            kept = (
                f"; what it was is in {environment.before}" if environment.before.exists() else ""
            )
            fail(f"{environment.folder} cannot be changed ({error}){kept}")


if __name__ == "__main__":
    main()
