"""Distorted images: each pixel is taken from another place."""

import functools
import math
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
    FLOATS,
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
def compiled_displacements(line: tuple[float, ...]) -> Callable[..., None]:
    """Here, a block is an image, and a vector holds neighbours of its control points."""
    points = len(line) ** 2

    def emit(code: Code, image: Value, last: Value, *given: Any) -> None:
        affine, drawn, elastic, out = given
        angle, wider, higher, shear, *shifts = (
            code.everywhere(affine, image * 6 + number) for number in range(6)
        )
        q = angle * angle
        cos, sin = (code.copies(1 / math.factorial(power), q.value.type) for power in (28, 29))
        for power in range(26, -1, -2):
            cos = -(cos * q) + 1 / math.factorial(power)
            sin = -(sin * q) + 1 / math.factorial(power + 1)
        sin = sin * angle
        scale_x, scale_y = wider + 1.0, higher + 1.0
        of_x = cos * scale_x - 1.0, sin * scale_x
        of_y = shear * cos * scale_x - sin * scale_y, shear * sin * scale_x + cos * scale_y - 1.0
        for axis in (0, 1):
            for first in range(0, points, LANES):
                lanes = range(first, first + LANES)
                x = Value(code, ir.Constant(vector(DOUBLE), [line[i // len(line)] for i in lanes]))
                y = Value(code, ir.Constant(vector(DOUBLE), [line[i % len(line)] for i in lanes]))
                total = code.zeros(DOUBLE)
                for number in range(4):
                    place = ((last + 1) * number + image) * (2 * points) + (axis * points + first)
                    total = total + code.load(drawn, place, 1).double()
                moved = of_x[axis] * x + of_y[axis] * y + shifts[axis]
                total = (total - 2.0) * code.copies(elastic, vector(DOUBLE)) + moved
                total = total.clamp(-64.0, 64.0).on_grid(2.0**-20)
                code.store(total, out, image * (2 * points) + (axis * points + first), 1)

    return compiled(emit, DOUBLES, FLOATS, DOUBLE, DOUBLES)


def displacements(affine: Tensor, drawn: Tensor, line: Tensor, elastic: float) -> Tensor:
    """As reference.displacements."""
    side, count = len(line), len(affine)
    if side**2 % LANES:
        return reference.displacements(affine, drawn, line, elastic)
    result = affine.new_empty(count, 2, side, side)
    affine, drawn = affine.contiguous(), drawn.contiguous()
    to, result_at = addresses(affine, drawn), addresses(result)
    compiled_displacements(tuple(line.tolist()))(*to, elastic, *result_at, count, 0, count)
    return result


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
