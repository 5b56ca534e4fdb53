"""What the coordinator of the study costs, in seconds of the processor: 110 and 1,010 cells.

    .venv/bin/python -m benchmarks.engine [SEEDS]

In a scratch clone of the last commit, study/cell.py is a script that trains nothing: it gives the
cell of the first seed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import ROOT, run
from stages.show.tables import table

SEEDS = (5, 50)  # of ten recipes and two models, and ten cells for the temperature
TRAINS_NOTHING = """
import shutil, sys
recipe, model, seed = sys.argv[1:]
first = seed if seed == "validation" else 0
shutil.copy(f"first/{recipe}-{model}-{first}.json", f"study/cells/{recipe}-{model}-{seed}.json")
"""
COORDINATE = """
import atexit, runpy, time
atexit.register(lambda: print(time.process_time()))
runpy.run_module("study.engine", run_name="__main__")
"""


def coordinated(folder: Path, seeds: int) -> list[str]:
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    shutil.copytree(ROOT / "data/prepared", folder / "data/prepared")
    path = folder / "study/params.yaml"
    text = path.read_text(encoding="utf-8")
    wanted = rf"\g<1> {[*range(seeds)]}"
    path.write_text(re.sub(r"^(seeds:|ablation_seeds:).*", wanted, text, flags=re.M), "utf-8")
    (folder / "study/cells").rename(folder / "first")
    (folder / "study/cells").mkdir()
    (folder / "study/cell.py").write_text(TRAINS_NOTHING, encoding="utf-8")
    ran = run(sys.executable, "-c", COORDINATE, env={"PYTHONPATH": str(folder)}, cwd=folder)
    seconds, cells = float(ran.output.split()[-1]), len([*(folder / "study/cells").iterdir()])
    return [f"{cells:,}", f"{seconds:.1f}", f"{1000 * seconds / cells:.0f}"]


def measure(*numbers: int) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        rows = [coordinated(Path(scratch) / str(seeds), seeds) for seeds in numbers or SEEDS]
    return table("cells | seconds | ms a cell", "rrr", rows)


if __name__ == "__main__":
    print(measure(*map(int, sys.argv[1:])))
