"""``attest``: on how many kinds of machines was each out rebuilt?

    dvc-mlflow verify --statement [--key PRIVATE_KEY]   writes a statement about this machine
    dvc-mlflow attest                                   checks all statements, and counts them

A statement says that one machine computed every out of a commit anew, without any cache, and came
to the bytes in its dvc.lock. An out that a later commit changed is no longer counted. The format is
that of in-toto (Statement v1 with the predicate Link v0.3,
https://github.com/in-toto/attestation). It names the processor, the libraries and the commit, but
no host, path or user. If a key is given, `ssh-keygen` signs it. The signature shows the key.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_mlflow import damage, files, git, history, projects, tables
from dvc_mlflow.commands import output_of
from dvc_mlflow.errors import StageError, one_line

STATEMENTS = Path("reports", "rebuilds")
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/link/v0.3"
COMMAND = ["dvc", "repro", "--force", "--no-run-cache"]
SHOWN = ("AVX", "AVX2", "AVX512F", "SVE")  # the vector extensions by which kinds are told apart
NAMESPACE = "rebuild"  # of the signatures, so that none of another purpose passes for one of these


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
    """The vector extensions that NumPy finds, such as AVX2."""
    from numpy._core import _multiarray_umath  # type: ignore[attr-defined]

    features: dict[str, bool] = _multiarray_umath.__cpu_features__
    return sorted(name for name, there in features.items() if there)


def libraries() -> dict[str, str]:
    """The installed versions of the dependencies of the project, if it is an installed package."""
    try:
        project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = importlib.metadata.requires(project["name"]) or []
    except (OSError, KeyError, importlib.metadata.PackageNotFoundError):
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


def digest(path: Path) -> dict[str, str]:
    """The md5 of dvc.lock, and SHA-256. For a folder, the dirHash of in-toto."""
    if not path.is_dir():
        return {"md5": files.md5(path), "sha256": files.sha256(path.read_bytes())}
    lines = [f"{files.sha256((path / name).read_bytes())}  {name}\n" for name in files.inside(path)]
    return {"md5": files.md5(path), "dirHash": hashlib.sha256("".join(lines).encode()).hexdigest()}


def statement(rebuilt: Path, commit: str, outs: Sequence[str]) -> dict[str, Any]:
    """A statement about ``outs`` in the folder ``rebuilt``, where they were computed anew."""
    constraints = rebuilt.glob("constraints.txt")  # if the project has that file
    sums = [{"sha256": files.sha256(path.read_bytes())} for path in constraints]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": out, "digest": digest(rebuilt / out)} for out in sorted(outs)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "name": "rebuild",
            "command": COMMAND,
            "materials": [
                {"name": "commit", "digest": {"gitCommit": commit}},
                *({"name": "constraints.txt", "digest": found} for found in sums),
            ],
            "environment": environment(),
        },
    }


def write(content: Mapping[str, Any], key: str | None = None) -> Path:
    """Write a statement, and its signature with the private ``key`` beside it.

    Raises:
        StageError: `ssh-keygen` does not sign it. Nothing is written.
    """
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    about = content["predicate"]["environment"]
    kind = about["processor"] or f"emulated {about['architecture']}"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{kind} python{about['python']}".lower()).strip("-")
    path = STATEMENTS / f"{slug}-{files.sha256(text.encode())[:8]}.json"
    signature = sign(text, key) if key else None
    files.write_text(path, text)
    if signature:
        files.write_text(signature_path(path), signature)
    return path


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def sign(text: str, key: str) -> str:
    return output_of(["ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", key], given=text)


def signer(path: Path, text: str) -> str | None:
    """The fingerprint of the key that signed a statement, or None without a signature.

    Raises:
        StageError: The signature is not a signature of this text.
    """
    signature = signature_path(path)
    if not signature.exists():
        return None
    command = ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature)]
    said = output_of(command, given=text)
    found = re.search(r"SHA256:\S+", said)
    if not found:
        raise StageError(f"ssh-keygen names no key: {one_line(said)}")
    return found[0]


# --- all statements ---


@dataclass(frozen=True)
class Rebuild:
    """A statement that is true.

    Attributes:
        outs: The path and the md5 of each out.
    """

    outs: frozenset[tuple[str, str]]
    signer: str | None
    kind: str
    is_emulated: bool

    @property
    def group(self) -> str:
        if self.is_emulated:
            return "emulated"
        return "signed" if self.signer else "unsigned"


def committed(commit: str) -> dict[str, str]:
    """The md5 of each out of the main project in a commit.

    Raises:
        StageError: The commit is not here, or has no dvc.lock.
    """
    return {
        path: md5
        for file in projects.find(commit=git.commit_of(commit))[projects.MAIN]
        for outs in history.outs_of(commit, file.with_name(projects.LOCK)).values()
        for path, md5 in outs.items()
    }


def read(path: Path, outs_of: Callable[[str], Mapping[str, str]] = committed) -> Rebuild:
    """Read a statement, and check its signature and its md5s.

    Args:
        outs_of: Gives the md5 of each out in a commit.

    Raises:
        StageError: It is wrong. Says why.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("is of another type")
        stated = {subject["name"]: subject["digest"]["md5"] for subject in content["subject"]}
        commit = str(content["predicate"]["materials"][0]["digest"]["gitCommit"])
        about = content["predicate"]["environment"]
        emulated = about["emulator"] is not None
        machine = about["emulator"] or about["processor"]
        extensions = [name for name in SHOWN if name in about["vector_extensions"]]
        kind = f"{machine} ({', '.join([about['architecture'], *extensions])})"
        kind += f", Python {about['python']}"
        kind += "".join(
            f", {name} {version}" for name, version in about["libraries"].items() if name == "torch"
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StageError(f"{path} is no statement ({one_line(repr(error))}): remove it") from None
    try:
        key = signer(path, text)
    except StageError as error:
        raise StageError(f"{path} is not what was signed ({error}): remove it") from None
    try:
        locked = outs_of(commit)
    except StageError as error:
        raise StageError(
            f"{path} cannot be checked ({error}): `git fetch --unshallow`, or remove it"
        ) from None
    wrong = [out for out, md5 in stated.items() if locked.get(out) != md5]
    if wrong:
        raise StageError(
            f"{path} does not hold: {wrong[0]} is {stated[wrong[0]]} there and "
            f"{locked.get(wrong[0], 'missing')} in the dvc.lock of commit {commit[:10]}: remove it"
        )
    return Rebuild(frozenset(stated.items()), key, kind, emulated)


def count(rebuilds: Sequence[Rebuild], locked: Mapping[str, str]) -> str:
    """A table with the number of kinds of machines per out. Each counts once per signer.

    Args:
        locked: The md5 of each out in dvc.lock.
    """
    groups = ("signed", "unsigned", "emulated")

    def machines(out: tuple[str, str], group: str) -> str:
        found = [one for one in rebuilds if one.group == group and out in one.outs]
        return str(len({(one.kind, one.signer) for one in found}))

    rows = [[out[0], *(machines(out, group) for group in groups)] for out in locked.items()]
    lines = [tables.text([["out", *groups], *rows]), ""]
    for one in sorted(set(rebuilds), key=lambda one: (groups.index(one.group), one.kind)):
        lines.append(f"{one.group}: {one.kind}" + (f", by {one.signer}" if one.signer else ""))
    return "\n".join(lines)


def report() -> None:
    """Check all statements, and print on how many kinds of machines each out was rebuilt.

    Raises:
        StageError: A statement is wrong, or there is none.
    """
    locked = {path: md5 for (_, path), md5 in damage.locked(Path()).items()}
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
        raise StageError(f"{STATEMENTS} is empty: `dvc-mlflow verify --statement` writes one")
