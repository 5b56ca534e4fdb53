"""``make ui``: MLflow's pages of the runs, from the tracking server or from one started here."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import FrameType

from stages import store
from stages.errors import InputError, StageError

PORT = 5000
PATIENCE = 120.0  # seconds for the server to start


def links(ui: str = store.UI) -> str:
    """Where the UI shows the runs of the pipeline and of the study, as far as there are any.

    Args:
        ui: The address of the UI, for a store that no server keeps.
    """
    from mlflow import MlflowClient

    lines = []
    for title, experiment, command in (
        ("", store.PIPELINE, "make repro"),
        ("The study: ", store.STUDY, "make sync"),
    ):
        experiment_id = store.find_experiment(experiment)
        if experiment_id and MlflowClient().search_runs([experiment_id], max_results=1):
            lines.append(f"{title}{store.overview(experiment_id, ui)}")
        else:
            lines.append(f"{title}no runs in {store.name()} yet: `{command}` writes them")
    return "\n".join(lines)


def show(port: str = "") -> None:
    """Print where the UI is. For a store that no server keeps, run one until it is interrupted.

    Args:
        port: Where it answers; by default the first free one from PORT on.

    Raises:
        InputError: The port is taken, or none.
        StageError: The server ended.
    """
    if store.is_remote(store.uri()):
        print(f"The tracking server has the UI: {store.name().rstrip('/')}")
        return
    address = f"http://127.0.0.1:{_free(port)}"
    found = links(address)  # before the server: says what is wrong with the store
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri()}  # not for `ps` to see
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--port", address.rpartition(":")[2]],
        cwd=store.root(),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    threading.Thread(target=_announce, args=(address, found, server), daemon=True).start()
    last = ""
    try:
        for line in server.stdout or ():
            last = store.without_user(line.strip()) or last
            print(last, file=sys.stderr)
    except KeyboardInterrupt:
        return
    finally:
        _end(server)
    raise StageError(f"`mlflow ui` ended: {last or 'it said nothing'}")


def _free(port: str) -> int:
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"PORT is {port}, expected a number from 1 to 65535")
    for number in [int(port)] if port else range(PORT, PORT + 100):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", number))
            except OSError:
                continue
            return number
    raise InputError(f"port {port or f'{PORT} and the 99 after it'} is taken: `make ui PORT=...`")


def _announce(address: str, found: str, server: subprocess.Popen[str]) -> None:
    """Print the links as soon as the server answers."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
        except OSError:
            time.sleep(0.2)
            continue
        print(found, flush=True)
        return


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[str]) -> None:
    """End the server with the processes that it started."""
    import psutil

    try:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    except psutil.Error:
        return
    for process in family:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(family, timeout=5)
    for process in alive:
        process.kill()
    server.wait()
