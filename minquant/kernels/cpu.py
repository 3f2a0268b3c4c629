"""The integer kernels as compiled loops (numba), bit-equal to ``reference.py``.

The inner loop runs along a row of ``b`` and of the result, so that every load is contiguous and the compiler
turns it into vector instructions; with the last two loops exchanged it would stride down columns of ``b``.
"""

from __future__ import annotations

import numpy as np
from numba import njit


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``acc[m, n] = Σ_k a[m, k] · b[k, n]`` in int32, of operands that ``int8_matmul`` has checked."""
    # Contiguous operands: one compiled version a dtype, and unit strides for the inner loop.
    acc = np.zeros((a.shape[0], b.shape[1]), np.int32)
    _accumulate(np.ascontiguousarray(a), np.ascontiguousarray(b), acc)
    return acc


@njit(cache=True, nogil=True)
def _accumulate(a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> None:
    for m in range(a.shape[0]):
        for k in range(a.shape[1]):
            a_mk = np.int32(a[m, k])
            for n in range(b.shape[1]):
                acc[m, n] += a_mk * np.int32(b[k, n])
