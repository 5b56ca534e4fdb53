"""How `dvc-mlflow sync` and `status` grow with the number of stages and commits, on SQLite.

    python -m benchmarks.sync [STAGES ...]
    python -m benchmarks.sync history STAGES COMMITS

Each commit of a history changes one stage.

A generated repository has stages that each have a setting, a metrics file and a curve. DVC runs one
of them. The lock gets the entries of the others in the same form, because `dvc repro` writes the
whole lock after each stage.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

from benchmarks import run
from stages.show.tables import table

STAGES = (10, 100, 1000)
MAKE = """
import json, sys
for name in sys.argv[1:]:
    json.dump({"score": int(name) / 7}, open(f"metrics-{name}.json", "w"))
    with open(f"curve-{name}.csv", "w") as file:
        file.write("step,loss\\n")
        file.writelines(f"{step},{1 / (step + 1)}\\n" for step in range(20))
"""
DECLARED = """
stages:
  stage:
    foreach: {items}
    do:
      cmd: python make.py ${{item}}
      params: [rate]
      metrics: ["metrics-${{item}}.json": {{cache: false}}]
      plots: ["curve-${{item}}.csv": {{cache: false, x: step}}]
"""


def hashes(folder: Path, number: int) -> list[str]:
    """The md5s and sizes in the lock of a stage."""
    contents = [
        (folder / name).read_bytes() for name in (f"metrics-{number}.json", f"curve-{number}.csv")
    ]
    return [
        f"{hashlib.md5(content).hexdigest()}\n      size: {len(content)}" for content in contents
    ]


def make_repository(folder: Path, stages: int) -> None:
    run("git", "init", "--quiet", cwd=folder)
    run("dvc", "init", "--quiet", cwd=folder)
    (folder / "make.py").write_text(MAKE, encoding="utf-8")
    (folder / "params.yaml").write_text("rate: 0.5\n", encoding="utf-8")
    declared = DECLARED.format(items=[*range(stages)])
    (folder / "dvc.yaml").write_text(declared, encoding="utf-8")
    run("dvc", "repro", "--quiet", "stage@0", cwd=folder)
    run(sys.executable, "make.py", *map(str, range(1, stages)), cwd=folder)
    lock = folder / "dvc.lock"
    entry = lock.read_text(encoding="utf-8").partition("  stage@0:\n")[2]
    with lock.open("a", encoding="utf-8") as file:
        for number in range(1, stages):
            text = entry.replace(" 0\n", f" {number}\n").replace("-0.", f"-{number}.")
            for old, new in zip(hashes(folder, 0), hashes(folder, number), strict=True):
                text = text.replace(old, new)
            file.write(f"  stage@{number}:\n{text}")
    run("dvc", "status", "--quiet", cwd=folder)  # which fails if an entry is wrong


def make_history(folder: Path, stages: int, commits: int) -> None:
    """Commit a repository, and then further results of one stage each."""
    make_repository(folder, stages)
    commit = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-am")
    run("git", "add", "--all", cwd=folder)
    run(*commit, "first", cwd=folder)
    lock = folder / "dvc.lock"
    for number in range(1, commits):
        stage = number % stages
        before, metrics = hashes(folder, stage), folder / f"metrics-{stage}.json"
        metrics.write_text(f'{{"score": {number + 0.5}}}', encoding="utf-8")
        text = lock.read_text(encoding="utf-8")
        head, name, rest = text.partition(f"  stage@{stage}:\n")
        for old, new in zip(before, hashes(folder, stage), strict=True):
            rest = rest.replace(old, new, 1)
        lock.write_text(head + name + rest, encoding="utf-8")
        run(*commit, str(number), cwd=folder)


def of_history(stages: int, commits: int) -> str:
    """`sync --all`, twice."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        make_history(Path(scratch), stages, commits)
        for name in ("first", "second"):
            ran = run(sys.executable, "-m", "dvc_mlflow", "sync", "--all", cwd=Path(scratch))
            sizes = [f"{ran.seconds:.1f}", f"{ran.cpu:.1f}", f"{ran.peak_mb:.0f}"]
            rows.append([str(stages), str(commits), name, *sizes])
    header = "stages | commits | sync --all | s | CPU s | most memory MB"
    return table(header, "rrlrrr", rows)


def measure(*numbers: int) -> str:
    rows = []
    for stages in numbers or STAGES:
        with tempfile.TemporaryDirectory() as scratch:
            make_repository(Path(scratch), stages)
            commands = [["-m", "dvc_mlflow", name] for name in ("sync", "sync", "status")]
            ran = [run(sys.executable, *command, cwd=Path(scratch)) for command in commands]
        peak = max(command.peak_mb for command in ran)
        rows.append([str(stages), *(f"{command.seconds:.1f}" for command in ran), f"{peak:.0f}"])
    header = "stages | first sync s | second sync s | status s | most memory MB"
    return table(header, "rrrrr", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["history"]:
        print(of_history(*map(int, sys.argv[2:])))
    else:
        print(measure(*map(int, sys.argv[1:])))
