"""``view``: the pages of MLflow, from the tracking server or from one that is started here."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from types import FrameType

from dvc_mlflow import pages, projects, reasons, store
from dvc_mlflow.errors import InputError, StageError

PORT = 5000
NEWEST = 100  # runs that the links are chosen from
PATIENCE = 120.0  # seconds for the server to start


def links(ui: str = store.UI, update: bool = True) -> str:
    """The addresses of the runs and the charts of each project, one per line.

    Args:
        ui: The address of the UI, for a store without a server.
        update: Write the views that the addresses lead to. Otherwise those that are there count.
    """
    lines = []
    for folder, files in projects.find().items():
        if not files:
            continue
        title = "" if folder == projects.MAIN else f"{folder} "
        experiment_id = store.find_experiment(folder)
        search = store.client().search_runs
        newest = search([experiment_id], max_results=NEWEST) if experiment_id else []
        if not experiment_id or not newest:
            lines.append((f"{title}runs", store.nothing()))
            continue
        lines.append((f"{title}runs", store.overview(experiment_id, ui)))
        drawn = [run for run in newest if store.curves_of(run)]
        if update:
            with contextlib.suppress(Exception):  # a store that can only be read
                curves = store.curves_of(drawn[0]) if drawn else []
                store.show_views(folder, experiment_id, curves=curves)
        if pages.CHARTS in store.client().get_experiment(experiment_id).tags:
            lines.append((f"{title}charts", store.overview(experiment_id, ui, pages.CHARTS)))
        # The runs of one state of dvc.lock have one parent. A run that did not end well has none
        parents = [run.data.tags.get("mlflow.parentRunId") for run in drawn]
        newest_parent = next(filter(None, parents), "none")
        beside = [run for run, above in zip(drawn, parents, strict=True) if above == newest_parent]
        if together := store.comparison(beside[::-1], ui):
            lines.append((f"{title}compared", together))
    return "\n".join(f"{name:14} {address}" for name, address in lines)


def print_links() -> None:
    found = links(update=False)
    print(found)
    if store.UI in found:
        store.print_how_to_open()


def show(port: str = "") -> None:
    """Print the address of the UI. For a store without a server, run one until it is interrupted.

    Args:
        port: Of the new server; by default the first free one from PORT on.

    Raises:
        InputError: The port is taken, or is not a port.
        StageError: The server ended.
    """
    if store.is_remote(store.uri()):
        home = f"/#/?{store.workspace()}" if store.workspace() else ""
        print(f"The tracking server has the UI: {store.name().rstrip('/')}{home}", flush=True)
        try:
            with reasons.explained():
                print(links())
        except StageError as error:  # its address is all that can be told
            print(f"warning: {error}", file=sys.stderr)
        return
    address = f"http://127.0.0.1:{_free(port)}"
    with contextlib.redirect_stdout(sys.stderr):  # only the addresses go to the output
        store.settle()
    store.ignore()  # the server makes a store that is not there
    found = links(address)  # before the server starts, because this reports an unusable store
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--port", address.rpartition(":")[2]],
        cwd=store.root(),
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri()},  # hidden from `ps`
        stdout=2,  # only the addresses go to the output
        start_new_session=True,  # its processes form a group, and end together
    )
    try:
        if _answers(address, server) or server.poll() is None:
            print(found, flush=True)
        server.wait()
    except KeyboardInterrupt:
        return
    finally:
        _end(server)
    raise StageError("`mlflow ui` ended, see above")


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
    taken = port or f"{PORT} and the 99 after it"
    raise InputError(f"port {taken} is taken: `dvc-mlflow view PORT`")


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers. False if it has ended or takes longer than PATIENCE."""
    # A proxy of the environment (http_proxy) is for other machines
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        try:
            direct.open(f"{address}/health", timeout=2).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
