"""On which machines was each out rebuilt? ``make attest``

    make verify ATTEST=yes [KEY=path/to/private_key]   writes a statement of this machine
    make attest                                      checks all statements, and counts

A statement says that one machine computed every out anew, without any cache, and came to the bytes
that dvc.lock holds. Its format is in-toto's (Statement v1 with the predicate Link v0.3,
https://github.com/in-toto/attestation). It names the processor, the libraries and the commit, and
no host, path or user. `ssh-keygen` signs it where a key is given; the signature shows the key.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import damage, files, tables
from stages.errors import StageError, main_function, one_line

STATEMENTS = files.REPORTS / "rebuilds"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/link/v0.3"
COMMAND = ["dvc", "repro", "--force", "--no-run-cache"]
SHOWN = ("AVX", "AVX2", "AVX512F", "SVE")  # the vector extensions by which kinds are told apart
NAMESPACE = "rebuild"  # of the signatures, so that none of another purpose passes for one of these


# --- what a machine says of itself ---


def processor() -> str:
    """The name that the processor gives itself, or its architecture where it gives none."""
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
    """The program that emulates this processor for this process, such as qemu-x86_64.

    QEMU shows the emulated program under /proc/self/exe, and itself under the thread's.
    """
    try:
        program = Path("/proc/thread-self/exe").readlink().name
    except OSError:
        return None
    return program if program.startswith("qemu-") else None


def vector_extensions() -> list[str]:
    """Those that NumPy finds and could use, such as AVX2."""
    from numpy._core import _multiarray_umath  # type: ignore[attr-defined]

    features: dict[str, bool] = _multiarray_umath.__cpu_features__
    return sorted(name for name, there in features.items() if there)


def libraries() -> dict[str, str]:
    """The installed versions of what pyproject.toml says computes the results."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [line.split("==")[0] for line in project["dependencies"]]
    return {name: importlib.metadata.version(name) for name in names}


def environment() -> dict[str, Any]:
    return {
        "architecture": platform.machine(),
        # An emulated processor has no name of its own: the one it shows may be that of the host
        "processor": None if emulator() else processor(),
        "emulator": emulator(),
        "vector_extensions": vector_extensions(),
        "python": platform.python_version(),
        "libraries": libraries(),
    }


# --- statements ---


def digest(path: Path) -> dict[str, str]:
    """The md5 of dvc.lock, and SHA-256; of a folder, in-toto's dirHash over its files."""
    if not path.is_dir():
        return {"md5": files.md5(path), "sha256": files.sha256(path.read_bytes())}
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    lines = [f"{files.sha256((path / name).read_bytes())}  {name}\n" for name in names]
    return {"md5": files.md5(path), "dirHash": hashlib.sha256("".join(lines).encode()).hexdigest()}


def statement(rebuilt: Path, commit: str, outs: Sequence[str]) -> dict[str, Any]:
    """What is said of ``outs`` in the folder ``rebuilt``, where they were computed anew."""
    constraints = files.sha256(Path(rebuilt, "constraints.txt").read_bytes())
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": out, "digest": digest(rebuilt / out)} for out in sorted(outs)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "name": "rebuild",
            "command": COMMAND,
            "materials": [
                {"name": "commit", "digest": {"gitCommit": commit}},
                {"name": "constraints.txt", "digest": {"sha256": constraints}},
            ],
            "environment": environment(),
        },
    }


