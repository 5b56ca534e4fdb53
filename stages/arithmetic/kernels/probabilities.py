"""Softmax, and the logarithm of its sums."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from stages.arithmetic.functions import exp, log
from stages.arithmetic.kernels.compiler import compiled
from stages.arithmetic.kernels.emitter import DOUBLE, DOUBLES, INT, LANES, Code, Value, vector
from stages.arithmetic.kernels.tensors import addresses, kind_of, on_all

INTEGERS = vector(INT)


def _whole(number: int) -> ir.Constant:
    return ir.Constant(INTEGERS, [number] * LANES)


def emit_power(n: Value) -> Value:
    """2 to a whole number, float64, of -1022 to 1023: its last bits are those of the number."""
    builder = n.code.builder
    bits = builder.bitcast((n + (1.5 * 2.0**52 + 1023)).value, INTEGERS)
    bits = builder.shl(bits, _whole(52))
    return Value(n.code, builder.bitcast(bits, vector(DOUBLE)))


def emit_split(x: Value) -> tuple[Value, Value]:
    """m and n of float64 x = m * 2**n from 1 on, with 1 <= m < 2. NaN stays NaN."""
    builder = x.code.builder
    bits = builder.bitcast(x.value, INTEGERS)
    n = builder.uitofp(builder.lshr(bits, _whole(52)), vector(DOUBLE))
    m = builder.or_(builder.and_(bits, _whole(2**52 - 1)), _whole(1023 << 52))
    m = Value(x.code, builder.bitcast(m, vector(DOUBLE)))
    return m + x * 0.0, Value(x.code, n) - 1023.0


@functools.cache
def compiled_softmax(kind: ir.Type, classes: int) -> Callable[..., None]:
    def emit(code: Code, block: Value, last: Value, *given: Any) -> None:
        x, less, p = (code.rows(pointer, block, last, classes) for pointer in given[:3])
        columns = [code.integer(column) for column in range(classes)]
        values = [code.gather(x, column) for column in columns]
        largest = functools.reduce(Value.maximum, values)
        values = [value.to(DOUBLE) - largest.to(DOUBLE) for value in values]
        powers = [exp(value, emit_power) for value in values]
        sums = functools.reduce(operator.add, powers)  # from left to right
        for column, value, power in zip(columns, values, powers, strict=True):
            code.scatter(value, less, column)
            code.scatter(power / sums, p, column)
        code.scatter(log(sums, emit_split), code.rows(given[3], block, last, 1), columns[0])

    return compiled(emit, kind, DOUBLES, DOUBLES, DOUBLES)


def softmax(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.softmax."""
    rows, classes = x.shape
    results = [torch.empty(rows, n, dtype=torch.float64) for n in (classes, classes, 1)]
    x = x.contiguous()
    function, operations = compiled_softmax(kind_of(x), classes), rows * classes * 99
    on_all(function, addresses(x, *results), rows=rows, operations=operations)
    less, p, log = results
    return less, p, log
