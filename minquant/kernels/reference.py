"""The specification of the integer kernels: the plainest NumPy that is right."""

from __future__ import annotations

import numpy as np


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` after widening both operands, which ``int8_matmul`` has checked, to int32."""
    return a.astype(np.int32) @ b.astype(np.int32)  # (M, K) @ (K, N) -> (M, N)