def write(content: Mapping[str, Any], key: str | None = None) -> Path:
    """Write a statement, and its signature with the private ``key`` beside it.

    Raises:
        StageError: `ssh-keygen` does not sign; says why in its own words. Nothing is written.
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


def ssh_keygen(arguments: Sequence[str], text: str) -> str:
    try:
        result = subprocess.run(
            ["ssh-keygen", *arguments], input=text, capture_output=True, text=True, encoding="utf-8"
        )
    except OSError as error:
        raise StageError(
            f"ssh-keygen cannot be started ({error.strerror}): install OpenSSH"
        ) from None
    if result.returncode:
        raise StageError(f"ssh-keygen: {one_line(result.stderr or result.stdout)}")
    return result.stdout


def sign(text: str, key: str) -> str:
    return ssh_keygen(["-Y", "sign", "-q", "-n", NAMESPACE, "-f", key], text)


def signer(path: Path, text: str) -> str | None:
    """The fingerprint of the key that signed a statement; None if nobody did.

    Raises:
        StageError: The signature is not one of this text.
    """
    signature = signature_path(path)
    if not signature.exists():
        return None
    command = ["-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature)]
    said = ssh_keygen(command, text)
    found = re.search(r"SHA256:\S+", said)
    if not found:
        raise StageError(f"ssh-keygen names no key: {one_line(said)}")
    return found[0]


# --- what all of them say together ---


@dataclass(frozen=True)
class Rebuild:
    """One statement that holds."""

    outs: frozenset[str]
    signer: str | None
    kind: str
    is_emulated: bool

    @property
    def group(self) -> str:
        if self.is_emulated:
            return "emulated"
        return "signed" if self.signer else "unsigned"


def read(path: Path, locked: Mapping[str, str]) -> Rebuild:
    """A statement, checked against its signature and ``locked``, the md5 of each out in dvc.lock.

    Raises:
        StageError: It does not hold; says why.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("is of another type")
        stated = {subject["name"]: subject["digest"]["md5"] for subject in content["subject"]}
        about = content["predicate"]["environment"]
        emulated = about["emulator"] is not None
        machine = about["emulator"] or about["processor"]
        extensions = [name for name in SHOWN if name in about["vector_extensions"]]
        kind = f"{machine} ({', '.join([about['architecture'], *extensions])})"
        kind += f", Python {about['python']}, torch {about['libraries']['torch']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{path} is no statement ({one_line(repr(error))}): remove it") from None
    try:
        key = signer(path, text)
    except StageError as error:
        raise StageError(f"{path} is not what was signed ({error}): remove it") from None
    wrong = [out for out, md5 in stated.items() if locked.get(out) != md5]
    if wrong:
        raise StageError(
            f"{path} does not hold: {wrong[0]} is {stated[wrong[0]]} there and "
            f"{locked.get(wrong[0], 'missing')} in dvc.lock: remove it, or `make verify ATTEST=yes`"
        )
    return Rebuild(frozenset(stated), key, kind, emulated)


def count(rebuilds: Sequence[Rebuild], outs: Sequence[str]) -> str:
    """A table: on how many machines each out was rebuilt. The same kind counts once per signer."""
    groups = ("signed", "unsigned", "emulated")

    def machines(out: str, group: str) -> str:
        found = [one for one in rebuilds if one.group == group and out in one.outs]
        return str(len({(one.kind, one.signer) for one in found}))

    rows = [[out, *(machines(out, group) for group in groups)] for out in outs]
    lines = [tables.table(" | ".join(["out", *groups]), "lrrr", rows), ""]
    for one in sorted(set(rebuilds), key=lambda one: (groups.index(one.group), one.kind)):
        lines.append(f"{one.group}: {one.kind}" + (f", by {one.signer}" if one.signer else ""))
    return "\n".join(lines)


@main_function
def main() -> None:
    locked = {path: md5 for (_, path), md5 in damage.locked(Path()).items()}
    rebuilds, wrong = [], []
    for path in sorted(STATEMENTS.glob("*.json")):
        try:
            rebuilds.append(read(path, locked))
        except StageError as error:
            wrong.append(str(error))
    print(count(rebuilds, list(locked)))
    if wrong:
        raise StageError("\nerror: ".join(wrong))
    if not rebuilds:
        raise StageError(f"{STATEMENTS} holds no statement: `make verify ATTEST=yes` writes one")


if __name__ == "__main__":
    main()
