"""All benchmarks, one report: ``python -m benchmarks`` writes reports/benchmarks.md.

python -m benchmarks busy scale    runs these again and leaves the other sections as they are
"""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks import ROOT, busy, epoch, pipeline, scale, steps

TITLES = {
    epoch: "An epoch, and what it is compared with",
    steps: "What made it faster",
    pipeline: "Each stage",
    busy: "On a busy machine",
    scale: "More data",
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
    parts = [f"# Benchmarks\n\nBy `make bench` on: {machine()}.\n"]
    for module, title in TITLES.items():
        if names and module.__name__.removeprefix("benchmarks.") not in names:
            kept = known.split(f"\n## {title}\n\n")[1].split("\n## ")[0]
            parts.append(f"## {title}\n\n{kept}")
        else:
            parts.append(f"## {title}\n\n{module.measure()}")
    report = "\n".join(parts)
    path.write_text(report, encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main(sys.argv[1:])
