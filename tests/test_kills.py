"""Killed again and again, at moments spread over the whole pipeline: the bytes are the same.

KILLS and INTERRUPTS in the environment are how many there are of each.
"""

import os
import random
import shutil
import signal
import time

import pytest

from conftest import Clone, weekly

COUNT = {
    signal.SIGKILL: int(os.environ.get("KILLS", "30")),
    signal.SIGINT: int(os.environ.get("INTERRUPTS", "10")),
}
RESULTS = ("dvc.lock", ".dvc/cache", ".dvc/tmp/stages", "models", "reports", "data/prepared")


def forget(clone: Clone) -> None:
    """As in a fresh clone, nothing has been run."""
    for name in RESULTS:
        path = clone.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    clone.run("git", "checkout", "--", "dvc.lock", "models", "reports", "data")


def stopped(clone: Clone, sent: signal.Signals, moment: float) -> bool:
    """Run the pipeline, stop it after ``moment`` seconds; whether it still ran then."""
    process = clone.start("dvc", "repro")
    time.sleep(moment)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, sent)
    _, errors = process.communicate()
    if sent == signal.SIGINT:
        # An interpreter that is just starting, and `dvc` itself, show one of their own
        assert "/stages/" not in errors and "/dvc_mlflow/" not in errors
    return running


# In parts, which a machine can run at the same time
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "part", "parts"),
    [
        (signal.SIGKILL, 0, 8),
        *weekly(
            *((signal.SIGKILL, part, 8) for part in range(1, 8)),
            *((signal.SIGINT, part, 2) for part in range(2)),
        ),
    ],
)
def test_killed_at_any_moment_the_next_dvc_repro_comes_to_the_same_bytes(copy, sent, part, parts):
    lock, outs = (copy.path / "dvc.lock").read_bytes(), copy.outs()
    forget(copy)
    started = time.monotonic()
    copy.run("dvc", "repro")
    seconds = time.monotonic() - started

    generator, count, torn, hits = random.Random(part), COUNT[sent], 0, 0
    numbers = range(part, count, parts)
    for number in numbers:
        forget(copy)
        moment = 0.95 * seconds * (number + generator.random()) / count
        hits += stopped(copy, sent, moment)
        result = copy.run("dvc", "repro", check=False)
        if result.returncode:
            # DVC was stopped while it wrote a lock file, which `make repro` mends
            said = copy.run("python", "-m", "dvc_guard", "mend").stdout
            assert "could not be read" in said, result.stderr
            torn += 1
            copy.run("dvc", "repro")
        assert (copy.path / "dvc.lock").read_bytes() == lock, f"stopped after {moment:.2f} s"
        assert copy.outs() == outs, f"stopped after {moment:.2f} s"
    print(f"{hits} of {len(numbers)} while it ran; DVC left {torn} torn lock files")
    assert hits >= 0.7 * len(numbers)
