"""How long things take, measured against what they are compared with in one run: `make bench`.

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
    """What a command run in the project's folder prints, and the seconds it takes."""
    started = time.perf_counter()
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT | (env or {}), stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {result.returncode}")
    return result.stdout, time.perf_counter() - started


def child(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What ``python -m benchmarks.MODULE child ARGUMENTS`` prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "child", *arguments]
    return run(*command, env=env)[0]
