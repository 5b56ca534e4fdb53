"""Distorted images: each pixel is taken from another place."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from stages.arithmetic import reference, threads
from stages.arithmetic.kernels.compiler import compiled
from stages.arithmetic.kernels.emitter import (
    BYTE,
    BYTES,
    DOUBLE,
    DOUBLES,
    FLOAT,
    LANES,
    WORD,
    Code,
    Value,
    vector,
)
from stages.arithmetic.kernels.tensors import addresses


def emit_fraction(x: Value) -> tuple[Value, Value]:
    """The whole numbers in float32 from 0 on, as whole numbers, and what is left."""
    whole = Value(x.code, x.code.builder.fptosi(x.value, vector(WORD)))
    return whole, x - whole.to(FLOAT)


def emit_look_up(code: Code, pixels: Any, index: Value, offset: int) -> Value:
    """The bytes at ``offset`` beyond each lane's index, as float32."""
    builder, bytes_ = code.builder, ir.Constant(vector(BYTE), ir.Undefined)
    for lane in range(LANES):
        place = builder.add(builder.extract_element(index.value, WORD(lane)), WORD(offset))
        byte = builder.load(builder.gep(pixels, [place]))
        bytes_ = builder.insert_element(bytes_, byte, WORD(lane))
    return Value(code, bytes_).to(FLOAT)


@functools.cache
def compiled_warp(size: int, points: int) -> Callable[..., None]:
    """Here, a block is an image, and a vector holds neighbouring pixels of a row."""
    side, vectors = size + 3, range(0, size, LANES)

    def emit(code: Code, image: Value, last: Value, *given: Any) -> None:
        images, moves, weights, out = given
        images = code.address(images, image * size**2)
        out = code.address(out, image * size**2)
        moves = code.address(moves, image * (2 * points**2))
        padded = code.variable(BYTE, side**2)  # with a border of zeros
        with code.loop(0, side**2) as place:
            code.builder.store(BYTE(0), code.address(padded, place))
        with code.loop(0, size) as row:
            for v in vectors:
                pixels = code.load(images, row * size + v, 1)
                code.store(pixels, padded, (row + 1) * side + (v + 1), 1)
        lines = code.variable(DOUBLE, 2 * points * size)  # the control points of each column
        total = code.variable(vector(DOUBLE))
        with code.loop(0, 2) as axis, code.loop(0, points) as down:
            for v in vectors:
                code.set(total, code.zeros(DOUBLE))
                with code.loop(0, points) as across:
                    move = code.everywhere(moves, (axis * points + across) * points + down)
                    code.add_product(total, move, code.load(weights, across * size + v, 1))
                code.store(code.get(total), lines, (axis * points + down) * size + v, 1)
        with code.loop(0, size) as row:
            y = code.copies(code.builder.sitofp(row.value, FLOAT), vector(FLOAT))
            for v in vectors:
                x = Value(code, ir.Constant(vector(FLOAT), [float(v + i) for i in range(LANES)]))
                moved = []
                for number, own in enumerate((x, y)):
                    code.set(total, code.zeros(DOUBLE))
                    with code.loop(0, points) as point:
                        line = code.load(lines, (point + number * points) * size + v, 1)
                        weight = code.everywhere(weights, point * size + row)
                        code.add_product(total, line, weight)
                    move = (code.get(total) * (1 / 36)).single()
                    moved.append((move + own).clamp(-1.0, float(size)) + 1.0)
                (left, across), (top, down) = map(emit_fraction, moved)
                first, right, below, end = (
                    emit_look_up(code, padded, top * side + left, offset)
                    for offset in (0, 1, side, side + 1)
                )
                above = (right - first) * across + first
                value = ((end - below) * across + below - above) * down + above
                pixels = code.builder.fptoui(value.round().value, vector(BYTE))
                code.store(Value(code, pixels), out, row * size + v, 1)

    return compiled(emit, BYTES, DOUBLES, DOUBLES, BYTES)


def warp(images: Tensor, moves: Tensor, weights: Tensor) -> Tensor:
    """As reference.warp."""
    size, points = weights.shape
    if size % LANES:
        return reference.warp(images, moves, weights)
    result, function = torch.empty_like(images), compiled_warp(size, points)
    given = images.contiguous(), moves.contiguous(), weights.T.contiguous(), result
    where, count = addresses(*given), len(images)
    parts = threads.parts(count, count * size**2 * 99)
    threads.for_each(lambda part: function(*where, count, *part), parts)
    return result
