"""How `dvc-mlflow sync` and `status` grow with the number of stages, on SQLite.

    python -m benchmarks.sync [STAGES ...]

A generated repository has stages that each have a setting, a metrics file and a curve. DVC runs 10
of them. The lock gets the entries of the others in the same form, because `dvc repro` writes the
whole lock after each stage. Then a new process is measured for each command: its time, and its
largest memory.
"""

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = (10, 100, 1000)
RUN = 10  # stages that DVC runs
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
COMMAND = [sys.executable, "-m", "dvc_mlflow"]


def make_repository(folder: Path, stages: int) -> None:
    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    (folder / "make.py").write_text(MAKE, encoding="utf-8")
    (folder / "params.yaml").write_text("rate: 0.5\n", encoding="utf-8")
    declared = DECLARED.format(items=[*range(stages)])
    (folder / "dvc.yaml").write_text(declared, encoding="utf-8")
    run("dvc", "repro", "--quiet", *(f"stage@{number}" for number in range(RUN)))
    run(sys.executable, "make.py", *map(str, range(RUN, stages)))
    lock = folder / "dvc.lock"
    entry = lock.read_text(encoding="utf-8").partition("  stage@1:\n")[2].partition("  stage@")[0]
    known = _hashes(folder, 1)
    with lock.open("a", encoding="utf-8") as file:
        for number in range(RUN, stages):
            text = entry.replace(" 1\n", f" {number}\n").replace("-1.", f"-{number}.")
            for old, new in zip(known, _hashes(folder, number), strict=True):
                text = text.replace(old, new)
            file.write(f"  stage@{number}:\n{text}")
    run("dvc", "status", "--quiet")  # which fails if an entry is wrong


def _hashes(folder: Path, number: int) -> list[str]:
    """The sizes and md5s in the lock of a stage."""
    names = (f"metrics-{number}.json", f"curve-{number}.csv")
    contents = [(folder / name).read_bytes() for name in names]
    return [
        f"{hashlib.md5(content).hexdigest()}\n      size: {len(content)}" for content in contents
    ]


def measured(folder: Path, *arguments: str) -> tuple[float, float]:
    """The seconds and the megabytes that a command takes."""
    started = time.perf_counter()
    subprocess.run([*COMMAND, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    # The largest of all children so far, so each size is measured in a process of its own
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def child(stages: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_repository(folder, stages)
        first, second, status = (measured(folder, name) for name in ("sync", "sync", "status"))
    times = " | ".join(f"{seconds:.1f}" for seconds, _ in (first, second, status))
    print(f"| {stages} | {times} | {max(memory for _, memory in (first, second, status)):.0f} |")


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]))
        return
    print("| stages | first sync s | second sync s | status s | most memory MB |", flush=True)
    print("|--:|--:|--:|--:|--:|", flush=True)
    for stages in map(int, sys.argv[1:] or STAGES):
        command = [sys.executable, "-m", "benchmarks.sync", "child", str(stages)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
