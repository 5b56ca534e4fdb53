"""How long things take, compared with other ways in the same run: `make bench`.

Each measurement is a process of its own, because libraries read their settings when imported.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}


def run(*command: str, env: Mapping[str, str] | None = None) -> tuple[str, float]:
    """The output of a command that runs in the main folder, and the seconds that it takes."""
    started = time.perf_counter()
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT | (env or {}), stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {result.returncode}")
    return result.stdout, time.perf_counter() - started


def child(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """The output of ``python -m benchmarks.MODULE child ARGUMENTS``."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "child", *arguments]
    return run(*command, env=env)[0]
