"""A convolution with tanh and pooling, and its gradients.

Shapes are those of :mod:`stages.arithmetic.reference`: C channels and O outputs, images of S x S
pixels. Four places that are pooled are computed together.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from stages.arithmetic import threads
from stages.arithmetic.functions import rational_tanh
from stages.arithmetic.grids import KERNEL, TINY
from stages.arithmetic.kernels.compiler import compiled
from stages.arithmetic.kernels.emitter import (
    DOUBLE,
    DOUBLES,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    WORD,
    Code,
    Value,
    vector,
)
from stages.arithmetic.kernels.tensors import addresses, blocks_of, kind_of, on_all
from stages.arithmetic.reference import Kept

TAPS = range(KERNEL)
PAIR = range(2)  # rows or columns that are pooled
PLACES = [(row, column) for row in PAIR for column in PAIR]


@dataclass(frozen=True)
class Shape:
    channels: int
    outputs: int
    size: int

    @property
    def out(self) -> int:
        return self.size - KERNEL + 1

    @property
    def group(self) -> int:
        """Outputs that are summed together, so that a pixel is loaded once for both."""
        return 1 if self.outputs % 2 else 2

    @property
    def inputs(self) -> int:
        return self.channels * self.size**2

    @property
    def products(self) -> int:
        """Of an image."""
        return self.sums * self.channels * KERNEL**2

    @property
    def sums(self) -> int:
        return self.outputs * self.out**2


@functools.cache
def compiled_convolve(shape: Shape, kind: ir.Type, step: float, shift: int) -> Callable[..., None]:
    """Weights are (O / group, C, 25, group)."""
    channels, size, group = shape.channels, shape.size, shape.group
    out, half = shape.out, shape.out // 2

    def emit(code: Code, block: Value, last: Value, *given: Any) -> None:
        images, weight, bias, x, t, pooled = given
        images = code.rows(images, block, last, shape.inputs)
        pooled = code.rows(pooled, block, last, shape.outputs * half**2)
        x = code.address(x, block * (shape.inputs * LANES))
        t = code.address(t, block * (shape.sums * LANES))
        code.each_column(
            images,
            shape.inputs,
            lambda pixel, value: code.store(value.rounded(FLOAT, step, shift), x, pixel),
        )
        sums = [[code.variable(vector(FLOAT)) for _ in PLACES] for _ in range(group)]
        with (
            code.loop(0, shape.outputs // group) as part,
            code.loop(0, half) as row,
            code.loop(0, half) as column,
        ):
            for o in range(group):
                for total in sums[o]:
                    code.set(total, code.everywhere(bias, part * group + o))
            with code.loop(0, channels) as channel, code.loop(0, KERNEL) as ky:
                line = (channel * size + row * 2 + ky) * size + column * 2
                kernel = ((part * channels + channel) * KERNEL + ky) * (KERNEL * group)
                for kx in TAPS:
                    pixels = [code.load(x, line + (r * size + s + kx)) for r, s in PLACES]
                    for o in range(group):
                        w = code.everywhere(weight, kernel + (kx * group + o))
                        for total, pixel in zip(sums[o], pixels, strict=True):
                            code.add_product(total, w, pixel)
            for o in range(group):
                values = [rational_tanh(code.get(total)) for total in sums[o]]
                plane = part * group + o
                for value, (r, s) in zip(values, PLACES, strict=True):
                    code.store(value, t, (plane * out + row * 2 + r) * out + column * 2 + s)
                mean = ((values[0] + values[2]) + (values[1] + values[3])) * 0.25
                code.scatter(mean, pooled, (plane * half + row) * half + column)

    return compiled(emit, kind, *[FLOATS] * 5)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, step: float, shift: int
) -> tuple[Kept, Tensor]:
    """As reference.convolve. What is kept is in blocks."""
    count, shape = len(x), Shape(weight.shape[1], len(weight), x.shape[2])
    grouped = weight.view(-1, shape.group, shape.channels, KERNEL**2).permute(0, 2, 3, 1)
    rounded = bias.new_empty(blocks_of(count) * shape.inputs * LANES)
    t = bias.new_empty(blocks_of(count) * shape.sums * LANES)
    pooled = bias.new_empty(count, shape.outputs, shape.out // 2, shape.out // 2)
    function = compiled_convolve(shape, kind_of(x), step, shift)
    given = x.contiguous(), grouped.contiguous(), bias, rounded, t, pooled
    on_all(function, addresses(*given), rows=count, operations=count * shape.products)
    return (rounded, t), pooled


def emit_there(code: Code, last: Value) -> Value:
    """1 in the lanes from 0 to ``last``, 0 in the others."""
    lanes = ir.Constant(vector(FLOAT), ir.Undefined)
    for lane in range(LANES):
        there = code.builder.icmp_signed("<=", INT(lane), last.value)
        number = code.builder.uitofp(there, FLOAT)
        lanes = code.builder.insert_element(lanes, number, WORD(lane))
    return Value(code, lanes)


def emit_add_lanes(value: Value, pointer: Any, index: Value) -> None:
    """Add all numbers of ``value`` to a float64: a sum that is never rounded."""
    code, name = value.code, f"llvm.vector.reduce.fadd.v{LANES}f64"
    kind = ir.FunctionType(DOUBLE, [DOUBLE, vector(DOUBLE)])
    module = code.builder.module
    reduce = module.globals.get(name) or ir.Function(module, kind, name)
    place = code.address(pointer, index)
    given = code.builder.load(place), value.to(DOUBLE).value
    code.builder.store(code.builder.call(reduce, given, fastmath=("reassoc",)), place)


def emit_gradient(
    code: Code, shape: Shape, t: Any, pooled: Any, there: Value, g: Any, steps: int, coarse: Any
) -> None:
    """The gradient of the sums, into g (O, out, out + 2), each image's on a grid of its own.

    Args:
        there: 1 for each image of the block, 0 where there is none.
    """
    out, half, line = shape.out, shape.out // 2, shape.out + 2
    largest = code.variable(vector(FLOAT))
    code.set(largest, code.zeros())
    with (
        code.loop(0, shape.outputs) as o,
        code.loop(0, half) as row,
        code.loop(0, half) as column,
    ):
        up = code.gather(pooled, (o * half + row) * half + column) * 0.25 * there
        highest = code.get(largest)
        for r, s in PLACES:
            value = code.load(t, (o * out + row * 2 + r) * out + column * 2 + s)
            value = (-(value * value) + 1.0) * up
            code.store(value, g, (o * out + row * 2 + r) * line + column * 2 + (s + 1))
            highest = highest.clamp(min=value.abs())
        code.set(largest, highest)
    own = (code.get(largest).clamp(min=TINY) * (1 / steps)).power_of_two()
    step = own.clamp(min=code.copies(coarse, vector(FLOAT)))
    with code.loop(0, shape.outputs * out) as row:
        for at in range(1, out + 1):
            place = row * line + at
            code.store(code.load(g, place).on_grid(step), g, place)


def emit_to_weight(
    code: Code, shape: Shape, x: Any, g: Any, to_weight: Any, to_bias: Any, groups: int
) -> None:
    """Add the block's part of the gradients of weights and biases to float64 sums."""
    size, out, group, line = shape.size, shape.out, shape.group, shape.out + 2
    rows = out // groups
    sums = [[code.variable(vector(FLOAT)) for _ in TAPS] for _ in range(group)]
    with code.loop(0, groups) as chunk, code.loop(0, shape.outputs // group) as part:
        with code.loop(0, shape.channels) as channel, code.loop(0, KERNEL) as ky:
            for total in (total for totals in sums for total in totals):
                code.set(total, code.zeros())
            with code.loop(0, rows) as row, code.loop(0, out) as column:
                y = chunk * rows + row
                gs = [
                    code.load(g, ((part * group + o) * out + y) * line + column + 1)
                    for o in range(group)
                ]
                for kx in TAPS:
                    pixel = code.load(x, (channel * size + y + ky) * size + column + kx)
                    for o in range(group):
                        code.add_product(sums[o][kx], gs[o], pixel)
            for o in range(group):
                kernel = ((part * group + o) * shape.channels + channel) * KERNEL + ky
                for kx in TAPS:
                    emit_add_lanes(code.get(sums[o][kx]), to_weight, kernel * KERNEL + kx)
        for o in range(group):
            total = sums[o][0]
            code.set(total, code.zeros())
            with code.loop(0, rows) as row, code.loop(0, out) as column:
                place = ((part * group + o) * out + chunk * rows + row) * line + column + 1
                code.set(total, code.get(total) + code.load(g, place))
            emit_add_lanes(code.get(total), to_bias, part * group + o)


def emit_to_images(code: Code, shape: Shape, g: Any, weight: Any, to_x: Any) -> None:
    """The gradient of the images. Weights are (O, 25, C); g has a column of zeros at both ends."""
    channels, size, out = shape.channels, shape.size, shape.out
    sums = [[code.variable(vector(FLOAT)) for _ in PAIR] for _ in range(channels)]
    with code.loop(0, size) as row:
        first, last = (row - (out - 1)).clamp(min=0), row.clamp(max=KERNEL - 1)
        for column in range(0, size, 2):
            for total in (total for totals in sums for total in totals):
                code.set(total, code.zeros())
            with code.loop(0, shape.outputs) as o, code.loop(first, last + 1) as ky:
                line = (o * out + row - ky) * (out + 2)
                for kx in range(max(0, column - out + 1), min(KERNEL - 1, column + 1) + 1):
                    gs = [code.load(g, line + (1 + column - kx + s)) for s in PAIR]
                    for channel in range(channels):
                        place = ((o * KERNEL + ky) * KERNEL + kx) * channels + channel
                        w = code.everywhere(weight, place)
                        for s in PAIR:
                            code.add_product(sums[channel][s], w, gs[s])
            for channel in range(channels):
                for s in PAIR:
                    place = (row + channel * size) * size + (column + s)
                    code.scatter(code.get(sums[channel][s]), to_x, place)


@functools.cache
def compiled_convolve_back(
    shape: Shape, steps: int, groups: int, images: bool
) -> Callable[..., None]:
    def emit(code: Code, block: Value, last: Value, *given: Any) -> None:
        x, t, pooled, weight, to_x, g, to_weight, to_bias, coarse = given
        x = code.address(x, block * (shape.inputs * LANES))
        t = code.address(t, block * (shape.sums * LANES))
        pooled = code.rows(pooled, block, last, shape.sums // 4)
        there = emit_there(code, last - block * LANES)
        emit_gradient(code, shape, t, pooled, there, g, steps, coarse)
        emit_to_weight(code, shape, x, g, to_weight, to_bias, groups)
        if images:
            to_x = code.rows(to_x, block, last, shape.inputs)
            emit_to_images(code, shape, g, weight, to_x)

    return compiled(emit, *[FLOATS] * 6, DOUBLES, DOUBLES, FLOAT)


def convolve_back(
    kept: Kept, gradient: Tensor, weight: Tensor, to_x: bool, steps: int, groups: int, coarse: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As reference.convolve_back."""
    count, size = len(gradient), 2 * gradient.shape[2] + KERNEL - 1
    shape, weights = Shape(weight.shape[1], len(weight), size), weight.numel()
    to_images = gradient.new_empty(count, shape.channels, size, size) if to_x else None
    given = *kept, gradient.contiguous(), weight.permute(0, 2, 3, 1).contiguous()
    where = [*addresses(*given), 0 if to_images is None else to_images.data_ptr()]
    function = compiled_convolve_back(shape, steps, groups, to_x)
    sums: list[Tensor] = []  # of each thread
    free: list[tuple[Tensor, Tensor]] = []

    def work(part: tuple[int, int]) -> None:
        try:  # no other thread can take it in between
            total, g = free.pop()
        except IndexError:
            total = weight.new_zeros(weights + shape.outputs, dtype=torch.float64)
            g = weight.new_zeros(shape.outputs * shape.out * (shape.out + 2) * LANES)
            sums.append(total)
        function(*where, *addresses(g, total, total[weights:]), coarse, count, *part)
        free.append((total, g))

    threads.for_each(work, threads.parts(blocks_of(count), 2 * count * shape.products))
    total = torch.stack(sums).sum(0)
    return total[:weights].view_as(weight), total[weights:], to_images
