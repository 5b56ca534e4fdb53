"""What a statement about a rebuild says, and whether that is so. See attest.py.

A statement is the file of a stranger. It is read strictly: every text in it may be printed, each
hash is compared with the bytes of the commit, and nothing is in it twice.
"""

import contextlib
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_kit import files
from dvc_kit.commands import output_of, shown, visible
from dvc_kit.errors import StageError, one_line
from dvc_mlflow import git, history, projects

CONSTRAINTS = "constraints.txt"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/link/v0.3"
COMMAND = ["dvc", "repro", "--force", "--no-run-cache"]
NAMESPACE = "rebuild"  # of the signatures, so that none of another purpose passes for one of these
LARGEST_SIGNATURE = 2**16  # bytes
# The vector extensions by which kinds are told apart, and NumPy's groups that have them
SHOWN = {"AVX": "X86_V3", "AVX2": "X86_V3", "AVX512F": "X86_V4", "SVE": "SVE"}


def digest(path: Path) -> dict[str, str]:
    """The md5 of dvc.lock, and SHA-256. For a folder, the dirHash of in-toto."""
    if not path.is_dir():
        return {"md5": files.md5(path), "sha256": files.sha256(path.read_bytes())}
    lines = [f"{files.sha256((path / name).read_bytes())}  {name}\n" for name in files.inside(path)]
    return {"md5": files.md5(path), "dirHash": hashlib.sha256("".join(lines).encode()).hexdigest()}


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def signer(path: Path, text: str, allowed: Path | None = None) -> str | None:
    """Who signed a statement: a key, or its owner by a file of allowed signers. None without a
    signature, or if the file does not have the key.

    Args:
        allowed: As in ALLOWED SIGNERS of `man ssh-keygen`.

    Raises:
        StageError: The signature is not a signature of this text.
    """
    signature = str(signature_path(path))
    if not Path(signature).exists():
        return None
    if Path(signature).stat().st_size > LARGEST_SIGNATURE:
        raise StageError(f"the signature has more than {LARGEST_SIGNATURE} bytes")
    ssh = ["ssh-keygen", "-Y"]
    said = output_of([*ssh, "check-novalidate", "-n", NAMESPACE, "-s", signature], given=text)
    found = re.search(r"SHA256:\S+", said)
    if not found:
        raise StageError(f"ssh-keygen names no key: {one_line(said)}")
    if not allowed:
        return found[0]
    with contextlib.suppress(StageError):  # the key is not there, or no longer valid
        names = output_of([*ssh, "find-principals", "-s", signature, "-f", str(allowed)])
        for name in re.split(r"[,\n]", names.strip()):
            with contextlib.suppress(StageError):
                whose = ["-f", str(allowed), "-I", name, "-n", NAMESPACE, "-s", signature]
                output_of([*ssh, "verify", *whose], given=text)
                return visible(name)
    return None


@dataclass(frozen=True)
class Rebuild:
    """A statement that is true.

    Attributes:
        outs: The path and the md5 of each out whose bytes are here.
        unseen: Those whose bytes are not, so that only the md5 could be checked.
    """

    outs: frozenset[tuple[str, str]]
    signer: str | None
    kind: str
    is_emulated: bool
    unseen: frozenset[tuple[str, str]] = frozenset()
    note: str = ""

    @property
    def group(self) -> str:
        if self.is_emulated:
            return "emulated"
        return "signed" if self.signer else "unsigned"


@functools.cache
def committed(commit: str) -> dict[str, str]:
    """The md5 of each out of the main project in a commit.

    Raises:
        StageError: The commit is not here, or has no dvc.lock.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) or git.commit_of(commit) != commit:
        raise StageError(f"{visible(commit)} is not the full hash of a commit")
    try:
        return {
            path: md5
            for file in projects.find(commit=commit)[projects.MAIN]
            for outs in history.outs_of(commit, file.with_name(projects.LOCK)).values()
            for path, md5 in outs.items()
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise StageError(f"its dvc.lock cannot be read: {one_line(repr(error))}") from None


@functools.cache
def digests(commit: str) -> dict[str, dict[str, str]]:
    """The digest of each out of a commit whose bytes are here, in DVC's cache or in git."""
    from dvc_mlflow.content import Content
    from dvc_mlflow.results import Project

    project = Project(projects.MAIN, projects.find()[projects.MAIN])
    outs = [out for out in committed(commit) if not {"/", ".."}.intersection(Path(out).parts)]
    with Content(project, committed(commit), commit).laid(outs) as missing:
        return {out: digest(Path(out)) for out in outs if out not in missing}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("it has a key twice")
    return dict(pairs)


