"""The engine of the study: what the coordinator costs, and how well it uses two workers.

    .venv/bin/python -m benchmarks.engine [SEEDS]    the coordinator's share: 110 and 1,010 cells
    .venv/bin/python -m benchmarks.engine fast       20 `fast` cells, on all cores (ten minutes)

The coordinator's share is measured in a scratch clone, with workers of Dask that train nothing:
they answer with the cell of the first seed. It is in seconds of the processor, with Dask's
scheduler. The ideal time for the `fast` cells is the sum of their own times divided by the number
of workers.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import ENVIRONMENT, ROOT
from stages.base import numerics
from stages.show.tables import table

SCRATCH = "engine-"
SEEDS = (5, 50)  # of ten recipes and two models, and ten cells for the temperature


def clone(folder: Path, settings: dict[str, str]) -> None:
    """The last commit, with this folder's images, and with other lines in study/params.yaml."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    shutil.copytree(ROOT / "data/prepared", folder / "data/prepared")
    path = folder / "study/params.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in settings.items():
        text = re.sub(rf"^{key}:.*\n(- .*\n|  .*\n)*", f"{key}: {value}\n", text, flags=re.M)
    path.write_text(text, encoding="utf-8")


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """The reply of a worker that trains nothing: the cell of the first seed."""
    from distributed import get_worker

    from study.worker import Reply

    name = re.sub(r"-\d+\.json$", "-0.json", Path(order["path"]).name)
    content = Path("cells", name).read_bytes()
    at, md5 = get_worker().address, hashlib.md5(content).hexdigest()
    return asdict(Reply(order["stage"], "none", at, 1.0, content, md5))


def share() -> None:
    """In a clone: print the seconds of the processor in each step of the coordinator."""
    from distributed import Client, LocalCluster

    from study import engine, missing, places

    if not ROOT.parent.name.startswith(SCRATCH):
        sys.exit("error: this removes study/dvc.lock, so it runs in a scratch clone only")
    Path("study/cells").rename("cells")
    Path("study/dvc.lock").unlink()
    missing.JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    places.TASK = places.TASK.replace("study.worker').worker", "benchmarks.engine').engine")
    started = time.process_time()
    with missing.opened() as repo:
        cells = missing.stale(repo)
    look = time.process_time() - started
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        client = Client(cluster)
        place = places.Place("benchmark", client.get_executor(pure=False), client)
        started = time.process_time()
        engine.Computation(cells, place, audit=0).run()
        ask = time.process_time() - started
    started = time.process_time()
    with missing.opened() as repo:
        missing.take_over(repo, missing.stale(repo))
    print("share", len(cells), look, ask, time.process_time() - started)


def measure(*numbers: int) -> str:
    rows = []
    for seeds in numbers or SEEDS:
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            folder = Path(scratch) / "clone"
            clone(folder, {"seeds": str([*range(seeds)])})
            output = subprocess.run(
                [sys.executable, "-m", "benchmarks.engine", "child"],
                cwd=folder,
                env=ENVIRONMENT | {"PYTHONPATH": str(folder)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        [line] = [line for line in output.splitlines() if line.startswith("share")]
        count, *parts = map(float, line.split()[1:])
        seconds = [f"{part:.1f}" for part in parts]
        rows.append([f"{count:,.0f}", *seconds, f"{1000 * sum(parts) / count:.0f}"])
        print(*rows[-1], file=sys.stderr)
    header = "cells | to see what is missing, s | to ask and keep, s | to take over, s | ms a cell"
    return table(header, "rrrrr", rows)


def fast() -> str:
    """20 cells, each core one at a time."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
        folder = Path(scratch) / "clone"
        settings = {"seeds": str([*range(10)]), "recipes": "[fast]", "ablations": "[]"}
        clone(folder, settings | {"differences": "[]"})
        for path in folder.glob("study/cells/*.json"):
            if "validation" not in path.name:
                path.unlink()
        started = time.perf_counter()
        output = subprocess.run(
            [sys.executable, "-m", "study.engine"],
            cwd=folder,
            env=ENVIRONMENT | {"PYTHONPATH": str(folder), "MIRROR": "off"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        wall = time.perf_counter() - started
    seconds = [float(found) for found in re.findall(r" in (\d+) s", output)]
    cores = numerics.cores()
    ideal = sum(seconds) / cores
    return (
        f"{len(seconds)} cells on {cores} cores: {wall:.0f} s, ideal {ideal:.0f} s, "
        f"{wall / ideal:.2f} times"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        share()
    elif sys.argv[1:] == ["fast"]:
        print(fast())
    else:
        print(measure(*map(int, sys.argv[1:])))
