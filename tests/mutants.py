"""Whether the tests notice mistakes: ``make mutants``.

    .venv/bin/python tests/mutants.py [TEXT]    only those whose file or old code has TEXT in it

tests/mutants.json holds mistakes that people make, each a text of one file and what stands in its
place. Each is made alone, in a copy of the project, and the test file that should notice it runs
there. A mistake that changes no behaviour is marked `equivalent`, with the reason; it is not run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).parents[1]
AT_ONCE = 2
COPIED = shutil.ignore_patterns(
    ".git", ".venv", "cache", "tmp", "mlflow.db*", "mlartifacts", "dvc_plots"
)  # fmt: skip

Mutant = dict[str, Any]


def copy_of_the_project(scratch: str) -> Path:
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "project"
    shutil.copytree(ROOT, folder, ignore=COPIED)
    return folder


def is_noticed(mutant: Mutant, folder: Path) -> bool:
    """Whether a test fails with the mistake made in this copy, which is then as it was."""
    path = folder / mutant["file"]
    right = path.read_text(encoding="utf-8")
    if mutant["old"] not in right:
        sys.exit(f"error: {mutant['file']} no longer has {mutant['old']!r}: bring the mutant along")
    path.write_text(right.replace(mutant["old"], mutant["new"], 1), encoding="utf-8")
    options = [
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        f"--basetemp={folder}/../tmp",
    ]
    try:
        result = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", *options, mutant["tests"]],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder), "MIRROR": "off"},
            capture_output=True,
        )
    finally:
        path.write_text(right, encoding="utf-8")
    return result.returncode != 0


def main(wanted: str = "") -> None:
    mutants: list[Mutant] = json.loads((ROOT / "tests/mutants.json").read_text(encoding="utf-8"))
    mutants = [
        mutant
        for mutant in mutants
        if "equivalent" not in mutant and wanted in mutant["file"] + mutant["old"]
    ]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        free: SimpleQueue[Path] = SimpleQueue()
        for _ in range(AT_ONCE):
            free.put(copy_of_the_project(scratch))
        whole = {"file": "README.md", "old": "", "new": ""}
        for tests in sorted({mutant["tests"] for mutant in mutants}):
            if is_noticed(whole | {"tests": tests}, folder := free.get()):
                sys.exit(f"error: {tests} fails without any mistake")
            free.put(folder)

        def judge(mutant: Mutant) -> bool:
            folder = free.get()
            try:
                noticed = is_noticed(mutant, folder)
            finally:
                free.put(folder)
            if not noticed:
                print(f"not noticed: {mutant['file']}: {mutant['old']!r} -> {mutant['new']!r}")
            return noticed

        with ThreadPoolExecutor(AT_ONCE) as pool:
            noticed = sum(pool.map(judge, mutants))
    minutes = (time.monotonic() - started) / 60
    print(f"{noticed} of {len(mutants)} mistakes noticed, in {minutes:.0f} minutes")
    sys.exit(noticed < 0.9 * len(mutants))


if __name__ == "__main__":
    main(*sys.argv[1:])
