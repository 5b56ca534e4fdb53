"""``attest``: on how many kinds of machines was each out rebuilt?

    dvc-guard verify --statement     writes a statement about this machine
    dvc-guard attest                 compares all statements with their commits, and counts them

A statement says that one machine computed every out of a commit anew, without any cache, and came
to the md5s in its dvc.lock. An out that a later commit changed is no longer counted. The format is
that of in-toto (Statement v1 with the predicate Link v0.3,
https://github.com/in-toto/attestation). It names the processor, the libraries and the commit, but
no host, path or user. Nobody signs it: who may commit a statement is trusted.
"""

import functools
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dvc_guard import damage
from dvc_kit import files
from dvc_kit.commands import shown, visible
from dvc_kit.errors import StageError, one_line
from dvc_mlflow import git, history, projects, rerun
from dvc_mlflow.result import made_by
from dvc_mlflow.results import Project

STATEMENTS = Path("reports", "rebuilds")
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/link/v0.3"
# The vector extensions by which kinds are told apart, and NumPy's groups that have them
SHOWN = {"AVX": "X86_V3", "AVX2": "X86_V3", "AVX512F": "X86_V4", "SVE": "SVE"}


# --- this machine ---


def processor() -> str:
    """The name of the processor, or its architecture if it has no name."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    part = re.search(r"^CPU part\s*: (.+)$", text, re.MULTILINE)
    if name:
        return name[1].strip()
    return f"{platform.machine()} part {part[1].strip()}" if part else platform.machine()


def emulator() -> str | None:
    """The program that emulates the processor for this process, such as qemu-x86_64.

    Under QEMU, /proc/self/exe is the emulated program, and /proc/thread-self/exe is QEMU.
    """
    try:
        program = Path("/proc/thread-self/exe").readlink().name
    except OSError:
        return None
    return program if program.startswith("qemu-") else None


def vector_extensions() -> list[str]:
    """The groups of vector extensions that NumPy finds, such as X86_V3, which has AVX2."""
    import numpy as np

    groups = np.show_config(mode="dicts")["SIMD Extensions"]
    return sorted([*groups["baseline"], *groups["found"]])


def libraries() -> dict[str, str]:
    """The installed versions of the dependencies of the project, if it is an installed package."""
    try:
        project = files.read_tree(Path("pyproject.toml"))["project"]
        lines = importlib.metadata.requires(project["name"]) or []
    except (StageError, KeyError, importlib.metadata.PackageNotFoundError):
        return {}
    names = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    return {name: importlib.metadata.version(name) for name in names}


def environment() -> dict[str, Any]:
    return {
        "architecture": platform.machine(),
        # An emulated processor may show the name of the host's processor
        "processor": None if emulator() else processor(),
        "emulator": emulator(),
        "vector_extensions": vector_extensions(),
        "python": platform.python_version(),
        "libraries": libraries(),
    }


# --- statements ---


def write(commit: str, outs: Mapping[str, str]) -> Path:
    """Write a statement that this machine computed these outs, by path with their md5s."""
    about = environment()
    content = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": out, "digest": {"md5": md5}} for out, md5 in sorted(outs.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "name": "rebuild",
            "command": rerun.COMMAND,
            "materials": [{"name": "commit", "digest": {"gitCommit": commit}}],
            "environment": about,
        },
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    kind = about["processor"] or f"emulated {about['architecture']}"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{kind} python{about['python']}".lower()).strip("-")
    path = STATEMENTS / f"{slug}-{files.sha256(text.encode())[:8]}.json"
    files.write_text(path, text)
    return path


@dataclass(frozen=True)
class Rebuild:
    """A statement that agrees with its commit."""

    outs: frozenset[tuple[str, str]]  # the path and the md5 of each
    kind: str  # of machine
    is_emulated: bool


def read(path: Path) -> Rebuild:
    """Read a statement, and compare it with the commit that it names.

    Raises:
        StageError: It is no statement, or says of an out what the commit does not.
    """
    cure = f"`{shown(['rm', '--', str(path)])}`"
    try:
        content = files.parse_json(files.read_text(path), path)
        if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("is of another type")
        stated = {str(one["name"]): str(one["digest"]["md5"]) for one in content["subject"]}
        predicate = content["predicate"]
        materials = {one["name"]: one["digest"] for one in predicate["materials"]}
        commit, about = str(materials["commit"]["gitCommit"]), predicate["environment"]
        kind = _kind(about)
    except (StageError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = one_line(str(error) or repr(error))
        raise StageError(f"{visible(str(path))} is no statement ({reason}): {cure}") from None
    try:
        locked = committed(commit)
    except StageError as error:
        raise StageError(
            f"{visible(str(path))} cannot be checked ({error}): `git fetch --unshallow`, or {cure}"
        ) from None
    for out, md5 in stated.items():
        if locked.get(out) != md5:
            raise StageError(
                f"{visible(str(path))} does not hold: {visible(out)} is {visible(md5)} there and "
                f"{locked.get(out, 'missing')} in commit {commit[:10]}: {cure}"
            )
    return Rebuild(frozenset(stated.items()), visible(kind), about["emulator"] is not None)


def _kind(about: Mapping[str, Any]) -> str:
    told = {*about["vector_extensions"]}
    extensions = [name for name, group in SHOWN.items() if name in told or group in told]
    machine = about["emulator"] or about["processor"]
    kind = f"{machine} ({', '.join([about['architecture'], *extensions])})"
    torch = about["libraries"].get("torch")
    return f"{kind}, Python {about['python']}" + (f", torch {torch}" if torch else "")


@functools.cache
def committed(commit: str) -> dict[str, str]:
    """The md5 of each out of the main project in a commit.

    Raises:
        StageError: The commit is not here, or has no project.
    """
    if git.commit_of(commit) != commit:
        raise StageError(f"{visible(commit)} is not the full hash of a commit")
    declared = projects.find(commit=commit).get(projects.MAIN, [])
    with history.repo_of(projects.MAIN, commit) as repo:
        return made_by(Project(projects.MAIN, declared, repo).locked().values())


# --- all statements ---


def count(rebuilds: Sequence[Rebuild], locked: Mapping[str, str]) -> str:
    """A table with the number of kinds of machines per out.

    Args:
        locked: The md5 of each out in dvc.lock.
    """
    groups = {"machines": False, "emulated": True}

    def machines(out: tuple[str, str], emulated: bool) -> int:
        of_group = [each for each in rebuilds if each.is_emulated == emulated]
        return len({each.kind for each in of_group if out in each.outs})

    rows = [
        [visible(out[0]), *(machines(out, group) for group in groups.values())]
        for out in locked.items()
    ]
    kinds = {(each.is_emulated, each.kind) for each in rebuilds}
    lines = [f"{'emulated: ' if emulated else ''}{kind}" for emulated, kind in sorted(kinds)]
    table = tabulate([["out", *groups], *rows], "firstrow", "plain", disable_numparse=True)
    return "\n".join([table, "", *lines])


def report() -> None:
    """Check all statements, and print on how many kinds of machines each out was rebuilt.

    Raises:
        StageError: A statement is wrong, or there is none.
    """
    locked = {path: md5 for (_, path), md5 in damage.locked().items()}
    rebuilds, wrong = [], []
    for path in sorted(STATEMENTS.glob("*.json")):
        try:
            rebuilds.append(read(path))
        except StageError as error:
            wrong.append(str(error))
    print(count(rebuilds, locked))
    if wrong:
        raise StageError("\nerror: ".join(wrong))
    if not rebuilds:
        raise StageError(f"{STATEMENTS} is empty: `dvc-guard verify --statement` writes one")