def _strings(tree: Any) -> Iterator[str]:
    """All strings in a tree, with the keys."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for item in [*tree, *tree.values()] if isinstance(tree, dict) else tree:
            yield from _strings(item)


def parse(path: Path, text: str) -> tuple[dict[str, dict[str, str]], str, str, str, bool]:
    """The digests, the commit, the SHA-256 of constraints.txt, the kind of machine, and whether it
    was emulated, of the text of a statement.

    Raises:
        StageError: It is no statement.
    """
    try:
        files.parse_json(text, path)  # neither too large nor too deep
        content = json.loads(text, object_pairs_hook=_unique)
        if strange := [one for one in _strings(content) if not one.isprintable()]:
            raise ValueError(f"a text has a control character: {strange[0][:50]!r}")
        if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("is of another type")
        stated = {subject["name"]: dict(subject["digest"]) for subject in content["subject"]}
        if len(stated) != len(content["subject"]) or not stated:
            raise ValueError("has a subject twice, or none")
        for out, hashes in stated.items():
            kinds = {"md5", "dirHash" if str(hashes["md5"]).endswith(".dir") else "sha256"}
            if hashes.keys() != kinds:
                raise ValueError(f"{out} has {sorted(hashes)}, expected {sorted(kinds)}")
        materials = _unique(
            [(one["name"], one["digest"]) for one in content["predicate"]["materials"]]
        )
        commit = str(materials.pop("commit")["gitCommit"])
        constraints = str(materials.pop(CONSTRAINTS, {"sha256": ""})["sha256"])
        if materials:
            raise ValueError(f"has the material {next(iter(materials))}")
        if (command := content["predicate"]["command"]) != COMMAND:
            raise ValueError(f"is about the command {command}, expected {COMMAND}")
        about = content["predicate"]["environment"]
        emulated = about["emulator"] is not None
        machine = str(about["emulator"] if emulated else about["processor"])
        versions = [about["architecture"], about["python"], *about["libraries"].values()]
        # Free texts could look like more than they are where they are printed, such as `SHA256:...`
        if not re.fullmatch(r"[^:]{1,200}", machine):
            raise ValueError(f"the processor is called {machine[:50]!r}")
        if not all(re.fullmatch(r"[\w.+-]{1,50}", version) for version in versions):
            raise ValueError("its environment has a text where a version belongs")
        if not isinstance(about["vector_extensions"], list):
            raise ValueError("its vector_extensions are no list")
        told = about["vector_extensions"]
        extensions = [name for name, group in SHOWN.items() if name in told or group in told]
        kind = f"{machine} ({', '.join([about['architecture'], *extensions])})"
        kind += f", Python {about['python']}"
        if "torch" in about["libraries"]:
            kind += f", torch {about['libraries']['torch']}"
    except (StageError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StageError(
            f"{_name(path)} is no statement ({one_line(str(error) or repr(error))}): {_rm(path)}"
        ) from None
    return stated, commit, constraints, kind, emulated


def read(path: Path, allowed: Path | None = None) -> Rebuild:
    """Read a statement, and check its signature and everything that it says of the commit.

    Args:
        allowed: A file of allowed signers.

    Raises:
        StageError: It is wrong. Says why.
    """
    text = files.read_text(path)
    stated, commit, constraints, kind, emulated = parse(path, text)
    try:
        key = signer(path, text, allowed)
    except StageError as error:
        if not shutil.which("ssh-keygen"):
            raise
        raise StageError(f"{_name(path)} is not what was signed ({error}): {_rm(path)}") from None
    try:
        locked, known = committed(commit), digests(commit)
    except StageError as error:
        raise StageError(
            f"{_name(path)} cannot be checked ({error}): `git fetch --unshallow`, or {_rm(path)}"
        ) from None

    def wrong(what: str, there: str, here: str) -> StageError:
        return StageError(
            f"{_name(path)} does not hold: {what} is {there} there and {here} in commit "
            f"{commit[:10]}: {_rm(path)}"
        )

    for out, hashes in stated.items():
        if locked.get(out) != hashes["md5"]:
            raise wrong(out, hashes["md5"], locked.get(out, "missing"))
        for algorithm, value in hashes.items() if out in known else ():
            if known[out][algorithm] != value:
                raise wrong(f"the {algorithm} of {out}", str(value), known[out][algorithm])
    if constraints:
        blob = git.content("cat-file", "blob", f"{commit}:./{CONSTRAINTS}")
        found = "missing" if blob is None else files.sha256(blob)
        if found != constraints:
            raise wrong(CONSTRAINTS, constraints, found)
    stated_md5s = frozenset((out, hashes["md5"]) for out, hashes in stated.items())
    seen = frozenset(pair for pair in stated_md5s if pair[0] in known)
    note = ""
    if key is None and signature_path(path).exists():
        note = ", signed by a key that is not allowed"
    return Rebuild(seen, key, kind, emulated, stated_md5s - seen, note)


def _name(path: Path) -> str:
    return visible(str(path))


def _rm(path: Path) -> str:
    return f"`{shown(['rm', '--', str(path)])}`"
