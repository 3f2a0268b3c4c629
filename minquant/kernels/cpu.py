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

from minquant.kernels.elements import fingerprint
from minquant.kernels.isa import ISAS, chosen
from minquant.kernels.kept import kept
from minquant.kernels.packed import Packed
from minquant.kernels.packing import LINE, enter, pack
from minquant.kernels.simd import load_tile, multiply_add, prefetch, store_tile
from minquant.kernels.threads import in_parts

__all__ = ["matmul", "multiply", "pack_weight", "room_for_sums", "tile_rows"]

BLOCK = 200_000
"""Bytes of the left operand that stay in the second-level cache while all panels pass by."""

FEW_ROWS, AHEAD = 4, 3072
"""Tiles of so few rows go through a panel faster than memory brings it: they ask for what lies so many bytes ahead."""


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
    isa, M = packed.isa, len(a)
    out, rows = room_for_sums(M, packed), tile_rows(M, isa.rows)
    entered, shift = enter(a, isa, rows)
    in_parts(
        lambda first, last: multiply(entered, packed, shift + zero_point, M, out, first, last),
        len(packed.panels),
        operations=2 * a.size * packed.shape[1],
    )
    return np.ascontiguousarray(out[:M, : packed.shape[1]])


def room_for_sums(M: int, b: Packed) -> np.ndarray:
    """Memory for M rows of sums in whole tiles, int32: a kernel knows no edges."""
    rows = tile_rows(M, b.isa.rows)
    return np.empty((-(-M // rows) * rows, len(b.panels) * b.isa.columns), np.int32)


def multiply(
    entered: np.ndarray, b: Packed, zero_point: int, M: int, out: np.ndarray, first: int = 0, last: int | None = None
) -> None:
    """M rows of sums into `out`, from `room_for_sums`, for some of the panels, in this thread.

    Args:
        entered: the left operand as `enter` makes it.
        b: the right operand.
        zero_point: of the left operand, the shift of `enter` added.
        M: rows that count; as many as whole tiles take are there and written.
        out: the sums.
        first: panel.
        last: panel, not included; all if left out.
    """
    kernel = _kernel(b.isa.place, tile_rows(M, b.isa.rows))
    start = b.sums * np.int32(-zero_point) if zero_point else b.zeros
    kernel(entered, b.panels, first, len(b.panels) if last is None else last, start, out)


@lru_cache(maxsize=1024)
def tile_rows(M: int, most: int) -> int:
    """How high tiles should be, if a tile of r rows takes r + 1 units of time, missing rows included."""
    return min(range(1, most + 1), key=lambda r: (-(-M // r) * (r + 1), -r))


@cache
def _kernel(place: int, rows: int) -> Callable[..., None]:
    """The kernel of the instruction ``ISAS[place]`` for tiles of that many rows, compiled when it is first called."""
    isa = ISAS[place]
    columns, bytes_of_a, bytes_of_b = isa.columns, isa.group * isa.operand_dtype.itemsize, isa.columns * isa.group
    asked_for, mark = bytes_of_b if rows <= FEW_ROWS else 0, fingerprint()

    @njit(cache=True, nogil=True)
    def kernel(a: np.ndarray, panels: np.ndarray, first: int, last: int, start: np.ndarray, out: np.ndarray) -> None:
        mark  # noqa: B018 (see elements.py)
        M, steps = out.shape[0], panels.shape[1]
        row_of_a, row_of_out = a.shape[1] * a.itemsize, 4 * out.shape[1]
        block = max(1, BLOCK // max(1, rows * row_of_a)) * rows
        for top in range(0, M, block):
            for p in range(first, last):
                panel = panels.ctypes.data + p * steps * bytes_of_b
                for m in range(top, min(top + block, M), rows):
                    values = a.ctypes.data + m * row_of_a
                    tile = load_tile(place, rows, start.ctypes.data + 4 * columns * p, 0)
                    for k in range(steps):
                        tile = multiply_add(place, tile, values + k * bytes_of_a, row_of_a, panel + k * bytes_of_b)
                        for line in range(0, asked_for, LINE):
                            prefetch(panel + k * bytes_of_b + AHEAD + line)
                    store_tile(place, tile, out.ctypes.data + m * row_of_out + 4 * columns * p, row_of_out)

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
