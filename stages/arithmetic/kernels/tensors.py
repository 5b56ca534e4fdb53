"""Tensors as compiled functions take them."""

from collections.abc import Callable

import torch
from llvmlite import ir
from torch import Tensor

from stages.arithmetic import threads
from stages.arithmetic.kernels.emitter import BYTES, DOUBLES, FLOATS, LANES

KINDS = {torch.uint8: BYTES, torch.float32: FLOATS, torch.float64: DOUBLES}


def kind_of(x: Tensor) -> ir.Type:
    """The type of a pointer to its numbers."""
    return KINDS[x.dtype]


def addresses(*tensors: Tensor) -> list[int]:
    """Where contiguous tensors begin. Their caller keeps them until the function returns."""
    return [tensor.data_ptr() for tensor in tensors]


def blocks_of(rows: int) -> int:
    return -(-rows // LANES)


def on_all(
    function: Callable[..., None], given: list[int], *more: float, rows: int, operations: int
) -> None:
    """Call a compiled function on all blocks of so many rows, with so many operations in all."""
    parts = threads.parts(blocks_of(rows), operations)
    threads.for_each(lambda part: function(*given, *more, rows, *part), parts)
