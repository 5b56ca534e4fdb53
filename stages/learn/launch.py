"""Starts the workers of a training with torchrun's agent, on this machine and on others.

``make repro WORKERS=3`` trains with three processes. With ``RENDEZVOUS=HOST:PORT``, an address of
this machine, others join: ``python -m stages.learn.launch`` there, which ``make join`` starts.

If a worker ends or joins, the agents start all of them again, and they continue after the last
finished epoch.
"""

import contextlib
import logging
import os
import socket
import sys
import time

import psutil
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from dvc_guard import alone
from dvc_kit import errors
from dvc_kit.errors import InputError, StageError, main_function
from stages.arithmetic import workers
from stages.base.params import ModelName
from stages.learn import meeting

MOST = 64  # workers on a machine, and machines
LAST_CALL = 5  # seconds that the machines which are there wait for more of them
RESTARTS = 100  # a training in which workers end more often is given up
FAREWELL = 5  # seconds that home waits for the agents of others, when all is written


class Agent(LocalElasticAgent):
    """torchrun's agent. It ends with a worker that has an error of its own.

    A worker that was killed or has lost the others is started again.
    """

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        for failure in result.failures.values():
            if failure.exitcode > 0 and failure.exitcode != workers.LOST:
                sys.exit(failure.exitcode)
        return result


def asked() -> tuple[int, str, int]:
    """The number of workers on this machine, and host and port of the rendezvous, if there is one.

    Raises:
        InputError: WORKERS or RENDEZVOUS cannot be used.
    """
    number, rendezvous = os.environ.get("WORKERS") or "1", os.environ.get("RENDEZVOUS") or ""
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= MOST):
        raise InputError(f"WORKERS is {number}, expected a whole number from 1 to {MOST}")
    host, _, port = rendezvous.rpartition(":")
    valid = port.isascii() and port.isdecimal() and 1 <= int(port) < 2**16
    if rendezvous and not (host and valid):
        raise InputError(f"RENDEZVOUS is {rendezvous}, expected HOST:PORT, an address of home")
    return int(number), host, int(port or 0)


def train(name: ModelName) -> bool:
    """Train with the workers that the environment asks for, at home.

    Returns:
        Whether it asks for some.

    Raises:
        StageError: The workers end again and again.
    """
    number, host, port = asked()
    if number == 1 and not host:
        return False
    if host:
        try:
            # Of an address of another machine, a rendezvous would say so only after minutes
            socket.create_server((host, port)).close()
        except OSError as error:
            raise InputError(
                f"RENDEZVOUS is {host}:{port}, and this machine cannot wait there: {error.strerror}"
            ) from None
        print(
            f"train_{name} waits {LAST_CALL} s for other machines "
            f"(`make join RENDEZVOUS={host}:{port}` there); those that join later are used after "
            "the last finished epoch",
            flush=True,
        )
    alone.end_with_dvc()
    _run_agent((name,), number, host or "127.0.0.1", port)
    return True


@main_function
def join() -> None:
    """Let this machine work for the trainings of another one, until Ctrl-C."""
    number, host, port = asked()
    if not host:
        raise InputError("RENDEZVOUS=HOST:PORT names the machine that trains")
    os.environ[meeting.JOINED] = "1"
    errors.after_interrupt = ""
    told = False
    while True:
        if not told:
            print(f"waits for `make repro RENDEZVOUS={host}:{port}` to train there", flush=True)
        told = True
        time.sleep(1)
        try:
            socket.create_connection((host, port), meeting.PATIENCE).close()
        except OSError:
            continue
        with contextlib.suppress(RendezvousError, RuntimeError):  # home has ended
            _run_agent((), number, host, port)
        told = False


def _run_agent(names: tuple[ModelName, ...], number: int, host: str, port: int) -> None:
    """Run torchrun's agent until its workers have trained.

    Args:
        names: The model that is trained; none on another machine than home.
    """
    address = _address_towards(host)
    os.environ["GLOO_SOCKET_IFNAME"] = _interface_of(address)
    # With a shared store, an agent that joins later waits for an address that is not written again
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # a Ctrl-C here is a Ctrl-C
    logging.disable(logging.CRITICAL)
    met = RendezvousParameters(
        "c10d",
        f"{host}:{port}",
        run_id="training",
        min_nodes=1,
        max_nodes=MOST if port else 1,
        local_addr=address,
        is_host=bool(names),
        last_call_timeout=LAST_CALL,
        read_timeout=int(workers.TIMEOUT.total_seconds()),
    )
    spec = WorkerSpec(
        "worker",
        number,
        get_rendezvous_handler(met),
        entrypoint=sys.executable,
        args=("-m", "stages.train", *names),
        max_restarts=RESTARTS,
    )
    farewell = FAREWELL if names else workers.TIMEOUT.total_seconds()
    result = Agent(spec, DefaultLogsSpecs(os.devnull), exit_barrier_timeout=farewell).run()
    if result and result.is_failed():
        raise StageError(f"workers have ended {RESTARTS} times")


def _address_towards(host: str) -> str:
    """The address of this machine that ``host`` sees."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looked:
            looked.connect((host, 9))
            return str(looked.getsockname()[0])
    except OSError as error:
        raise InputError(f"RENDEZVOUS names {host}: {error.strerror or error}") from None


def _interface_of(address: str) -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return str(name)
    return "lo"


if __name__ == "__main__":
    join()
