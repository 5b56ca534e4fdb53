"""A fully connected layer, and the gradient of its weights.

Vectors that are zero everywhere are left out: most of an image is black.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from stages.arithmetic import reference, threads
from stages.arithmetic.grids import STEPS, TINY
from stages.arithmetic.kernels.compiler import compiled
from stages.arithmetic.kernels.emitter import (
    DOUBLE,
    DOUBLES,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    Code,
    Value,
    vector,
)
from stages.arithmetic.kernels.tensors import addresses, blocks_of, kind_of, on_all


def group_of(outputs: int) -> int:
    """How many outputs are summed together, of those that divide their number."""
    return next(group for group in (12, 10, 8, 7, 6, 5, 4, 3, 2, 1) if outputs % group == 0)


class Packed:
    """Vectors that are not zero everywhere, and their places."""

    def __init__(self, code: Code, numbers: Any, places: Any) -> None:
        self.code, self.numbers, self.places = code, numbers, places
        self.counter = code.variable(INT)
        code.set(self.counter, code.integer(0))

    def append(self, place: Value, value: Value) -> None:
        """The next one overwrites it if it is zero."""
        count = self.code.get(self.counter)
        self.code.store(value, self.numbers, count)
        self.code.builder.store(place.value, self.code.address(self.places, count))
        self.code.set(self.counter, count + value.not_all_zero())

    def products(
        self, weight: Any, strides: tuple[int, int], part: Value, group: int
    ) -> list[Value]:
        """Sums over the vectors, times the weights of ``group`` outputs at their places.

        Args:
            strides: Of the weights: from an output to the next, and from a place to the next.
        """
        code, start = self.code, part * (group * strides[0])
        sums = [code.variable(vector(DOUBLE)) for _ in range(group)]
        for total in sums:
            code.set(total, code.zeros(DOUBLE))
        with code.loop(0, code.get(self.counter)) as k:
            value, place = code.load(self.numbers, k), code.whole(self.places, k) * strides[1]
            for o, total in enumerate(sums):
                w = code.everywhere(weight, start + place + o * strides[0])
                code.add_product(total, w, value)
        return [code.get(total) for total in sums]


@functools.cache
def compiled_linear(
    kind: ir.Type, inputs: int, outputs: int, strides: tuple[int, int], own: bool
) -> Callable[..., None]:
    """With `own`, each row has a grid of its own."""
    group = group_of(outputs)

    def emit(code: Code, block: Value, last: Value, *given: Any) -> None:
        x, y, weight, base, bias, step = given
        x, y = code.rows(x, block, last, inputs), code.rows(y, block, last, outputs)
        grid = code.copies(step, vector(DOUBLE))
        if own:
            largest = code.variable(vector(FLOAT))
            code.set(largest, code.zeros() + TINY)
            code.each_column(
                x,
                inputs,
                lambda _, value: code.set(largest, code.get(largest).clamp(min=value.abs())),
            )
            grid = code.get(largest).power_of_two().to(DOUBLE) * (1 / STEPS)
        packed = Packed(code, code.variable(DOUBLE, inputs * LANES), code.variable(INT, inputs))
        code.each_column(x, inputs, lambda i, value: packed.append(i, value.rounded(DOUBLE, grid)))
        with code.loop(0, outputs // group) as part:
            for o, total in enumerate(packed.products(weight, strides, part, group)):
                at = part * group + o
                total = total + code.everywhere(base, at) + code.everywhere(bias, at)
                code.scatter(total.single(), y, at)

    return compiled(emit, kind, FLOATS, DOUBLES, DOUBLES, DOUBLES, DOUBLE)


def linear(x: Tensor, step: float | None, weight: Tensor, bias: Tensor, shift: int = 0) -> Tensor:
    """As reference.linear."""
    outputs, inputs = weight.shape
    y = torch.empty(len(x), outputs)
    # Black pixels are left out, so the shift is not subtracted from each, but times all weights
    base = weight.sum(1).mul_(-shift if x.dtype == torch.uint8 else 0)
    function = compiled_linear(kind_of(x), inputs, outputs, weight.stride(), step is None)
    given = x.contiguous(), y, weight, base, bias
    operations = len(x) * inputs * outputs
    on_all(function, addresses(*given), step or 0.0, rows=len(x), operations=operations)
    return y


@functools.cache
def compiled_linear_back(kind: ir.Type, inputs: int, outputs: int) -> Callable[..., None]:
    """Here, a block is LANES inputs."""
    group = group_of(outputs)

    def emit(code: Code, block: Value, last: Value, *given: Any) -> None:
        x, gradient, to_weight, numbers, places, step = given
        first, packed = (block * LANES).clamp(max=inputs - LANES), Packed(code, numbers, places)
        with code.loop(0, last + 1) as row:
            value = code.load(x, row * inputs + first, 1)
            packed.append(row, value.rounded(DOUBLE, code.copies(step, vector(DOUBLE))))
        with code.loop(0, outputs // group) as part:
            for o, total in enumerate(packed.products(gradient, (1, outputs), part, group)):
                code.store(total, to_weight, (part * group + o) * inputs + first, 1)

    return compiled(emit, kind, DOUBLES, DOUBLES, DOUBLES, INTS, DOUBLE)


def linear_back(x: Tensor, step: float, gradient: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """As reference.linear_back."""
    (count, inputs), outputs = x.shape, gradient.shape[1]
    if inputs < LANES:
        return reference.linear_back(x, step, gradient, shift)
    to_weight, to_bias = gradient.new_empty(outputs, inputs), gradient.sum(0)
    function = compiled_linear_back(kind_of(x), inputs, outputs)
    given = x.contiguous(), gradient.contiguous(), to_weight

    def work(part: tuple[int, int]) -> None:
        numbers = gradient.new_empty(count + 1, LANES)
        places = torch.empty(count + 1, dtype=torch.int64)
        function(*addresses(*given, numbers, places), step, count, *part)

    threads.for_each(work, threads.parts(blocks_of(inputs), count * inputs * outputs))
    if x.dtype == torch.uint8:
        to_weight -= to_bias.unsqueeze(1) * shift
    return to_weight, to_bias
