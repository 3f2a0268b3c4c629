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

from minquant.kernels.isa import Isa
from minquant.kernels.packed import Packed

__all__ = ["enter", "pack", "room"]

LINE, SET_STRIDE = 64, 1024
"""Bytes of a cache line, and of a stride at which few lines of a first-level cache are used."""


def pack(b: np.ndarray, isa: Isa) -> Packed:
    """An int8 matrix (K, N) in panels."""
    K, N = b.shape
    steps, count = -(-K // isa.group), -(-N // isa.columns)
    panels = np.zeros((count, steps, isa.columns, isa.group), np.int8)
    sums = np.zeros(count * isa.columns, np.int32)
    _filler(isa.columns, isa.group)(b, panels, sums)
    return Packed(isa, (K, N), panels, sums)


@cache
def _filler(columns: int, group: int) -> Callable[..., None]:
    """Fills panels of these sizes, compiled for them so that its inner loops become vector instructions."""

    @njit(cache=True, nogil=True)
    def fill(b: np.ndarray, panels: np.ndarray, sums: np.ndarray) -> None:
        K, N = b.shape
        for p in range(panels.shape[0]):
            first = p * columns
            width = min(columns, N - first)
            for k in range(0, K - group + 1, group):
                if width == columns:
                    for n in range(columns):
                        for g in range(group):
                            panels[p, k // group, n, g] = b[k + g, first + n]
                else:
                    for n in range(width):
                        for g in range(group):
                            panels[p, k // group, n, g] = b[k + g, first + n]
            for k in range(K // group * group, K):
                for n in range(width):
                    panels[p, k // group, n, k % group] = b[k, first + n]
        for k in range(K):
            for n in range(N):
                sums[n] += b[k, n]

    return fill


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
