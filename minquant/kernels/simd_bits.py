"""Weights of a few bits, unpacked in registers: what `simd.multiply_add` is for bytes, for words of packed codes.

A word of 32 bits holds ``32 / bits`` codes of one column, in four bytes, as the dot-product instructions want them: a
shift and a mask leave one code in each byte.

    code k of a word stands in byte ``k % 4``, from bit ``bits · (k // 4)`` on

Codes of 2 and 4 bits are unsigned, those of 8 signed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from minquant.kernels.isa import ISAS, Isa
from minquant.kernels.simd import (
    DOT,
    I8,
    I16,
    I32,
    PMADDWD,
    _at,
    _broadcast,
    _call,
    _literals,
    _load,
    _row,
    intrinsic,
)

__all__ = ["multiply_add_bits"]

PMADDUBSW = "llvm.x86.avx2.pmadd.ub.sw"
INT16_MAX = 2**15 - 1


def _unpacked(builder: Any, bits: int, words: Any) -> list[Any]:
    """Vectors of bytes, one code in each: those of the first four codes of every word, of the next four, and so on."""
    kind = ir.VectorType(I8, 4 * words.type.count)
    numbers = builder.bitcast(words, kind)
    if bits == 8:
        return [numbers]
    mask = ir.Constant(kind, [(1 << bits) - 1] * kind.count)
    return [
        builder.and_(builder.lshr(numbers, ir.Constant(kind, [shift] * kind.count)), mask)
        for shift in range(0, 8, bits)
    ]


# ---- acc + Σ values·codes of words -----------------------------------------------------------------------------------


def _dots_avx2(builder: Any, isa: Isa, bits: int, acc: Any, values: list[Any], codes: list[Any]) -> Any:
    """VPMADDUBSW adds pairs of products of uint8 and int8 in int16, VPMADDWD pairs of those in int32.

    The first saturates, but not here: a pair reaches 2·15·128 = 3,840 with 4 bits, so that 8 of them fit int16. Codes
    of 8 bits are multiplied in int16, bytes of even and odd places by themselves.
    """
    if bits == 8:
        return _dots_int16(builder, acc, values, codes)
    int16, kind = ir.VectorType(I16, 16), codes[0].type
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(int16, [kind, kind]), PMADDUBSW)
    fit = INT16_MAX // (2 * ((1 << bits) - 1) * 128)
    for first in range(0, len(codes), fit):
        total = ir.Constant(int16, [0] * 16)
        for value, code in zip(values[first : first + fit], codes[first : first + fit], strict=True):
            total = builder.add(total, builder.call(function, [code, builder.bitcast(value, kind)]))
        acc = builder.add(acc, _call(builder, PMADDWD, total, ir.Constant(int16, [1] * 16)))
    return acc


def _dots_int16(builder: Any, acc: Any, values: list[Any], codes: list[Any]) -> Any:
    """``acc + Σ values·codes`` of int8, in instructions that cannot saturate."""
    kind = ir.VectorType(I16, 16)
    eight = ir.Constant(kind, [8] * 16)
    for value, code in zip(values, codes, strict=True):
        both = builder.bitcast(value, kind), builder.bitcast(code, kind)
        even = [builder.ashr(builder.shl(x, eight), eight) for x in both]
        odd = [builder.ashr(x, eight) for x in both]
        for pair in (even, odd):
            acc = builder.add(acc, _call(builder, PMADDWD, *pair))
    return acc


def _dots_plain(builder: Any, isa: Isa, bits: int, acc: Any, values: list[Any], codes: list[Any]) -> Any:
    """In int32, byte by byte of each lane: arithmetic that every processor has."""
    wide = ir.VectorType(I32, codes[0].type.count)
    for value, code in zip(values, codes, strict=True):
        left, right = builder.sext(builder.bitcast(value, code.type), wide), builder.sext(code, wide)
        products = builder.mul(left, right)
        for byte in range(4):
            places = ir.Constant(acc.type, list(range(byte, wide.count, 4)))
            acc = builder.add(acc, builder.shuffle_vector(products, products, places))
    return acc


def _dots(builder: Any, isa: Isa, bits: int, acc: Any, values: list[Any], codes: list[Any]) -> Any:
    """One dot-product instruction for every four codes."""
    for value, code in zip(values, codes, strict=True):
        acc = DOT[isa.name](builder, isa, acc, value, builder.bitcast(code, acc.type))
    return acc


DOTS = {"avx2": _dots_avx2, "plain": _dots_plain}
"""Where the instruction of `simd` is not one for four bytes."""


# ---- what kernels call -----------------------------------------------------------------------------------------------


@intrinsic
def multiply_add_bits(
    context: Any, isa: Any, bits: Any, count: Any, tile: Any, a: Any, row_bytes: Any, words: Any
) -> Any:
    """``multiply_add_bits(isa, bits, count, tile, a, row_bytes, words)``: the tile plus the products of `count` words.

    `a` is the address of the values in the tile's first row, the next row's lie `row_bytes` behind; `words` that of the
    packed words, one for each column of the tile, and the next ones behind them.
    """
    if not _literals(isa, bits, count):
        return None
    kind, size, many = ISAS[isa.literal_value], bits.literal_value, count.literal_value
    dots = DOTS.get(kind.name, _dots)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *_, old, a, row_bytes, words = arguments
        columns = [_codes(builder, kind, size, many, words, j) for j in range(kind.vectors)]
        new = []
        for i in range(tile.count // kind.vectors):
            values = _values(builder, kind, 8 // size * many, _row(builder, a, row_bytes, i))
            for j, codes in enumerate(columns):
                acc = builder.extract_value(old, i * kind.vectors + j)
                new.append(dots(builder, kind, size, acc, values, codes))
        return cgutils.pack_array(builder, new)

    return tile(isa, bits, count, tile, a, row_bytes, words), code


def _codes(builder: Any, isa: Isa, bits: int, count: int, words: Any, j: int) -> list[Any]:
    """All codes of the j-th vector of columns."""
    codes = []
    for u in range(count):
        address = _at(builder, words, 4 * (u * isa.columns + isa.lanes * j))
        codes += _unpacked(builder, bits, _load(builder, address, ir.VectorType(I32, isa.lanes)))
    return codes


def _values(builder: Any, isa: Isa, count: int, address: Any) -> list[Any]:
    """Four bytes after another, each time in every lane."""
    loaded = [_load(builder, _at(builder, address, 4 * step), I32) for step in range(count)]
    return [_broadcast(builder, four, isa.lanes) for four in loaded]
