"""The vector instructions, as functions that numba compiles: what Python has no words for, and nothing else.

A tile of the result is a tuple of vectors of int32, row by row; it lives in the processor's registers while a kernel
adds to it. Addresses are plain integers: nothing here knows where an array ends, so whoever calls must.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

from minquant.kernels.isa import ISAS, Isa

__all__ = ["interleave", "load_tile", "multiply_add", "prefetch", "store_tile"]

intrinsic: Any = extending.intrinsic
"""Its functions are called without their first argument, the context, which numba passes itself."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


class Int32Vector(types.Type):
    """A register of int32 numbers."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"int32x{lanes}")
        self.lanes = lanes


@register_model(Int32Vector)
class Int32VectorModel(models.PrimitiveModel):
    """To LLVM, it is a vector."""

    def __init__(self, manager: Any, numba_type: Int32Vector) -> None:
        super().__init__(manager, numba_type, ir.VectorType(I32, numba_type.lanes))


# ---- the dot-product instructions ------------------------------------------------------------------------------------


def _call(builder: Any, name: str, *operands: Any) -> Any:
    """An LLVM intrinsic that returns what its first operand is, or a vector of int32 for pmadd."""
    returned = operands[0].type if name != PMADDWD else ir.VectorType(I32, 8)
    function = ir.FunctionType(returned, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), operands)


PMADDWD = "llvm.x86.avx2.pmadd.wd"


def _dot_vnni(builder: Any, isa: Isa, acc: Any, a: Any, b: Any) -> Any:
    """``acc + Σ₄ a·b`` of uint8 and int8: VPDPBUSD."""
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * isa.lanes}", acc, a, b)


def _dot_avx2(builder: Any, isa: Isa, acc: Any, a: Any, b: Any) -> Any:
    """``acc + Σ₂ a·b`` of int16: VPMADDWD, then VPADDD. Two products of 255·128 at most fit int32 easily."""
    int16 = ir.VectorType(I16, 2 * isa.lanes)
    return builder.add(acc, _call(builder, PMADDWD, builder.bitcast(a, int16), b))


def _dot_neon(builder: Any, isa: Isa, acc: Any, a: Any, b: Any) -> Any:
    """``acc + Σ₄ a·b`` of int8: LLVM makes SDOT of it."""
    wide = ir.VectorType(I32, 4 * isa.lanes)
    int8 = ir.VectorType(I8, 4 * isa.lanes)
    products = builder.mul(builder.sext(builder.bitcast(a, int8), wide), builder.sext(builder.bitcast(b, int8), wide))
    name = f"llvm.vector.partial.reduce.add.v{isa.lanes}i32.v{4 * isa.lanes}i32"
    return _call(builder, name, acc, products)


DOT = {"avx512vnni": _dot_vnni, "avxvnni": _dot_vnni, "avx2": _dot_avx2, "neon": _dot_neon}


# ---- memory ----------------------------------------------------------------------------------------------------------


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _at(builder: Any, address: Any, offset: int) -> Any:
    return builder.add(address, ir.Constant(I64, offset))


def _row(builder: Any, address: Any, row_bytes: Any, i: int) -> Any:
    return builder.add(address, builder.mul(row_bytes, ir.Constant(I64, i)))


def _broadcast(builder: Any, number: Any, lanes: int) -> Any:
    """A number in every lane."""
    kind = ir.VectorType(number.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def _columns(builder: Any, isa: Isa, address: Any, j: int) -> Any:
    """The j-th vector of one step of a panel; avx2 widens its int8 to int16 on the way."""
    if isa.name != "avx2":
        return _load(builder, _at(builder, address, 4 * isa.lanes * j), ir.VectorType(I32, isa.lanes))
    int8 = _load(builder, _at(builder, address, 2 * isa.lanes * j), ir.VectorType(I8, 2 * isa.lanes))
    return builder.sext(int8, ir.VectorType(I16, 2 * isa.lanes))


def _literals(*arguments: Any) -> bool:
    """Whether numba knows them as constants. It asks a second time with them as such."""
    return all(isinstance(argument, types.IntegerLiteral) for argument in arguments)


# ---- what kernels call -----------------------------------------------------------------------------------------------


@intrinsic
def load_tile(context: Any, isa: Any, rows: Any, address: Any, row_bytes: Any) -> Any:
    """``load_tile(isa, rows, address, row_bytes)``: a tile from memory; `isa` is a place in `ISAS`."""
    if not _literals(isa, rows):
        return None
    kind, count = ISAS[isa.literal_value], rows.literal_value
    vector = Int32Vector(kind.lanes)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = [
            _load(
                builder,
                _at(builder, _row(builder, arguments[2], arguments[3], i), 4 * kind.lanes * j),
                ir.VectorType(I32, kind.lanes),
            )
            for i in range(count)
            for j in range(kind.vectors)
        ]
        return cgutils.pack_array(builder, loaded)

    return types.UniTuple(vector, count * kind.vectors)(isa, rows, address, row_bytes), code


@intrinsic
def multiply_add(context: Any, isa: Any, tile: Any, a: Any, row_bytes: Any, b: Any) -> Any:
    """``multiply_add(isa, tile, a, row_bytes, b)``: the tile plus one step of K.

    `a` is the address of the step's values in the tile's first row, the next row's lie `row_bytes` behind; `b` that of
    the step in a packed panel.
    """
    if not _literals(isa):
        return None
    kind = ISAS[isa.literal_value]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, old, a, row_bytes, b = arguments
        columns = [_columns(builder, kind, b, j) for j in range(kind.vectors)]
        new = []
        for i in range(tile.count // kind.vectors):
            values = _broadcast(builder, _load(builder, _row(builder, a, row_bytes, i), I32), kind.lanes)
            for j, column in enumerate(columns):
                acc = builder.extract_value(old, i * kind.vectors + j)
                new.append(DOT[kind.name](builder, kind, acc, values, column))
        return cgutils.pack_array(builder, new)

    return tile(isa, tile, a, row_bytes, b), code


@intrinsic
def store_tile(context: Any, isa: Any, tile: Any, address: Any, row_bytes: Any) -> Any:
    """``store_tile(isa, tile, address, row_bytes)``: the tile to memory."""
    if not _literals(isa):
        return None
    kind = ISAS[isa.literal_value]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, value, address, row_bytes = arguments
        for place in range(tile.count):
            i, j = divmod(place, kind.vectors)
            to = _at(builder, _row(builder, address, row_bytes, i), 4 * kind.lanes * j)
            pointer = builder.inttoptr(to, ir.VectorType(I32, kind.lanes).as_pointer())
            builder.store(builder.extract_value(value, place), pointer, align=1)
        return context.get_dummy_value()

    return types.void(isa, tile, address, row_bytes), code


@intrinsic
def interleave(context: Any, columns: Any, group: Any, address: Any, row_bytes: Any, to: Any) -> Any:
    """``interleave(columns, group, address, row_bytes, to)``: one step of a panel, from the rows of K that it takes.

    Of `group` rows of int8, as many neighbours as the panel has columns, written column by column.
    """
    if not _literals(columns, group):
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, address, row_bytes, to = arguments
        int8 = ir.VectorType(I8, columns.literal_value)
        rows = [_load(builder, _row(builder, address, row_bytes, i), int8) for i in range(group.literal_value)]
        while len(rows) > 1:  # rows 0 and 2, 1 and 3, then both results: so each column's bytes come out in order
            half = len(rows) // 2
            rows = [_zipped(builder, even, odd) for even, odd in zip(rows[:half], rows[half:], strict=True)]
        builder.store(rows[0], builder.inttoptr(to, rows[0].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(columns, group, address, row_bytes, to), code


def _zipped(builder: Any, even: Any, odd: Any) -> Any:
    """The elements of two vectors by turns."""
    count = even.type.count
    places = [place for i in range(count) for place in (i, count + i)]
    return builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(I32, 2 * count), places))


@intrinsic
def prefetch(context: Any, address: Any) -> Any:
    """``prefetch(address)``: begins to bring the line of memory there into the cache. Any address will do."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, *(ir.Constant(I32, flag) for flag in (0, 3, 1))])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(address), code
