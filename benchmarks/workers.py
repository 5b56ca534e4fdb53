"""What sharing a training costs (docs/workers.md): the median time of a step, in ms.

    python -m benchmarks.workers [MODEL] [ROUNDS]

- two threads of one process, and two workers of one thread, in turns; and of each exchange between
  the workers, by gloo on this machine. Needs two cores with nothing else on them.
- one of N workers with a thread each, which does its part of the step, and exchanges nothing.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from stages.arithmetic import numerics, workers
from stages.base import files, params, splits
from stages.base.splits import Split
from stages.learn import training
from stages.networks import models

STEPS = {512: 60, 8192: 7}  # by the number of images in a batch
WORKERS = (1, 2, 8, 64)


def pretend(number: int) -> None:
    """Be the first of so many workers, of which there are no others."""
    group = object.__new__(workers.Group)
    group.rank, group.threads, group.since, group.apart = 0, [1] * number, None, []

    def exchange(collective: Any, found: Any, *arguments: Any) -> None:
        if collective.__name__ == "all_gather":
            for part in found:
                part.copy_(arguments[0])

    group.exchange = exchange  # type: ignore[method-assign]
    workers._group = group


def timed(group: workers.Group, times: dict[str, list[float]]) -> None:
    """Keep the times of its exchanges, by their names."""
    exchange = group.exchange

    def exchanged(collective: Any, *arguments: Any) -> None:
        began = time.perf_counter()
        exchange(collective, *arguments)
        is_size = collective.__name__ == "all_reduce" and arguments[0].numel() == 1
        name = "a size" if is_size else collective.__name__
        times.setdefault(name, []).append(1000 * (time.perf_counter() - began))

    group.exchange = exchanged  # type: ignore[method-assign]


def child(model: str, batch: int, threads: int, pretended: int) -> None:
    """Some steps, as one worker or alone; the times as JSON."""
    generator, exchanges = numerics.configure(threads, 0), {}
    if "RANK" in os.environ:
        timed(workers.begin(threads), exchanges)
    elif pretended > 1:
        pretend(pretended)
    recipe = params.load().of_model(model).model_copy(update={"batch_size": batch})
    part = splits.load_split(files.DATA_PREPARED, "train")
    count = min(batch * STEPS[batch], len(part))
    data = models.examples(Split(part.images[:count], part.labels[:count]))
    state = training.begin(models.build(model, recipe), recipe, STEPS[batch], generator)
    step, times = state.optimizer.step, [time.perf_counter()]
    state.optimizer.step = lambda rate: (step(rate), times.append(time.perf_counter()))  # type: ignore
    training.train_epoch(state, data, training.random_order(count, generator), recipe, 2)
    taken = [1000 * (after - before) for before, after in itertools.pairwise(times[2:])]
    medians = {name: statistics.median(values) for name, values in exchanges.items()}
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps([statistics.median(taken), medians]), flush=True)
    os._exit(0)


def measured(model: str, batch: int, threads: int, torchrun: bool = False, n: int = 1) -> Any:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = ["-m", "benchmarks.workers", "child", model, *map(str, (batch, threads, n))]
    command = [sys.executable, *(start if torchrun else []), *own]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def main(model: str = "lenet5", rounds: str = "5") -> None:
    for batch in STEPS:
        turns = range(int(rounds))
        pairs = [(measured(model, batch, 2), measured(model, batch, 1, True)) for _ in turns]
        alone, shared = (statistics.median(one[0] for one in way) for way in zip(*pairs))  # noqa: B905
        print(f"{model}, {batch} images: two threads {alone:.2f}, two workers {shared:.2f}")
        for name in pairs[0][1][1]:
            print(f"    {name}: {statistics.median(pair[1][1][name] for pair in pairs):.2f}")
        for number in WORKERS:
            step = statistics.median(measured(model, batch, 1, n=number)[0] for _ in turns)
            print(f"    one of {number} workers, without exchanges: {step:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main(*sys.argv[1:])
