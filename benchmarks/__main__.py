"""All benchmarks, one report: ``python -m benchmarks`` writes reports/benchmarks.md.

python -m benchmarks scale    runs this again and leaves the other section as it is
"""

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from benchmarks import ROOT

TITLES = {
    "epoch": "An epoch, and what it is compared with",
    "training": "An earlier commit",
    "scale": "More data",
}


def machine() -> str:
    """The processor, its cores and memory, and the versions that compute."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(line for line in info.splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model.split(': ')[1]}, {os.cpu_count()} processors, {memory:.0f} GiB of memory, "
        f"{platform.system()}, Python {platform.python_version()}, torch {version('torch')}, "
        "no GPU used"
    )


def main(names: list[str]) -> None:
    path = ROOT / "reports" / "benchmarks.md"
    known = path.read_text(encoding="utf-8") if names else ""
    parts = ["# Benchmarks\n\nBy `make bench`.\n"]
    for name, title in TITLES.items():
        if names and name not in names:
            section = known.split(f"\n## {title}\n\n")[1].split("\n## ")[0]
        else:
            section = f"On {machine()}:\n\n{import_module(f'benchmarks.{name}').measure()}"
        parts.append(f"## {title}\n\n{section}")
    path.write_text("\n".join(parts), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
