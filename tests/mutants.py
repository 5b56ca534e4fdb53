"""Whether the tests notice mistakes: ``make mutants``.

    .venv/bin/python tests/mutants.py [TEXT]    only the mutants that have TEXT in file or code

A mutant is the project with one mistake in it. Some mistakes are those that people make: they are
written down in tests/mutants.json. The others are drawn: first a line that computes, or that writes
to MLflow, then one of the changes that `changes` knows for it.

Each mutant meets the quick tests that reach its line; if it survives those, the other quick ones of
its file, and then a slow one. No test that compares with committed results takes part. A survivor
needs a reason in mutants.json: `equivalent` where no behaviour changes, `accepted` where no test is
worth it.
"""

import ast
import contextlib
import copy
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).parents[1]
SEED, DRAWN = 0, 80
AT_ONCE = 2
PATIENCE = 600  # seconds; a mutant that runs for longer is noticed by whoever waits for it
COPIED = shutil.ignore_patterns(
    ".git", ".venv", "cache", "tmp", "mlflow.db*", "mlartifacts", "dvc_plots", "__pycache__"
)  # fmt: skip
HOUSES = ("dvc_mlflow", "stages", "study")
NOT_DRAWN = {
    "dvc_mlflow/alone.py",
    "dvc_mlflow/errors.py",
    "dvc_mlflow/verify.py",
    "stages/__init__.py",
}  # work on other processes, whose lines nobody sees here
COMPARE_WITH_COMMITTED = [
    f"tests/study/test_comparison.py::test_the_{name}"
    for name in (
        "committed_study_was_made_by_this_code_with_these_settings",
        "report_comes_out_of_the_committed_cells_bit_for_bit",
    )
]
# The slow test of a survivor, by its file
LIVE = "tests/dvc_mlflow/test_live.py"


def slow_test(file: str) -> str:
    """Nothing where no slow test runs this file."""
    if file.endswith(".md") or file.startswith(("stages/show/", "study/comparison")):
        return ""
    if file == "Makefile":
        return "tests/test_faults.py::test_make_repro_mends_first_and_a_failed_sync_costs_nothing"
    if file in ("stages/serve.py", "stages/hooks.py"):
        return f"{LIVE}::test_the_champion_passes_the_gate_and_answers_images_over_http"
    if file in ("study/engine.py", "study/missing.py", "study/places.py", "study/worker.py"):
        return "tests/study/test_engine.py::test_all_cores_of_this_machine_give_the_bytes_of_one"
    if file == "dvc_mlflow/install.py":
        return "tests/dvc_mlflow/test_install.py"
    if file.startswith("dvc_mlflow/"):
        return f"{LIVE}::test_commits_lead_to_their_runs_and_back"
    return "tests/test_pipeline.py"


@dataclass(frozen=True)
class Mutant:
    file: str
    old: str  # the whole lines that change
    new: str
    first: int  # of those lines, from 1
    after: str  # the whole file with the mistake
    equivalent: str = ""  # why it is no mistake
    accepted: str = ""  # why no test is worth it

    @property
    def lines(self) -> range:
        return range(self.first, self.first + self.old.count("\n") + 1)

    def __str__(self) -> str:
        return f"{self.file}:{self.first}\n  - {self.old.strip()}\n  + {self.new.strip()}"


# --- mutants: written down, and drawn ---


def mutant(file: str, start: int, end: int, replacement: str, **reasons: str) -> Mutant:
    """A file's characters from ``start`` to ``end`` replaced."""
    text = (ROOT / file).read_text(encoding="utf-8")
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", end)
    old, new = text[first:last], text[first:start] + replacement + text[end:last]
    after = text[:start] + replacement + text[end:]
    return Mutant(file, old, new, text.count("\n", 0, first) + 1, after, **reasons)


def written_down() -> Iterator[Mutant]:
    entries: list[dict[str, Any]] = json.loads((ROOT / "tests/mutants.json").read_text("utf-8"))
    for entry in entries:
        text = (ROOT / entry["file"]).read_text(encoding="utf-8")
        start = text.find(entry["old"])
        if start < 0:
            sys.exit(f"error: {entry['file']} no longer has {entry['old']!r}: change the mutant")
        reasons = {name: entry[name] for name in ("equivalent", "accepted") if name in entry}
        yield mutant(entry["file"], start, start + len(entry["old"]), entry["new"], **reasons)


OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one mistake in it, for each mistake that is known for its kind."""
    new: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=[op]) if type(op) in OTHER:
            new.ops = [OTHER[type(op)]()]
            yield new
        case ast.BinOp(op=ast.Div(), right=ast.Constant(value=str())):
            pass  # a path
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OTHER:
            new.op = OTHER[type(op)]()
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Return(value=ast.expr()):
            new.value = None
            yield new
        case ast.Call(args=[first, second], keywords=[]):
            new.args = [second, first]
            yield new
    match node:
        case ast.IfExp(test=test):
            new = copy.deepcopy(node)
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
        case ast.Call(keywords=[*keywords]):
            for at, keyword in enumerate(keywords):
                if keyword.arg != "encoding":  # which is UTF-8 wherever the tests run
                    new = copy.deepcopy(node)
                    del new.keywords[at]
                    yield new


SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


def sites(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below whose change is one of behaviour: no wording, annotation or default."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, SKIPPED):
                yield child
                yield from sites(child)


def drawn() -> Iterator[Mutant]:
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for path in sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if file in NOT_DRAWN:
            continue
        text = path.read_text(encoding="utf-8")
        starts = [0]
        for line in text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for node in sites(ast.parse(text)):
            for change in changes(node):
                # Columns are counted in bytes, and so have to be those of ASCII
                assert isinstance(node, ast.expr | ast.stmt)
                assert node.end_lineno is not None and node.end_col_offset is not None
                start = starts[node.lineno - 1] + node.col_offset
                end = starts[node.end_lineno - 1] + node.end_col_offset
                code = ast.unparse(ast.fix_missing_locations(change))
                code = f"({code})" if isinstance(node, ast.expr) else code
                found = mutant(file, start, end, code)
                by_line.setdefault((file, node.lineno), []).append(found)
    generator = random.Random(SEED)
    for line in sorted(generator.sample(sorted(by_line), DRAWN)):
        yield generator.choice(by_line[line])


# --- which tests reach which lines ---


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """A clone runs other processes, whose lines nobody sees here: those tests count as slow."""
    if os.environ.get("REACH"):
        items[:] = [item for item in items if not {"clone", "small_run"} & {*item.fixturenames}]


def pytest_runtest_setup(item: Any) -> None:
    if os.environ.get("REACH"):
        import coverage

        current = coverage.Coverage.current()
        assert current
        current.switch_context(item.nodeid.split("[")[0])


def pytest_runtest_logreport(report: Any) -> None:
    if os.environ.get("REACH"):
        with Path(os.environ["REACH"]).open("a", encoding="utf-8") as file:
            file.write(f"{report.duration} {report.nodeid.split('[')[0]}\n")


class Reach:
    """The quick tests that reach a line, as one run of all of them under coverage saw them."""

    def __init__(self, folder: Path) -> None:
        import coverage

        durations = folder.parent / "durations.txt"
        if code := exit_code(folder, ["-m", "not slow"], durations):
            sys.exit(f"error: without any mistake, the tests end with exit code {code}")
        data = coverage.CoverageData(str(folder / ".coverage"))
        data.read()
        self.contexts: dict[str, dict[int, list[str]]] = {
            Path(file).relative_to(folder).as_posix(): data.contexts_by_lineno(file)
            for file in data.measured_files()
        }
        self.seconds: Counter[str] = Counter()
        for line in durations.read_text(encoding="utf-8").splitlines():
            seconds, test = line.split(" ", 1)
            self.seconds[test] += float(seconds)

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that reach its lines."""
        if mutant.file.endswith(".md"):
            return ["tests/test_readme.py"]
        lines = self.contexts.get(mutant.file, {})
        return self.quickest_first(test for line in mutant.lines for test in lines.get(line, []))

    def others(self, mutant: Mutant) -> list[str]:
        """The other ones of their files, or of all files that reach the module where none does.

        What a fixture computes for many tests, the first of them alone is seen to reach.
        """
        reaching = self.tests(mutant) or self.quickest_first(
            itertools.chain(*self.contexts.get(mutant.file, {}).values())
        )
        files = {test.split("::")[0] for test in reaching}
        found = {test for test in self.seconds if test.split("::")[0] in files}
        return self.quickest_first(found - {*self.tests(mutant)})

    def quickest_first(self, tests: Iterable[str]) -> list[str]:
        return sorted({*tests} - {"", *COMPARE_WITH_COMMITTED}, key=lambda test: self.seconds[test])


# --- one mutant against its tests ---

