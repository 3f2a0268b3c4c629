"""The error function, which NumPy lacks."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

_PER_UNIT = 128  # nodes per unit of x, so that |x - node| <= 1/256
_DEGREE = 6  # the next term is below 1e-18
_LIMIT = 6.0  # erf(6) rounds to 1


def erf(x: np.ndarray) -> np.ndarray:
    """2/√π ∫₀ˣ exp(−t²) dt, in x's dtype: the Taylor series around the nearest of 1,537 nodes.

    Computed in float64; within 4e-16 of the true value (float32: correctly rounded but for ties).
    """
    wide = np.clip(x.astype(np.float64), -_LIMIT, _LIMIT)
    node = np.rint(np.nan_to_num(wide) * _PER_UNIT)
    offset = wide - node / _PER_UNIT
    row = node.astype(np.intp) + int(_LIMIT * _PER_UNIT)
    coefficients = _coefficients()
    out = coefficients[_DEGREE][row]
    for k in range(_DEGREE - 1, -1, -1):
        out = out * offset + coefficients[k][row]
    return out.astype(x.dtype)


@cache
def _coefficients() -> np.ndarray:
    """(degree + 1, nodes): erf⁽ᵏ⁾(node)/k!.

    g = erf′ solves g′ = −2x g, so around c its coefficients follow (k + 1) g₍ₖ₊₁₎ = −2 (c gₖ + gₖ₋₁).
    """
    half = int(_LIMIT * _PER_UNIT)
    c = np.arange(-half, half + 1) / _PER_UNIT
    before, g = np.zeros_like(c), 2 / math.sqrt(math.pi) * np.exp(-c * c)
    rows = [np.array([math.erf(v) for v in c])]
    for k in range(_DEGREE):
        rows.append(g / (k + 1))
        before, g = g, -2 * (c * g + before) / (k + 1)
    return np.stack(rows)
