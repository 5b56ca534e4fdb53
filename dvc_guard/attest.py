"""``attest``: on how many kinds of machines was each out rebuilt?

    dvc-guard verify --statement [--key PRIVATE_KEY]   writes a statement about this machine
    dvc-guard attest [--signers FILE]                  checks all statements, and counts them

A statement says that one machine computed every out of a commit anew, without any cache, and came
to the bytes in its dvc.lock. An out that a later commit changed is no longer counted. The format is
that of in-toto (Statement v1 with the predicate Link v0.3,
https://github.com/in-toto/attestation). It names the processor, the libraries and the commit, but
no host, path or user. If a key is given, `ssh-keygen` signs it. Whose key that is says a file of
allowed signers, `reports/rebuilds/allowed_signers` or FILE. Without such a file, everybody who
makes a key is a signer.
"""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dvc_guard import damage
from dvc_guard.statements import (
    COMMAND,
    CONSTRAINTS,
    NAMESPACE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Rebuild,
    digest,
    read,
    signature_path,
)
from dvc_kit import files
from dvc_kit.commands import at, output_of, visible
from dvc_kit.errors import InputError, StageError

STATEMENTS = Path("reports", "rebuilds")
ALLOWED = "allowed_signers"  # the file beside the statements


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


def statement(rebuilt: Path, commit: str, outs: Sequence[str]) -> dict[str, Any]:
    """A statement about ``outs`` in the folder ``rebuilt``, where they were computed anew."""
    constraints = rebuilt.glob(CONSTRAINTS)  # if the project has that file
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
                *({"name": CONSTRAINTS, "digest": sha256} for sha256 in sums),
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


def sign(text: str, key: str) -> str:
    return output_of(["ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", key], given=text)


# --- all statements ---


def count(rebuilds: Sequence[Rebuild], locked: Mapping[str, str]) -> str:
    """A table with the number of kinds of machines per out. Each counts once per signer.

    Args:
        locked: The md5 of each out in dvc.lock.
    """
    groups = ("signed", "unsigned", "emulated")

    def machines(out: tuple[str, str], group: str) -> str:
        of_group = [rebuild for rebuild in rebuilds if rebuild.group == group]
        return str(len({(each.kind, each.signer) for each in of_group if out in each.outs}))

    rows = [
        [visible(out[0]), *(machines(out, group) for group in groups)] for out in locked.items()
    ]
    lines = [tabulate([["out", *groups], *rows], "firstrow", "plain", disable_numparse=True), ""]
    for each in sorted(set(rebuilds), key=lambda each: (groups.index(each.group), each.kind)):
        by = f", by {each.signer}" if each.signer else ""
        lines.append(f"{each.group}: {each.kind}{by}{each.note}")
    return "\n".join(lines)


def report(signers: str | None = None) -> None:
    """Check all statements, and print on how many kinds of machines each out was rebuilt.

    Args:
        signers: A file of allowed signers; by default the one beside the statements.

    Raises:
        InputError: There is no such file.
        StageError: A statement is wrong, or there is none.
    """
    allowed = at(signers) if signers else STATEMENTS / ALLOWED
    if signers and not allowed.is_file():
        raise InputError(f"the signers are {visible(signers)}, expected a file of allowed signers")
    locked = {path: md5 for (_, path), md5 in damage.locked(Path()).items()}
    rebuilds, wrong = [], []
    for path in sorted(STATEMENTS.glob("*.json")):
        try:
            rebuilds.append(read(path, allowed if allowed.is_file() else None))
        except StageError as error:
            wrong.append(str(error))
    print(count(rebuilds, locked))
    if allowed.is_file():
        print(f"the keys were checked against {visible(str(allowed))}")
    else:
        print(f"no key was checked against anybody: there is no {STATEMENTS / ALLOWED}")
    every = {out for rebuild in rebuilds for out in rebuild.unseen}
    unseen = every & locked.items()
    if unseen:
        print(
            "not counted where only the md5 could be checked, because the bytes are not here: "
            f"{', '.join(sorted(visible(path) for path, _ in unseen))} (`dvc pull` brings them)"
        )
    if wrong:
        raise StageError("\nerror: ".join(wrong))
    if not rebuilds:
        raise StageError(f"{STATEMENTS} is empty: `dvc-guard verify --statement` writes one")
