"""Which code computes: kernels that are compiled for this processor, or the plain reference.

Both give the same bits. The reference takes several times as long.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from dvc_kit.errors import one_line
from stages.arithmetic import reference, threads

VARIABLE = "KERNELS"  # in the environment: `off` leaves the kernels out
_left_out = False
_compared: set[str] = set()


def of(x: Tensor) -> ModuleType:
    """The module that computes with ``x``."""
    found = None if _left_out or x.device.type != "cpu" else _kernels()
    return found or reference


@functools.cache
def _kernels() -> ModuleType | None:
    if os.environ.get(VARIABLE) == "off":
        return None
    try:
        from stages.arithmetic import kernels
    except Exception as error:  # whatever a compiler and a processor can come up with
        _leave_out(error)
        return None
    torch.set_num_threads(1)  # the kernels have threads of their own
    return kernels


def _leave_out(reason: Exception | str) -> None:
    global _left_out
    _left_out = True
    torch.set_num_threads(threads.number())
    print(
        f"note: compiled kernels are left out ({one_line(reason)}): the results are the same, but "
        "a training takes several times as long",
        file=sys.stderr,
    )


def compare(what: str, compute: Callable[[], Sequence[Tensor]]) -> None:
    """Compare kernels with the reference, on a few images: the first time only.

    If they differ, or cannot be compiled, the kernels are left out from then on.

    Args:
        what: Is compared once.
        compute: Uses :func:`of`.
    """
    global _left_out
    if what in _compared or _left_out or _kernels() is None:
        return
    _compared.add(what)
    _left_out = True
    try:
        expected = compute()
    finally:
        _left_out = False
    try:
        found = compute()
    except Exception as error:
        _leave_out(error)
        return
    pairs = zip(found, expected, strict=True)
    if not all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in pairs):
        _leave_out(f"{what}: their results are not those of the reference")