# Imported once; each run of tests is a fork of the process that has them
FORKS = multiprocessing.get_context("forkserver")
LIBRARIES = ["numpy", "scipy.stats", "scipy.ndimage", "torch", "sklearn.metrics", "mlflow"]
LIBRARIES += ["matplotlib.pyplot", "safetensors.torch", "pydantic", "hypothesis", "pytest"]

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--basetemp=../tmp", "-m", ""]


def copy_of_the_project(scratch: str) -> Path:
    """With git, which tells the tests that clone it which files there are."""
    folder = Path(tempfile.mkdtemp(dir=scratch)).resolve() / "project"
    shutil.copytree(ROOT, folder, ignore=COPIED)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}", "MIRROR": "off"}


def work(folder: Path, tests: list[str], durations: Path | None) -> NoReturn:
    """Run tests of this copy, in a process that has imported the libraries and nothing of ours.

    Args:
        durations: Where to write how long each test takes; the lines that it reaches are kept, too.
    """
    import coverage
    import pytest

    os.setsid()
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(folder), str(folder / "tests")]
    for name in [*sys.modules]:  # mlflow has loaded our plugin, from where there is no mistake
        if name.split(".")[0] in HOUSES:
            del sys.modules[name]
    os.environ |= environment(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if not durations:
        os._exit(pytest.main([*OPTIONS, *tests]))
    os.environ["REACH"] = str(durations)
    watched = coverage.Coverage(source=[*HOUSES])
    with watched.collect():
        code = pytest.main([*OPTIONS, "-p", "mutants", *tests])
    watched.save()
    os._exit(code)


def exit_code(folder: Path, tests: list[str], durations: Path | None = None) -> int | None:
    """pytest's; None if it did not end."""
    process = FORKS.Process(target=work, args=(folder, tests, durations))
    process.start()
    process.join(PATIENCE)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    end_what_runs_in(folder.parent)
    return code


def end_what_runs_in(folder: Path) -> None:
    """A mutant of the mirror may run for ever, in a session of its own."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()


def fails(mutant: Mutant, folder: Path, tests: list[str]) -> bool:
    """Whether one of the tests fails with the mistake made in this copy, which is then undone."""
    if not tests:
        return False
    path = folder / mutant.file
    right = path.read_text(encoding="utf-8")
    path.write_text(mutant.after, encoding="utf-8")
    try:
        code = exit_code(folder, tests)
    finally:
        path.write_text(right, encoding="utf-8")
    return code != 0


def main(wanted: str = "") -> None:
    import stages  # noqa: F401  (sets what has to be set before the libraries are imported)

    FORKS.set_forkserver_preload(LIBRARIES)
    started = time.monotonic()
    # A mutant that is written down as well is taken from there, with its reason
    found = {(one.file, one.after): one for one in [*drawn(), *written_down()]}
    chosen = [one for one in found.values() if wanted in f"{one.file} {one.old}"]
    mutants = [one for one in chosen if not one.equivalent]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        free: SimpleQueue[Path] = SimpleQueue()
        for _ in range(AT_ONCE):
            free.put(copy_of_the_project(scratch))
        reach = Reach(folder := free.get())
        free.put(folder)

        @functools.cache
        def passes(slow: str) -> bool:
            """Whether a slow test passes where there is no mistake."""
            if code := exit_code(folder := free.get(), [slow]):
                print(f"error: without any mistake, {slow} ends with exit code {code}", flush=True)
            free.put(folder)
            return code == 0

        def survives(one: Mutant) -> bool:
            slow = "" if one.accepted else slow_test(one.file)
            folder = free.get()
            try:
                noticed = fails(one, folder, reach.tests(one)) or fails(
                    one, folder, reach.others(one)
                )
                noticed_late = not noticed and bool(slow) and fails(one, folder, [slow])
            finally:
                free.put(folder)
            noticed = noticed or (noticed_late and passes(slow))
            if not noticed:
                print(f"not noticed: {one}\n  {one.accepted or 'NO REASON IS KNOWN'}", flush=True)
            return not noticed

        with ThreadPoolExecutor(AT_ONCE) as pool:
            survivors = list(itertools.compress(mutants, pool.map(survives, mutants)))
    noticed = len(mutants) - len(survivors)
    print(
        f"{noticed} of {len(mutants)} mistakes noticed, in {minutes_since(started)} minutes; "
        f"{len(chosen) - len(mutants)} more change no behaviour and were not tried"
    )
    sys.exit(not all(one.accepted for one in survivors) or noticed < 0.9 * len(mutants))


def minutes_since(moment: float) -> int:
    return round((time.monotonic() - moment) / 60)


if __name__ == "__main__":
    main(*sys.argv[1:])
