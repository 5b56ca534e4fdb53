"""What a compiled function consists of, written with Python's own operators.

A :class:`Value` is what one instruction computes: LANES numbers at once, or one whole number.
`a * b + c` on Values does not compute. It emits the instructions that will.

Each instruction is one IEEE 754 operation, rounded by itself. Only :meth:`Code.add_product` lets
the processor fuse its two, because no sum that it is used for is ever rounded.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

FLOAT, DOUBLE, BYTE = ir.FloatType(), ir.DoubleType(), ir.IntType(8)
INT, WORD = ir.IntType(64), ir.IntType(32)
FLOATS, DOUBLES, BYTES, INTS = (kind.as_pointer() for kind in (FLOAT, DOUBLE, BYTE, INT))
C_TYPES: dict[ir.Type, Any] = {
    FLOAT: ctypes.c_float,
    DOUBLE: ctypes.c_double,
    INT: ctypes.c_int64,
    BYTE: ctypes.c_uint8,
}
# Numbers in a vector: the float32 of a register of AVX-512, or of AVX
LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8


def vector(kind: ir.Type) -> ir.VectorType:
    return ir.VectorType(kind, LANES)


class Value:
    """LANES numbers, or one whole number, that the compiled function will have."""

    def __init__(self, code: "Code", value: ir.Value) -> None:
        self.code, self.value = code, value

    def _with(self, other: Any, floats: str, whole: str) -> "Value":
        builder = self.code.builder
        kind = getattr(self.value.type, "element", self.value.type)
        emit = getattr(builder, whole if kind in (INT, WORD) else floats)
        return Value(self.code, emit(self.value, self.code.constant(other, self.value.type)))

    def __add__(self, other: Any) -> "Value":
        return self._with(other, "fadd", "add")

    def __sub__(self, other: Any) -> "Value":
        return self._with(other, "fsub", "sub")

    def __mul__(self, other: Any) -> "Value":
        return self._with(other, "fmul", "mul")

    def __truediv__(self, other: Any) -> "Value":
        return self._with(other, "fdiv", "sdiv")

    def __neg__(self) -> "Value":
        return Value(self.code, self.code.builder.fneg(self.value))

    def clamp(self, min: Any = None, max: Any = None) -> "Value":
        """As torch's: NaN stays NaN."""
        builder, value = self.code.builder, self.value
        compare = builder.icmp_signed if value.type == INT else builder.fcmp_ordered
        for limit, sign in ((min, "<"), (max, ">")):
            if limit is not None:
                limit = self.code.constant(limit, value.type)
                value = builder.select(compare(sign, value, limit), limit, value)
        return Value(self.code, value)

    def __gt__(self, other: Any) -> "Value":
        """True or false in each lane."""
        limit = self.code.constant(other, self.value.type)
        return Value(self.code, self.code.builder.fcmp_ordered(">", self.value, limit))

    def double(self) -> "Value":
        return self.to(DOUBLE)

    def round(self) -> "Value":
        """As torch's: to the nearest whole number, of two equally near to the even one."""
        return self.on_grid(1.0)

    def to(self, kind: ir.Type) -> "Value":
        """Of float32, or of whole numbers from 0 on: as FLOAT or DOUBLE."""
        builder, own = self.code.builder, self.value.type.element
        if own == kind:
            return self
        emit = builder.fpext if own == FLOAT else builder.uitofp
        return Value(self.code, emit(self.value, vector(kind)))

    def single(self) -> "Value":
        return Value(self.code, self.code.builder.fptrunc(self.value, vector(FLOAT)))

    def _bits(self, mask: int) -> "Value":
        builder = self.code.builder
        bits = builder.bitcast(self.value, vector(WORD))
        bits = builder.and_(bits, ir.Constant(vector(WORD), [mask] * LANES))
        return Value(self.code, builder.bitcast(bits, vector(FLOAT)))

    def abs(self) -> "Value":
        return self._bits(0x7FFFFFFF)

    def power_of_two(self) -> "Value":
        """As grids.power_of_two."""
        return self._bits(0x7F800000) * 2.0

    def maximum(self, other: "Value") -> "Value":
        """As torch's: NaN if one of them is NaN."""
        builder = self.code.builder
        keep = builder.fcmp_unordered(">", self.value, other.value)
        other_is_nan = builder.fcmp_unordered("uno", other.value, other.value)
        keep = builder.and_(keep, builder.not_(other_is_nan))
        return Value(self.code, builder.select(keep, self.value, other.value))

    def on_grid(self, step: Any) -> "Value":
        """As grids.on_grid."""
        digits = 24 if self.value.type == vector(FLOAT) else 53
        shift = self.code.copies(step, self.value.type) * (1.5 * 2.0 ** (digits - 1))
        return (self + shift) - shift

    def rounded(self, kind: ir.Type, step: Any, shift: int = 0) -> "Value":
        """As ``kind``, on the grid of ``step``. Bytes are on it; they lose ``shift``."""
        if self.value.type != vector(BYTE):
            return self.to(kind).on_grid(step)
        return self.to(kind) - shift if shift else self.to(kind)

    def not_all_zero(self) -> "Value":
        """1 if any of the numbers is not 0, or is NaN; else 0."""
        builder = self.code.builder
        which = builder.fcmp_unordered("!=", self.value, self.code.zeros(DOUBLE).value)
        bits = builder.bitcast(which, ir.IntType(LANES))
        return Value(self.code, builder.zext(builder.icmp_unsigned("!=", bits, bits.type(0)), INT))


