"""Work on a pool of threads. Their number changes no result, because no sum is ever rounded.

A thread takes the next part when it has done one, so a slow or busy core does less. None spins.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
PARTS = 4  # of the work, for each thread: fewer wait for the slowest, more cost calls
LEAST = 2**20  # operations in a part
_pool: ThreadPoolExecutor | None = None
_number = 1


def use(number: int) -> None:
    """Share work among so many threads from now on, with the calling one.

    Args:
        number: 0: as many as there are cores that this process may use, by its affinity and by its
            control group.
    """
    global _pool, _number
    if not number:
        import joblib

        number = joblib.cpu_count()
    if number != _number:
        _pool = ThreadPoolExecutor(number - 1, "kernels") if number > 1 else None
        _number = number


def number() -> int:
    return _number


def parts(blocks: int, operations: int) -> list[tuple[int, int]]:
    """The first and the last of some of ``blocks``, for :func:`for_each`.

    Args:
        operations: Of all blocks together. A thread takes longer to wake than to do a few.
    """
    number = min(PARTS * _number, operations // LEAST) if _number > 1 else 1
    each = max(1, -(-blocks // max(1, number)))
    return [(start, min(start + each, blocks)) for start in range(0, blocks, each)]


def for_each(function: Callable[[T], object], parts: Sequence[T]) -> None:
    """Call ``function`` on each part. It returns when no thread works on one any more."""
    rest = iter(parts)

    def work() -> None:
        for part in rest:
            function(part)

    number = min(_number, len(parts))
    others = [_pool.submit(work) for _ in range(number - 1)] if _pool else []
    try:
        work()
    finally:  # after Ctrl-C, too: the others still write to this caller's memory
        wait(others)
    for other in others:
        other.result()
