"""How the workers of a training (:mod:`stages.arithmetic.workers`) meet, and that they are equal.

torchrun's agent (:mod:`stages.learn.launch`) starts them. The first worker at home does what a
process alone does, and only it writes. All others do the same steps and write nothing.

A process that is no worker is the first one of itself, and nothing here costs it anything.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from dvc_kit.errors import StageError
from stages.arithmetic import threads as pool
from stages.arithmetic import workers
from stages.base import params
from stages.base.params import ModelName
from stages.learn import checkpoint
from stages.learn.training import State

JOINED = "WORKERS_JOINED"  # in the environment of workers on other machines than home
PATIENCE = 10.0  # seconds until a line says who is waited for
CURES = {  # for a worker that has something else than home
    "code": "check out the same commit there",
    "libraries": "`make install` there",
    "settings": "use the same params.yaml and recipes.yaml there",
    "images": "`dvc repro prepare` there",
    "initial weights": "its libraries or its processor draw other numbers",
    "weights": "its memory or its processor has a fault",
}


def is_worker() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process writes: the only one, or the first one at home."""
    return not is_worker() or (_local("RANK") == 0 and JOINED not in os.environ)


def is_silent() -> bool:
    """Whether another worker speaks for this one: the first one of its machine."""
    return is_worker() and _local("RANK") > 0


def _local(name: str) -> int:
    return int(os.environ[f"LOCAL_{name}"])


def has_trained(name: ModelName) -> bool:
    """Train with the workers that the environment asks for. Without any, do nothing."""
    if is_worker() or not (os.environ.get("WORKERS") or os.environ.get("RENDEZVOUS")):
        return False
    from stages.learn import launch  # torchrun

    return launch.train(name)


def threads(number: int) -> int:
    """The threads of this process; the workers on a machine share ``number``, 0: all its cores."""
    if not is_worker():
        return number
    pool.use(number)
    size = _local("WORLD_SIZE")
    return max(1, (pool.number() + size - 1 - _local("RANK")) // size)


def meet(name: ModelName) -> ModelName:
    """Meet the other workers, if this process is one.

    Args:
        name: The model that is trained; empty if only home knows it.
    """
    if not is_worker():
        return name
    if is_silent():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    group = workers.begin(pool.number())
    told = group.told((socket.gethostname(), name if is_first() else ""))
    group.hosts = [host for host, _ in told]
    homes = [rank for rank, (_, trained) in enumerate(told) if trained]
    if not homes:
        time.sleep(1)
        workers.leave("home is not there yet")
    group.home = homes[0]
    hosts, number = ", ".join(sorted({*group.hosts})), sum(group.threads)
    print(f"{len(told)} workers, {number} threads, on {hosts}", flush=True)
    return params.model_name([told[group.home][1]])


def agree(mine: Mapping[str, str]) -> None:
    """Check that all workers have what home has.

    Raises:
        StageError: This one has something else.
    """
    if not (group := workers.group()):
        return
    told = group.told(dict(mine))
    for rank, theirs in enumerate(told):
        if different := [name for name in mine if theirs.get(name) != told[group.home][name]]:
            text = (
                f"the worker on {group.hosts[rank]} has other {different[0]} than "
                f"{group.hosts[group.home]}: {CURES[different[0]]}"
            )
            if rank == group.rank:
                raise StageError(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)
            workers.leave("it is left out")


def share(state: State) -> None:
    """Continue where home does. Only home has a checkpoint."""
    if group := workers.group():
        content = group.told(checkpoint.written(state) if is_first() else None)[group.home]
        if not is_first():
            checkpoint.read(state, content)


def take_part(train: Callable[[], Iterable[object]]) -> None:
    """What every worker does but the first one at home."""
    try:
        for _ in train():
            pass
    except StageError:
        if not is_silent():
            raise


def end_with(main: Callable[[], None]) -> None:
    """Call the main function, and end this process with it.

    A worker ends at once: threads of torch.distributed may abort it while Python cleans up.
    """
    if not is_worker():
        return main()
    code = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(agent: int) -> None:
    """End this process when its agent has ended. Say it if the others do not answer."""
    told = False
    while os.getppid() == agent:
        time.sleep(0.5)
        group = workers.group()
        since = group.since if group else None
        waits = since is not None and time.monotonic() - since > PATIENCE
        if group and waits and not told and not is_silent():
            hosts = ", ".join(sorted({*group.hosts}))
            text = f"note: for {PATIENCE:.0f} s, a worker does not answer; they are on {hosts}"
            print(text, file=sys.stderr, flush=True)
        told = waits
    os._exit(workers.LOST)
