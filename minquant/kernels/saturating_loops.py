"""`saturating_matmul` in loops compiled by numba, the innermost along rows of b and of the result."""

from __future__ import annotations

import numpy as np
from numba import njit

from minquant.kernels.threads import in_parts

__all__ = ["multiply_pairs"]

OPERATIONS = 3
"""Of a pair, for each product of two numbers that `in_parts` counts: products are clipped, too."""


def multiply_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sums of operands that ``saturating_matmul`` has checked."""
    odd = a.shape[1] % 2
    rows = np.pad(b, ((0, odd), (0, 0))) if odd else np.ascontiguousarray(b)
    acc = np.zeros((len(a), b.shape[1]), np.int32)
    left = np.pad(a, ((0, 0), (0, odd))) if odd else np.ascontiguousarray(a)
    in_parts(
        lambda first, last: _add_pairs(left[first:last], rows, acc[first:last]),
        len(a),
        OPERATIONS * a.size * acc.shape[1],
    )
    return acc


@njit(cache=True, nogil=True)
def _add_pairs(a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> None:
    lowest, highest = np.int32(-(2**15)), np.int32(2**15 - 1)
    for m in range(a.shape[0]):
        total = acc[m]
        for k in range(0, a.shape[1], 2):
            first, second, row, next_row = np.int32(a[m, k]), np.int32(a[m, k + 1]), b[k], b[k + 1]
            for n in range(len(total)):
                pair = np.int32(first * np.int32(row[n]) + second * np.int32(next_row[n]))
                total[n] += min(max(pair, lowest), highest)
