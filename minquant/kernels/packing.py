"""The operands as the micro-kernel reads them: the right one in panels, the left one with whole groups of K.

A panel holds the columns that a tile of the result is wide, and of them K in groups of what one instruction adds, so
that the kernel reads every byte of it once, one after the other:

    ``panels[p, k // g, n % columns, k % g] = b[k, n]``  with p = n // columns, g = group

Rows and columns that are missing to a whole group or panel are zeros, which add nothing.

An instruction that wants its left operand uint8 where it is int8, or the other way round, gets ``a + 128`` (or - 128):
``Σ (a + s)·b = Σ a·b + s·Σ b``, so the tile begins at ``-s·Σ b``, a number for each column.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from minquant.kernels.elements import fingerprint
from minquant.kernels.isa import Isa
from minquant.kernels.packed import Packed
from minquant.kernels.simd import interleave

__all__ = ["enter", "pack", "room"]

LINE, SET_STRIDE = 64, 1024
"""Bytes of a cache line, and of a stride at which few lines of a first-level cache are used."""

LINES_OF_A_ROW, UNITS = 4, 16
"""How much of a row is packed at a time: so little that what is written meanwhile stays in the first-level cache."""


def pack(b: np.ndarray, isa: Isa) -> Packed:
    """An int8 matrix (K, N) in panels."""
    K, N = b.shape
    steps, count = -(-K // isa.group), -(-N // isa.columns)
    panels = np.empty((count, steps, isa.columns, isa.group), np.int8)
    sums = np.empty(count * isa.columns, np.int32)
    whole = (steps * isa.group, count * isa.columns)
    if b.flags.f_contiguous and not b.flags.c_contiguous:  # a weight (N, K), transposed
        units = _whole(b.T, whole[::-1]).view(f"u{isa.group}")
        _turn(units, panels.reshape(count, steps, -1).view(units.dtype), sums)
    else:
        _filler(isa.columns, isa.group)(_whole(b, whole), panels, sums)
    return Packed(isa, (K, N), panels, sums)


def _whole(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """With zeros up to that shape, row after row in memory."""
    if matrix.shape == shape:
        return np.ascontiguousarray(matrix)
    whole = np.zeros(shape, np.int8)
    whole[: len(matrix), : matrix.shape[1]] = matrix
    return whole


@cache
def _filler(columns: int, group: int) -> Callable[..., None]:
    """Fills panels of these sizes from whole rows of K, some panels at a time: whole cache lines of a row."""
    together, mark = max(1, LINES_OF_A_ROW * LINE // columns), fingerprint()

    @njit(cache=True, nogil=True)
    def fill(b: np.ndarray, panels: np.ndarray, sums: np.ndarray) -> None:
        mark  # noqa: B018 (see elements.py)
        (count, steps), N = panels.shape[:2], b.shape[1]
        for begin in range(0, count, together):
            for k in range(steps):
                row = b.ctypes.data + k * group * N
                for p in range(begin, min(count, begin + together)):
                    to = panels.ctypes.data + (p * steps + k) * columns * group
                    interleave(columns, group, row + p * columns, N, to)
        sums[:] = 0
        for k in range(len(b)):
            row_of_b = b[k]
            for n in range(N):
                sums[n] += row_of_b[n]

    return fill


@njit(cache=True, nogil=True)
def _turn(units: np.ndarray, panels: np.ndarray, sums: np.ndarray) -> None:
    """Fills panels (P, steps, columns) from the columns' own rows (N, steps); a unit is one column's group of bytes."""
    count, steps, columns = panels.shape
    for p in range(count):
        for begin in range(0, steps, UNITS):
            for n in range(columns):
                row = units[p * columns + n]
                for k in range(begin, min(steps, begin + UNITS)):
                    panels[p, k, n] = row[k]
    rows = units.view(np.int8)
    for n in range(len(rows)):
        total = np.int32(0)
        for value in rows[n]:
            total += np.int32(value)
        sums[n] = total


def enter(a: np.ndarray, isa: Isa, rows: int) -> tuple[np.ndarray, int]:
    """The left operand (M, K) as the instruction takes it, in whole tiles of `rows` and whole groups; and the shift s.

    Where nothing is missing it stays where it is. Otherwise rows get room between them where they would all fall into
    one set of the first-level cache, and push each other out.
    """
    M, K = a.shape
    wanted, shape = isa.operand_dtype, (-(-M // rows) * rows, -(-K // isa.group) * isa.group)
    if a.dtype == wanted and a.shape == shape and a.flags.c_contiguous:
        return a, 0
    entered, shift = room(shape[0], K, isa), isa.shift(a.dtype)
    if shift:
        np.bitwise_xor(a.view(wanted), wanted.type(shift), out=entered[:M, :K])
    else:
        entered[:M, :K] = a
    return entered, shift


def room(rows: int, K: int, isa: Isa) -> np.ndarray:
    """Zeros for a left operand: whole groups, and a line between rows that would share a set of the cache."""
    length, wanted = -(-K // isa.group) * isa.group, isa.operand_dtype
    between = LINE // wanted.itemsize if length * wanted.itemsize % SET_STRIDE == 0 else 0
    return np.zeros((rows, length + between), wanted)
