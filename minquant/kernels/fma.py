"""The fused multiply-add of processors, rounded once, which torch's vector code uses and NumPy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["fma"]


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """``f(a·b + c)``, rounded to float32 once.

    The product of two float32 numbers, or of one and an integer below 2²⁹, is exact in float64; the sum may not be.
    Where it is not, the neighbour whose last bit is 1 is taken: it is never a tie between two float32 numbers, so
    that the second rounding goes the right way.

    Args:
        a: float32 numbers, or integers below 2²⁹.
        b: float32 numbers; a and b broadcast.
        c: float32 numbers or integers that broadcast with them.

    Source: Boldo and Melquiond 2008 (Emulation of FMA and correctly rounded sums), "rounding to odd".
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN, as the processor has them
        product = np.multiply(a, b, dtype=np.float64)
        total = np.asarray(product + c)
        of_c = total - product
        error = (product - (total - of_c)) + (c - of_c)
        to_odd = (error != 0) & (total.view(np.int64) % 2 == 0) & np.isfinite(total)
        return np.where(to_odd, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)
