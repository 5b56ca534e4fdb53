"""A training that several processes share, on one machine or on many.

Each worker has some rows of each batch, in proportion to its threads. All of them draw the random
numbers of the whole batch, and each keeps those of its own rows. What depends on all rows goes
through this module: the outputs, the largest numbers that choose the grids, and the sums of the
gradients. No sum is rounded (:mod:`stages.arithmetic.exact`). So neither the number of workers nor
their shares change a bit.

A process that has not called :func:`begin` has all rows, and nothing here costs it anything.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LOST = 75  # the exit code of a worker that has lost the others, and can start again with them
TIMEOUT = timedelta(minutes=5)  # a worker that is silent for longer is given up


class Group:
    """The workers, as one of them sees them.

    Attributes:
        rank: Which of them this one is.
        threads: Of each worker.
        hosts: The names of their machines.
        home: The rank of the first worker at home.
        since: When the exchange began that this worker waits in; None if it waits in none.
    """

    def __init__(self, threads: int) -> None:
        self.rank, self.home, self.hosts = dist.get_rank(), 0, [""]
        self.since: float | None = None
        self.bounds = [0]  # of the rows of each worker in the current batch
        self.apart: list[tuple[Tensor, Tensor]] = []
        self.threads = self.told(threads)

    @property
    def own(self) -> slice:
        """The rows of this worker. One without rows has none here, see :func:`rows`."""
        return slice(*self.bounds[self.rank : self.rank + 2])

    def exchange(self, collective: Callable[..., object], *arguments: Any) -> None:
        """Call a function of torch.distributed. If another worker has ended, end this process."""
        self.since = time.monotonic()
        try:
            collective(*arguments)
        except RuntimeError:
            leave("another worker has ended or joined")
        self.since = None

    def told(self, message: Any) -> list[Any]:
        """The messages of all workers, by rank."""
        found: list[Any] = [None] * dist.get_world_size()
        self.exchange(dist.all_gather_object, found, message)
        return found


_group: Group | None = None


def begin(threads: int) -> Group:
    """Share what is computed from now on, with those whom torch.distributed's environment names.

    Args:
        threads: Of this worker.
    """
    global _group
    try:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError):
        leave("another worker has ended before the first exchange")
    _group = Group(threads)
    return _group


def leave(reason: str) -> None:
    """End this process, which can start again with the other workers."""
    print(f"note: {reason}: all continue after the last finished epoch", flush=True)
    os._exit(LOST)  # at once: the others of this machine wait for it


def group() -> Group | None:
    return _group


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it, this worker computes something of its own."""
    global _group
    before, _group = _group, None
    try:
        yield
    finally:
        _group = before


# The rows of a batch


def rows(count: int) -> slice:
    """The rows of this worker, in a batch of so many that begins now.

    A worker without rows computes with the first one, and :func:`whole` takes none from it.
    """
    if not _group:
        return slice(0, count)
    ends = accumulate(_group.threads, initial=0)
    _group.bounds = [count * end // sum(_group.threads) for end in ends]
    own = _group.own
    return own if own.start < own.stop else slice(0, 1)


def of_all(count: int) -> int:
    """The rows of the whole batch, of which this worker has ``count``."""
    return _group.bounds[-1] if _group else count


def own(x: Tensor, dim: int = 0) -> Tensor:
    """The rows of this worker, of what was drawn for the whole batch."""
    if not _group:
        return x
    mine = _group.own
    return x.narrow(
        dim, mine.start if mine.start < mine.stop else 0, max(1, mine.stop - mine.start)
    )


class Whole(torch.autograd.Function):
    """The operation of :func:`whole`. Each worker gets the gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.own = group.own
        counts = [end - start for start, end in pairwise(group.bounds)]
        mine = x.new_zeros(max(counts), *x.shape[1:], device="cpu")
        mine[: counts[group.rank]] = x[: counts[group.rank]]
        every = mine.new_empty(len(counts), *mine.shape)
        group.exchange(dist.all_gather, list(every), mine)
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)]).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        mine = gradient[ctx.own]
        return (mine if len(mine) else torch.zeros_like(gradient[:1])), None


def whole(x: Tensor) -> Tensor:
    """The rows of all workers, from the rows of this one, with a gradient."""
    if not _group:
        return x
    result: Tensor = Whole.apply(x, _group)  # type: ignore[no-untyped-call]
    return result


# What depends on all rows


def largest(size: float) -> float:
    """The largest of the workers' sizes; NaN if one of them is NaN.

    Floats that are not negative have the order of their bits. NaN comes last.
    """
    if not _group:
        return size
    bits = torch.tensor([size], dtype=torch.float64).abs_().view(torch.int64)
    _group.exchange(dist.all_reduce, bits, dist.ReduceOp.MAX)
    return bits.view(torch.float64).item()


def apart(*weights: Tensor) -> tuple[Tensor, ...]:
    """Copies of a layer's weights that get the gradient of this worker's rows, as float64.

    It is a sum that is not rounded yet: :func:`add_gradients` adds it to those of the others.
    """
    if not _group or not torch.is_grad_enabled() or not weights[0].requires_grad:
        return weights
    copies = tuple(weight.detach().double().requires_grad_() for weight in weights)
    _group.apart += zip(weights, copies, strict=True)
    return copies


def add_gradients() -> None:
    """Add the gradients of all workers, in one exchange, and continue the backward step."""
    if not _group:
        return
    weights, copies = zip(*_group.apart, strict=True)
    _group.apart = []
    sums = torch.cat([copy.grad.flatten() for copy in copies])
    there = sums.cpu()
    _group.exchange(dist.all_reduce, there)
    parts = torch.split(there.to(sums).float(), [weight.numel() for weight in weights])
    gradients = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    torch.autograd.backward(weights, gradients)
