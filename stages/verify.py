"""Does this machine compute what is committed? ``python -m stages.verify [attest [KEY]]``

Looks for damage that DVC does not look for in what is stored here and in the remote. Then clones
the last commit into a scratch folder, runs the whole pipeline there without any cache, and compares
every out with dvc.lock, and with the file that lies here. With `attest` it also writes a statement
that this machine came to the same bytes (stages/attest.py).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages import attest, damage, files, preflight, results
from stages.errors import InputError, StageError, main_function, one_line
from stages.params import MODEL_NAMES


@dataclass(frozen=True)
class Out:
    """One out, by its md5 in the committed dvc.lock, computed anew, and in this folder."""

    stage: str
    path: str
    committed: str
    computed: str
    here: str | None  # None: not in this folder, as in a clone before `dvc pull`

    @property
    def verdict(self) -> str:
        if self.computed != self.committed:
            return "DIFFERS"
        if self.here not in (None, self.committed):
            return "the file here differs"
        return "same"


def run(command: Sequence[str], folder: Path) -> str:
    """The output of a command.

    Raises:
        StageError: It fails; says why in its own words.
    """
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, encoding="utf-8"
        )
    except OSError as error:
        raise StageError(
            f"{command[0]} cannot be started ({error.strerror}): is it installed?"
        ) from None
    if result.returncode != 0:
        reason = one_line(result.stderr) or f"exit code {result.returncode}"
        raise StageError(f"`{' '.join(command)}`: {reason}")
    return result.stdout


def reproduce(scratch: Path) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Clone the last commit to ``scratch`` and run it; the committed and the computed md5s."""
    run(["git", "clone", "--quiet", "--no-hardlinks", ".", str(scratch)], Path())
    committed = damage.locked(scratch)
    if files.DATA_RAW.is_dir():  # they are checked like downloaded ones
        shutil.copytree(files.DATA_RAW, scratch / files.DATA_RAW)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # No stage is skipped because its outs lie there, and none is restored from a cache
    process = subprocess.Popen(
        [sys.executable, "-m", *attest.COMMAND],
        cwd=scratch,
        env=os.environ | {"PATH": path, "MIRROR": "off"},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    assert process.stdout
    try:
        for line in process.stdout:
            if line.startswith("Running stage"):
                print(line.strip(), flush=True)
    except BaseException:  # Ctrl-C, or nobody reads this any more
        os.killpg(process.pid, signal.SIGKILL)  # what it is about to start, too
        process.wait()
        raise
    if process.wait() != 0:
        raise StageError("`dvc repro` failed in the scratch clone, see above")
    return committed, damage.locked(scratch)


def here(path: str) -> str | None:
    return files.md5(Path(path)) if Path(path).exists() else None


def table(outs: Sequence[Out]) -> str:
    """A row an out."""
    rows = [("out", "dvc.lock", "computed", "")]
    rows += [(out.path, out.committed, out.computed, out.verdict) for out in outs]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
        for row in rows
    )


def origin(scratch: Path, differing: Sequence[str]) -> str:
    """Where the computation in ``scratch`` first parts from the committed one.

    Args:
        differing: The paths of the outs that are not the committed ones, in the pipeline's order.
    """
    if files.DATA_PREPARED.as_posix() in differing:
        return "it begins with the data"
    for model in MODEL_NAMES:
        path = files.training_path(model).as_posix()
        committed = fingerprints(run(["git", "show", f"HEAD:{path}"], scratch))
        computed = fingerprints((scratch / path).read_text(encoding="utf-8"))
        for moment in [*committed, *computed]:
            if committed.get(moment) != computed.get(moment):
                return f"it begins with the weights of {model}: {moment}"
    return "all weights agree, to the last epoch's: only what is made of them differs"


def fingerprints(text: str) -> dict[str, str]:
    return files.read_fingerprints(json.loads(text)["weights"])


def dirty_files() -> str:
    """The files that differ from the last commit.

    Raises:
        StageError: git gives no commit of this folder.
    """
    if not preflight.is_in_git():
        raise StageError(
            "the last commit is verified, and this is no git repository: `git init && git add . && "
            "git commit -m copied` first"
        )
    run(["git", "cat-file", "-e", f"HEAD:./{results.LOCK}"], Path())
    return run(["git", "status", "--porcelain"], Path()).strip()


def key_of(arguments: Sequence[str]) -> str | None:
    """The private key that signs the statement, if one is given.

    Raises:
        InputError: The arguments are not those of this command, or there is no such key.
    """
    match arguments:
        case [] | ["attest"]:
            return None
        case ["attest", key] if Path(key).expanduser().is_file():
            return str(Path(key).expanduser())
        case ["attest", key]:
            raise InputError(f"KEY is {key}, expected the file of a private key of OpenSSH")
    raise InputError(f"expected `attest` and a key, or nothing, found {' '.join(arguments)}")


@main_function
def main() -> None:
    key = key_of(sys.argv[1:])
    dirty = dirty_files()
    stored = damage.in_stores(damage.locked(Path()))
    for found in stored:
        print(found)
    if dirty:
        print("note: the last commit is verified; what is changed since is not\n" + dirty)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        scratch = Path(folder) / "clone"
        committed, computed = reproduce(scratch)
        outs = [
            Out(stage, path, md5, computed.get((stage, path), "missing"), here(path))
            for (stage, path), md5 in committed.items()
        ]
        print(table(outs))
        wrong = [out for out in outs if out.verdict == "DIFFERS"]
        damaged = [out for out in outs if out.verdict == "the file here differs"]
        for out in damaged:
            print(
                f"{out.path} in this folder is not the committed one (stage {out.stage}): "
                f"`{damage.cure(out.stage, out.path)}`"
            )
        if wrong:
            print(origin(scratch, [out.path for out in wrong]))
        elif sys.argv[1:]:
            commit = run(["git", "rev-parse", "HEAD"], scratch).strip()
            content = attest.statement(scratch, commit, [out.path for out in outs])
            print(f"wrote {attest.write(content, key)}")
    if wrong or damaged:
        raise StageError(f"{len(wrong) + len(damaged)} of {len(outs)} outs differ")
    if stored:
        raise StageError(f"{len(stored)} stored objects are damaged, see above")
    print(f"all {len(outs)} outs are the committed ones, to the bit")


if __name__ == "__main__":
    main()
