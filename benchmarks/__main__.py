"""All benchmarks, one report: ``python -m benchmarks`` writes reports/benchmarks.md."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks import ROOT, epoch, pipeline, scale, steps

TITLES = {
    epoch: "An epoch, and what it is compared with",
    steps: "What made it faster",
    pipeline: "Each stage",
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


def main() -> None:
    parts = ["# Benchmarks\n", f"By `make bench` on: {machine()}.\n"]
    for module, title in TITLES.items():
        parts += [f"## {title}\n", module.measure()]
    report = "\n".join(parts)
    (ROOT / "reports" / "benchmarks.md").write_text(report, encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
