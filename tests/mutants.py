"""Plant the mistakes of tests/mutants.json, one at a time, and print those that no test notices.

    .venv/bin/python tests/mutants.py [--sample N] [--seed S] [--reach FILE] [TEXT]

TEXT: only mistakes with it in their file or code. FILE keeps which tests reach which lines; without
it, all quick tests run under coverage first. A mistake meets the quick tests that reach its lines,
then all quick tests of the files that reach its module, then slow tests, but none that compares
the source with a lock. An entry may say why nobody has to notice it: `equivalent` or `accepted`.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import coverage
import psutil

ROOT = Path(__file__).parents[1]
AT_ONCE = 2
PATIENCE = 600  # seconds; a mistake that makes tests run for longer is noticed by whoever waits
NOT_COPIED = ("cache", "tmp", "mlflow.db*", "mlartifacts", "mutants", ".git", ".venv*", ".*_cache")
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp=../tmp"]
OF_SOURCE = "committed_study_was_made_by_this_code"  # fails for any change of the source
# The slow tests of a mistake, by the beginning of its file; the first that fits
SLOW = {
    "docs/": [],
    "Makefile": ["tests/test_faults.py", "-k", "make_repro_mends_first"],
    "dvc_guard/": ["tests/dvc_guard", "tests/test_faults.py"],
    "dvc_mlflow/": ["tests/dvc_mlflow/test_live.py", "tests/dvc_mlflow/test_store.py"],
    "stages/serve": ["tests/dvc_mlflow/test_live.py"],
    "study/": ["tests/study"],
    "": ["tests/test_pipeline.py"],
}


def copy_of_the_project(scratch: Path) -> Path:
    """With git, which tells the tests that clone it which files there are."""
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "project"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    (folder / ".venv").symlink_to(sys.prefix)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def run(folder: Path, *command: str) -> int | None:
    """The exit code of a command of Python's in this copy; None if it does not end."""
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}", "MIRROR": "off"}
    env = os.environ | paths | {"PYTHONDONTWRITEBYTECODE": "1"}
    unseen = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen((sys.executable, *command), cwd=folder, env=env, **unseen)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(None if "coverage" in command else PATIENCE)
    code = process.poll()
    for other in psutil.process_iter():  # a mirror with a mistake in it may run for ever
        with contextlib.suppress(psutil.Error):
            if Path(other.cwd()).is_relative_to(folder.parent):
                other.kill()
    process.wait()
    return code


def tests_fail(folder: Path, tests: list[str], *options: str) -> bool:
    """Whether one of these tests fails or hangs. No test at all (pytest's 5) notices nothing."""
    command = ["-m", "pytest", *OPTIONS, "-k", f"not ({OF_SOURCE})", *options, *tests]
    return bool(tests) and run(folder, *command) not in (0, 5)


def reach(kept: Path, folder: Path) -> coverage.CoverageData:
    """Which quick tests reach a line, as one run of all of them under coverage saw it."""
    if not kept.exists():
        (folder / ".coveragerc").write_text(
            "[run]\ndynamic_context = test_function\nrelative_files = true\n"
            f"source = dvc_guard,dvc_kit,dvc_mlflow,stages,study\ndata_file = {kept}\n"
        )
        run(folder, "-m", "coverage", "run", "-m", "pytest", *OPTIONS[1:])
    data = coverage.CoverageData(str(kept))
    data.read()
    return data


def tests_of(data: coverage.CoverageData, file: str, lines: Iterable[int]) -> list[str]:
    """As pytest names them. A context is `test_files.test_it`, or empty in a fixture."""
    if file.endswith(".md"):
        return ["tests/test_readme.py"]
    contexts = data.contexts_by_lineno(file)
    names = {name for line in lines for name in contexts.get(line, [])}
    parts = [name.split(".")[-2:] for name in names if name.startswith("test_")]
    paths = {path.stem: path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/*.py")}
    return sorted(f"{paths[module]}::{test}" for module, test in parts)


def noticed(entry: dict[str, str], folder: Path, data: coverage.CoverageData) -> bool:
    file, old, new = entry["file"], entry["old"], entry["new"]
    path = folder / file
    right = path.read_text(encoding="utf-8")
    first = right.count("\n", 0, right.index(old)) + 1
    lines = range(first, first + old.rstrip("\n").count("\n") + 1)
    reaching = tests_of(data, file, data.contexts_by_lineno(file))
    everywhere = sorted({test.split("::")[0] for test in reaching})
    slow = [*next(tests for start, tests in SLOW.items() if file.startswith(start))]
    path.write_text(right.replace(old, new, 1), encoding="utf-8")
    try:
        if tests_fail(folder, tests_of(data, file, lines)) or tests_fail(folder, everywhere):
            return True
        late = tests_fail(folder, slow, "-m", "slow and not weekly")
    finally:
        path.write_text(right, encoding="utf-8")
    return late and not tests_fail(folder, slow, "-m", "slow and not weekly")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="")
    for option, kind in {"--sample": int, "--seed": int, "--reach": Path}.items():
        parser.add_argument(option, type=kind)
    given = parser.parse_args()
    entries = json.loads((ROOT / "tests/mutants.json").read_text(encoding="utf-8"))
    entries = [entry for entry in entries if "equivalent" not in entry]
    chosen = [entry for entry in entries if given.text in entry["file"] + entry["old"]]
    chosen = random.Random(given.seed or 0).sample(chosen, given.sample or len(chosen))
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        scratch = Path(name).resolve()
        free = [copy_of_the_project(scratch) for _ in range(AT_ONCE)]
        data = reach((given.reach or scratch / "reach").resolve(), free[0])

        def survives(entry: dict[str, str]) -> bool:
            folder = free.pop()
            seen = noticed(entry, folder, data)
            free.append(folder)
            if not seen:
                print(f"not noticed: {json.dumps(entry, ensure_ascii=False)}", flush=True)
            return not seen and "accepted" not in entry

        with ThreadPoolExecutor(AT_ONCE) as pool:
            survivors = sum(pool.map(survives, chosen))
    print(f"{len(chosen) - survivors} of {len(chosen)} mistakes noticed or accepted")
    sys.exit(survivors > 0.03 * len(chosen))


if __name__ == "__main__":
    main()
