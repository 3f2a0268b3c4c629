"""The integer product on the CPU: a micro-kernel in the processor's own dot-product instruction, compiled by numba.

    for each block of rows               its bytes stay in the second-level cache
        for each panel of columns        its bytes stay in the first-level cache
            for each tile of rows
                for each group of K      rows × vectors sums live in registers until K is through

Bit-equal to ``reference.py``: integers are added exactly, in whatever order.
Source: Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numba import njit

from minquant.kernels.isa import ISAS, chosen
from minquant.kernels.kept import kept
from minquant.kernels.packed import Packed
from minquant.kernels.packing import enter, pack
from minquant.kernels.simd import load_tile, multiply_add, store_tile
from minquant.kernels.threads import in_parts

__all__ = ["matmul", "pack_weight"]

BLOCK = 200_000
"""Bytes of the left operand that stay in the second-level cache while all panels pass by."""


def pack_weight(b: np.ndarray) -> np.ndarray | Packed:
    """An int8 matrix (K, N) for many products; rows as they are where there is no instruction to pack for."""
    isa = chosen()
    return np.ascontiguousarray(b) if isa.name == "plain" else kept(b, isa.name, lambda: pack(b, isa))


def matmul(a: np.ndarray, b: np.ndarray | Packed, zero_point: int = 0) -> np.ndarray:
    """``acc[m, n] = Σ_k (a[m, k] - zero_point) · b[k, n]`` in int32, of operands that ``int8_matmul`` has checked.

    A zero point is for packed operands only: their sums begin at ``-zero_point · Σ_k b[k, n]``.
    """
    packed = b if isinstance(b, Packed) else pack_weight(b)
    if not isinstance(packed, Packed):
        return _plain(a, packed)
    out = np.empty((len(a), packed.shape[1]), np.int32)
    work = _work(a, packed, zero_point, out)
    in_parts(work, len(packed.panels), operations=2 * a.size * packed.shape[1])
    return out


def multiply(a: np.ndarray, b: Packed, zero_point: int, out: np.ndarray) -> None:
    """The same, into `out`, in this thread."""
    _work(a, b, zero_point, out)(0, len(b.panels))


def multiply_entered(entered: np.ndarray, b: Packed, zero_point: int, out: np.ndarray) -> None:
    """The same of a left operand that `enter` need not touch: of the instruction's dtype, with `zero_point` inside."""
    kernel = _kernel(ISAS.index(b.isa), _tile_rows(len(out), b.isa.rows))
    kernel(entered, b.panels, 0, len(b.panels), b.sums * np.int32(-zero_point), out)


def _work(a: np.ndarray, packed: Packed, zero_point: int, out: np.ndarray) -> Callable[[int, int], None]:
    """What computes all rows of some of the panels."""
    isa = packed.isa
    rows = _tile_rows(len(a), isa.rows)
    entered, shift = enter(a, isa, rows)
    start = packed.sums * np.int32(-(shift + zero_point))
    kernel = _kernel(ISAS.index(isa), rows)

    def work(first: int, last: int) -> None:
        kernel(entered, packed.panels, first, last, start, out)

    return work


@lru_cache(maxsize=1024)
def _tile_rows(M: int, most: int) -> int:
    """How high tiles should be, if a tile of r rows takes r + 1 units of time, missing rows included."""
    return min(range(1, most + 1), key=lambda r: (-(-M // r) * (r + 1), -r))


@cache
def _kernel(place: int, rows: int) -> Callable[..., None]:
    """The kernel of the instruction ``ISAS[place]`` for tiles of that many rows, compiled when it is first called."""
    isa = ISAS[place]
    columns, bytes_of_a, bytes_of_b = isa.columns, isa.group * isa.operand_dtype.itemsize, isa.columns * isa.group

    @njit(cache=True, nogil=True)
    def kernel(a: np.ndarray, panels: np.ndarray, first: int, last: int, start: np.ndarray, out: np.ndarray) -> None:
        steps, (M, N) = panels.shape[1], out.shape
        row_of_a, row_of_out = a.shape[1] * a.itemsize, 4 * N
        scratch = np.empty((rows, columns), np.int32)
        block = max(1, BLOCK // max(1, rows * row_of_a)) * rows
        for top in range(0, M, block):
            for p in range(first, last):
                panel = panels.ctypes.data + p * steps * bytes_of_b
                for m in range(top, min(top + block, M), rows):
                    values = a.ctypes.data + m * row_of_a
                    tile = load_tile(place, rows, start.ctypes.data + 4 * columns * p, 0)
                    for k in range(steps):
                        tile = multiply_add(place, tile, values + k * bytes_of_a, row_of_a, panel + k * bytes_of_b)
                    if m + rows <= M and (p + 1) * columns <= N:
                        store_tile(place, tile, out.ctypes.data + m * row_of_out + 4 * columns * p, row_of_out)
                    else:  # the result ends within the tile
                        store_tile(place, tile, scratch.ctypes.data, 4 * columns)
                        for i in range(min(rows, M - m)):
                            for n in range(p * columns, min((p + 1) * columns, N)):
                                out[m + i, n] = scratch[i, n - p * columns]

    return kernel


def _plain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    acc = np.zeros((a.shape[0], b.shape[1]), np.int32)
    _accumulate(np.ascontiguousarray(a), b, acc)
    return acc


@njit(cache=True, nogil=True)
def _accumulate(a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> None:
    """Loops for any processor. The innermost runs along a row of b and of the result, which the compiler vectorizes."""
    for m in range(a.shape[0]):
        for k in range(a.shape[1]):
            a_mk = np.int32(a[m, k])
            for n in range(b.shape[1]):
                acc[m, n] += a_mk * np.int32(b[k, n])
