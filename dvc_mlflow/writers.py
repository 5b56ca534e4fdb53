"""Who writes to the store: how a process is named there, and whether it still lives."""

import contextlib
import functools
import getpass
import hashlib
import socket
from pathlib import Path


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@functools.cache
def machine() -> str:
    """The name of this host, and a hash that tells it from others with the same name."""
    marks = []
    for path in (Path("/etc/machine-id"), Path("/proc/self/ns/pid")):  # containers count apart
        with contextlib.suppress(OSError):
            marks.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return f"{socket.gethostname()}-{hashlib.sha256(''.join(marks).encode()).hexdigest()[:8]}"


def this_process() -> str:
    """The machine, the process and its start time: enough to see later that it has ended."""
    import psutil

    process = psutil.Process()
    return f"{machine()} {process.pid} {process.create_time():.0f}"


def is_over(process: str) -> bool:
    """Whether a process of this machine has ended. ``process`` is from :func:`this_process`."""
    import psutil

    host, _, rest = process.partition(" ")
    if host != machine():
        return False
    pid, _, started = rest.partition(" ")
    try:
        return not abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except (psutil.Error, ValueError):
        return True
