"""The product with a weight of few bits and a scale for every group of K: unpacked, multiplied, rescaled at once.

    for each panel of columns            its words are read once for every few rows, and once in all at M = 1
        for each tile of rows
            for some groups of K
                for each of them         codes are unpacked and multiplied in registers, sums left in the cache
                for each of them         y = rule(f(sum - zero points), x_scale, w_scale, y), a vector of columns

A word holds ``32 / bits`` codes of one column (`minquant.kernels.simd_bits`); weights of 3 bits are stored as 4, of 5
to 7 as 8. Codes are the integers moved to where the instruction wants them, their zero points alike. What a whole word
has beyond the end of a group is code 0 and value 0, which add nothing.

With x and codes as they enter, ``zx`` and ``z`` their zero points, and everything modulo 2³², which is exact as long as
the result fits int32:

    ``Σ (x - zx)(code - z) = Σ x·code - zx·Σ code - z·Σ (x - zx)``
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from minquant.kernels.cpu import tile_rows
from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.grouped_packing import enter, pack_codes, pack_scales, pack_zero_points
from minquant.kernels.isa import ISAS, chosen
from minquant.kernels.packed import GroupedWeight
from minquant.kernels.simd import load_tile, prefetch, store_tile
from minquant.kernels.simd_bits import multiply_add_bits
from minquant.kernels.simd_vectors import load_vector, spread, store_vector, to_float32
from minquant.kernels.threads import in_parts

__all__ = ["grouped_linear"]

GROUPS = 32
"""Whose sums wait for the float arithmetic in the first-level cache."""

WORDS = 2
"""Of each column that are multiplied at once, at M = 1. More rows leave no registers for that."""

AHEAD, LINE = 4096, 64
"""Bytes between the word that is multiplied and the one that is asked of memory; bytes that come at once."""

UNPACKING = 4
"""Rows whose products take about as long as reading, unpacking and rescaling."""

ROWS = 4
"""Of a tile at most: its sums and the unpacked codes of two steps fill the registers."""


def grouped_linear(
    qx: np.ndarray,
    x_scale: np.ndarray,
    zx: np.ndarray,
    weight: GroupedWeight,
    bias: np.ndarray,
    rule: Callable[[Any, Any, Any, Any], Any],
) -> np.ndarray:
    """``y = rule(f(acc_g), sx, sw_g, y)`` for each group g in ascending order, from 0 on; then ``y + bias``.

    ``acc_g[m, n] = Σ_k (qx[m, k] - zx)(qw[n, k] - zw[n, g])`` over the k of group g, exact.

    Args:
        qx: (M, K) int8 or uint8, any strides.
        x_scale: float32, one number or (M, 1).
        zx: int32, zero point of x, one number or (M, 1).
        weight: (N, K) in groups of a size with which no sum can leave int32.
        bias: (N,) float32.
        rule: the float arithmetic, of numbers or vectors alike (see ``elements.py``).

    Returns:
        (M, N) float32, bit-equal to the same in NumPy.
    """
    isa, (N, groups) = chosen(), weight.scale.shape
    M, size = len(qx), weight.size
    words, sums = pack_codes(weight, isa)
    scales, zero_points = pack_scales(weight.scale, isa), pack_zero_points(weight, isa)
    x, zeros, totals, scale_of_x = enter(qx, x_scale, zx, weight, isa, tile_rows(M, ROWS))
    out = np.empty((M, N), np.float32)
    each = np.zeros(len(words) * isa.columns, np.float32)
    each[:N] = bias
    flat = words.reshape(-1), sums.reshape(-1), scales.reshape(-1), zero_points
    affine = zero_points.size > 1
    if not affine:  # a single zero point is multiplied with once for all columns
        totals *= zero_points[0]
    kernel = _kernel(isa.place, tile_rows(M, ROWS), weight.stored_bits, affine, rule)

    def work(first: int, last: int) -> None:
        """Of some of the panels, all rows."""
        kernel(x, zeros, totals.reshape(-1), scale_of_x, *flat, groups, words.shape[2], each, first, last, out)

    in_parts(work, len(words), operations=2 * (M + UNPACKING) * N * groups * size)
    return out


@cache
def _kernel(place: int, rows: int, bits: int, affine: bool, rule: Callable[..., Any]) -> Callable[..., None]:
    """The kernel of the instruction ``ISAS[place]`` for tiles of that many rows and codes of that many bits."""
    isa = ISAS[place]
    columns, lanes, mark = isa.columns, isa.lanes, fingerprint(rule)
    values, count = 32 // bits, max(1, WORDS // rows)
    prepare(rule)

    @njit(cache=True, nogil=True)
    def kernel(
        x: np.ndarray,
        zeros: np.ndarray,
        totals: np.ndarray,
        x_scale: np.ndarray,
        words: np.ndarray,
        sums: np.ndarray,
        scales: np.ndarray,
        zero_points: np.ndarray,
        groups: int,
        units: int,
        bias: np.ndarray,
        first: int,
        last: int,
        out: np.ndarray,
    ) -> None:
        mark  # noqa: B018 (see elements.py)
        (M, N), row_bytes, flat = out.shape, x.shape[1], out.reshape(-1)
        nothing, acc = np.zeros(columns, np.int32), np.empty(GROUPS * rows * columns, np.int32)
        y = np.empty(rows * columns, np.float32)
        for p in range(first, last):
            for top in range(0, len(x), rows):
                y[:] = 0
                for start in range(0, groups, GROUPS):
                    stop = min(start + GROUPS, groups)
                    value = x.ctypes.data + top * row_bytes + start * units * values
                    word = words.ctypes.data + (p * groups + start) * units * 4 * columns
                    for g in range(stop - start):
                        of_group = (p * groups + start + g) * columns
                        prefetch(scales.ctypes.data + 4 * of_group)
                        prefetch(sums.ctypes.data + sums.itemsize * of_group)
                        tile = load_tile(place, rows, nothing.ctypes.data, 0)
                        for _ in range(units // count):
                            tile = multiply_add_bits(place, bits, count, tile, value, row_bytes, word)
                            for line in range(0, 4 * columns * count, LINE):
                                prefetch(word + AHEAD + line)
                            value += values * count
                            word += 4 * columns * count
                        for _ in range(units % count):
                            tile = multiply_add_bits(place, bits, 1, tile, value, row_bytes, word)
                            value += values
                            word += 4 * columns
                        store_tile(place, tile, acc.ctypes.data + 4 * g * rows * columns, 4 * columns)
                    for i in range(rows):
                        zx, scale = spread(place, zeros, top + i), spread(place, x_scale, top + i)
                        for j in range(0, columns, lanes):
                            result = load_vector(place, y, i * columns + j)
                            for g in range(start, stop):
                                of = (p * groups + g) * columns + j
                                exact = load_vector(place, acc, ((g - start) * rows + i) * columns + j)
                                exact = exact - load_vector(place, sums, of) * zx
                                total = spread(place, totals, (top + i) * groups + g)
                                if affine:
                                    exact = exact - load_vector(place, zero_points, of) * total
                                else:
                                    exact = exact - total
                                result = rule(to_float32(exact), scale, load_vector(place, scales, of), result)
                            store_vector(result, y, i * columns + j)
                there = min(columns, N - p * columns)
                for i in range(min(rows, M - top)):
                    for j in range(0, there - there % lanes, lanes):
                        sum_ = load_vector(place, y, i * columns + j) + load_vector(place, bias, p * columns + j)
                        store_vector(sum_, flat, (top + i) * N + p * columns + j)
                    for n in range(there - there % lanes, there):
                        out[top + i, p * columns + n] = y[i * columns + n] + bias[p * columns + n]

    return kernel