class Code:
    """The body of a compiled function, while it is written."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def constant(self, number: Any, kind: ir.Type) -> ir.Value:
        if isinstance(number, Value):
            return number.value
        if isinstance(kind, ir.VectorType):
            if kind.element == FLOAT:
                number = ctypes.c_float(number).value
            return ir.Constant(kind, [number] * LANES)
        return ir.Constant(kind, number)

    def copies(self, number: Any, kind: ir.VectorType) -> Value:
        """A number in all lanes: a Python number, an argument, or a Value that has them already."""
        if isinstance(number, ir.Value):
            undefined = ir.Constant(kind, ir.Undefined)
            first = self.builder.insert_element(undefined, number, WORD(0))
            lanes = ir.Constant(vector(WORD), [0] * LANES)
            return Value(self, self.builder.shuffle_vector(first, undefined, lanes))
        return Value(self, self.constant(number, kind))

    def zeros(self, kind: ir.Type = FLOAT) -> Value:
        return Value(self, self.constant(0.0, vector(kind)))

    # Variables live on the stack until LLVM puts them into registers

    def variable(self, kind: ir.Type, size: int = 1) -> ir.Value:
        """Memory of the function's own, for ``size`` numbers or vectors of ``kind``."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind, size)

    def get(self, variable: ir.Value) -> Value:
        return Value(self, self.builder.load(variable))

    def set(self, variable: ir.Value, value: Value) -> None:
        self.builder.store(value.value, variable)

    def add_product(self, variable: ir.Value, a: Value, b: Value) -> None:
        """variable += a * b, as one operation or as two: a sum that is never rounded."""
        product = self.builder.fmul(a.value, b.value, flags=("contract",))
        total = self.builder.fadd(self.builder.load(variable), product, flags=("contract",))
        self.builder.store(total, variable)

    @contextmanager
    def loop(self, first: Any, last: Any) -> Iterator[Value]:
        """For each whole number from ``first`` to before ``last``, at least once."""
        builder, index = self.builder, self.variable(INT)
        builder.store(self.constant(first, INT), index)
        body, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(body)
        builder.position_at_end(body)
        yield Value(self, builder.load(index))
        following = builder.add(builder.load(index), INT(1))
        builder.store(following, index)
        more = builder.icmp_signed("<", following, self.constant(last, INT))
        builder.cbranch(more, body, after)
        builder.position_at_end(after)

    # Memory: a pointer and a Value that counts numbers, or vectors of LANES numbers

    def address(self, pointer: ir.Value, index: Any) -> ir.Value:
        return self.builder.gep(pointer, [self.constant(index, INT)])

    def _lanes(self, pointer: ir.Value, index: Any) -> tuple[ir.Value, int]:
        """Where LANES numbers begin, and their alignment: that of a single number."""
        kind = pointer.type.pointee
        place = self.builder.bitcast(self.address(pointer, index), vector(kind).as_pointer())
        return place, ctypes.sizeof(C_TYPES[kind])

    def load(self, pointer: ir.Value, index: Value, unit: int = LANES) -> Value:
        """LANES neighbours. ``index`` counts units of so many numbers."""
        place, align = self._lanes(pointer, index * unit)
        return Value(self, self.builder.load(place, align=align))

    def store(self, value: Value, pointer: ir.Value, index: Value, unit: int = LANES) -> None:
        place, align = self._lanes(pointer, index * unit)
        self.builder.store(value.value, place, align=align)

    def everywhere(self, pointer: ir.Value, index: Value) -> Value:
        """The number at ``index``, in all lanes."""
        number = self.builder.load(self.address(pointer, index))
        return self.copies(number, vector(number.type))

    def whole(self, pointer: ir.Value, index: Value) -> Value:
        """The whole number at ``index``."""
        return Value(self, self.builder.load(self.address(pointer, index)))

    def integer(self, number: int) -> Value:
        return Value(self, INT(number))

    def rows(self, pointer: ir.Value, block: Value, last: Value, length: int) -> list[ir.Value]:
        """Where the rows of a block begin, each of ``length`` numbers. ``last`` fills it up."""
        numbers = ((block * LANES + lane).clamp(max=last) for lane in range(LANES))
        return [self.address(pointer, number * length) for number in numbers]

    def gather(self, rows: Sequence[ir.Value], index: Value) -> Value:
        """The number at ``index`` of each row."""
        found = ir.Constant(vector(rows[0].type.pointee), ir.Undefined)
        for lane, row in enumerate(rows):
            number = self.builder.load(self.address(row, index))
            found = self.builder.insert_element(found, number, WORD(lane))
        return Value(self, found)

    def each_column(
        self, rows: Sequence[ir.Value], length: int, work: Callable[[Value, Value], None]
    ) -> None:
        """Call ``work`` on each index below ``length`` and the numbers there of each row."""
        tiles = length // LANES
        if tiles:
            with self.loop(0, tiles) as tile:
                first = tile * LANES
                for column, value in enumerate(self._tile(rows, first)):
                    work(first + column, value)
        if length % LANES:
            with self.loop(tiles * LANES, length) as index:
                work(index, self.gather(rows, index))

    def _tile(self, rows: Sequence[ir.Value], first: Value) -> list[Value]:
        """LANES columns of the rows. A transposition in log2(LANES) steps, after Eklundh (1972)."""
        tile, half = [self.load(row, first, 1).value for row in rows], LANES // 2
        while half:
            for row in (row for row in range(LANES) if not row & half):
                pair = tile[row], tile[row + half]
                for place, kept in ((row, 0), (row + half, half)):
                    lanes = [
                        lane - (lane & half) + kept + (LANES if lane & half else 0)
                        for lane in range(LANES)
                    ]
                    which = ir.Constant(vector(WORD), lanes)
                    tile[place] = self.builder.shuffle_vector(*pair, which)
            half //= 2
        return [Value(self, column) for column in tile]

    def scatter(self, value: Value, rows: Sequence[ir.Value], index: Value) -> None:
        """To the number at ``index`` of each row. Lanes beyond the last row are overwritten."""
        for lane, row in reversed([*enumerate(rows)]):
            number = self.builder.extract_element(value.value, WORD(lane))
            self.builder.store(number, self.address(row, index))
