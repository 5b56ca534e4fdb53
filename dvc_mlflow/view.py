"""``view``: the pages of MLflow, from the tracking server or from one that is started here."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from dvc_kit.errors import InputError, StageError
from dvc_mlflow import addresses, pages, projects, reasons, schema, store, upkeep

HOST, PORT = "127.0.0.1", 5000
NEWEST = 100  # runs that the links are chosen from
OF_SERVER = {
    # Seven processes, for pages that no run of ours is on
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # MLflow's default are four, of which each imports all of it: minutes on two busy cores
    "MLFLOW_WORKERS": "1",
}


def links(ui: str = addresses.UI) -> str:
    """The addresses of the runs and the charts of each project, one per line. Their views are
    written.

    Args:
        ui: The address of the UI, for a store without a server.
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
        lines.append((f"{title}runs", addresses.overview(experiment_id, ui)))
        drawn = [run for run in newest if addresses.curves_of(run)]
        with contextlib.suppress(Exception):  # a store that can only be read
            curves = addresses.curves_of(drawn[0]) if drawn else []
            upkeep.show_views(folder, experiment_id, curves=curves)
            upkeep.describe(experiment_id)
        if pages.CHARTS in store.client().get_experiment(experiment_id).tags:
            lines.append((f"{title}charts", addresses.overview(experiment_id, ui, pages.CHARTS)))
        # The runs of one state of dvc.lock have one parent. A run that did not end well has none
        parents = [run.data.tags.get(schema.PARENT) for run in drawn]
        newest_parent = next(filter(None, parents), "none")
        beside = [run for run, above in zip(drawn, parents, strict=True) if above == newest_parent]
        if together := addresses.comparison(beside[::-1], ui):
            lines.append((f"{title}compared", together))
    return "\n".join(f"{name:14} {address}" for name, address in lines)


def show(port: str = "", host: str = HOST) -> None:
    """Print the addresses of the pages. For a store without a server, run MLflow's until Ctrl-C.

    Args:
        port: Of the new server; by default the first free one from PORT on.
        host: The address of this machine that it listens on.

    Raises:
        InputError: The port is taken, or is not a port, or the host is another machine.
        StageError: The server ended.
    """
    if store.is_remote(store.uri()):
        print(f"The tracking server has the UI: {store.name().rstrip('/')}", flush=True)
        try:
            with reasons.explained():
                print(links())
        except StageError as error:  # its address is all that can be told
            print(f"warning: {error}", file=sys.stderr)
        return
    number = str(_free(port, host))
    with contextlib.redirect_stdout(sys.stderr):  # only the addresses go to the output
        upkeep.settle()
    upkeep.ignore()  # the server makes a store that is not there
    ui = f"http://{HOST if host == '0.0.0.0' else host}:{number}"
    addresses_of_pages = links(ui)
    if host != HOST:
        print(
            f"warning: it listens on {host}: who reaches port {number} there can read, change and "
            "delete these runs, without a password",
            file=sys.stderr,
        )
    print("the server of MLflow starts, which takes some seconds", file=sys.stderr)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.getsignal(signal.SIGINT))
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", number],
        cwd=store.root(),
        env={**OF_SERVER, **os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri()},  # not in `ps`
        stdout=2,
        start_new_session=True,  # its processes form a group, and end together
    )
    try:
        if _answers(ui, server):
            print(addresses_of_pages, flush=True)
        server.wait()
    except KeyboardInterrupt:
        return
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(server.pid, ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)
    raise StageError("`mlflow ui` ended, see above")


def _answers(ui: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False if it ended before that."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        with contextlib.suppress(OSError):
            direct.open(f"{ui}/health", timeout=5).close()
            return True
        time.sleep(0.2)
    return False


def _free(port: str, host: str = HOST) -> int:
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"PORT is {port}, expected a number from 1 to 65535")
    for number in [int(port)] if port else range(PORT, PORT + 100):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((host, number))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
                    reason = f"HOST is {host}, expected an IPv4 address or a name of this machine"
                    raise InputError(reason) from error
                continue
            return number
    taken = port or f"{PORT} and the 99 after it"
    raise InputError(f"port {taken} is taken: `dvc-mlflow view PORT`")
