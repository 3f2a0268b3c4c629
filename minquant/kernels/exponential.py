"""eˣ of sums and products alone, so that NumPy on arrays and compiled loops on numbers get the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["exp_below"]

LOWEST = np.float32(-88)  # its power of two, 2⁻¹²⁷, counts as 0 here
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # 9 bits, so that products with whole numbers up to 127 are exact
LN2_LOW = np.float32(-2.12194440054690583e-4)
C6, C5, C4 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C3, C2, C1 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ONE, BIAS = np.float32(1), np.int32(127)


def exp_below(x: Any) -> Any:
    """eˣ for float32 x <= 0 (NaN stays), within 2 units in the last place; below 2⁻¹²⁶ it is 0.

    eˣ = 2ⁿ eʳ with n = round(x / ln 2) and r = x − n ln 2, at most (ln 2)/2 in size, where a polynomial is near eʳ.
    Source: Cephes Mathematical Library, expf.
    """
    x = np.maximum(x, LOWEST)
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ((((C6 * r + C5) * r + C4) * r + C3) * r + C2) * r + C1
    power = np.int32((np.int32(n) + BIAS) << 23).view(np.float32)  # 2ⁿ
    return (p * (r * r) + r + ONE) * power
