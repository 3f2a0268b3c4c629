"""Adam in one pass: value, gradient and both running means are read once, and all but the gradient written."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import njit

from minquant.kernels.threads import in_parts

__all__ = ["adam"]

OPERATIONS = 110
"""An element's, as `in_parts` counts them: two hundred of them take a nanosecond."""


def adam(
    value: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    factors: tuple[float, float, float],
    divisors: tuple[float, float, float],
) -> None:
    """One step: m += c₁ (g − m); v = β₂ v + c₂ g²; θ += s · m / (√v/d + ε), in float32, in place.

    Args:
        value: θ, and all arrays: float32, C-contiguous, of one shape.
        grad: g, which stays as it is.
        mean: m.
        square: v.
        factors: c₁, β₂, c₂.
        divisors: d, ε and s.
    """
    flat = [a.reshape(-1) for a in (value, grad, mean, square)]
    arguments: tuple[Any, ...] = *flat, *map(np.float32, (*factors, *divisors))
    in_parts(partial(_adam, *arguments), value.size, OPERATIONS * value.size)


@njit(cache=True, nogil=True, error_model="numpy")  # or a check for division by 0 would keep the loop from vectors
def _adam(value, grad, mean, square, c1, beta2, c2, root, eps, step, first, last):  # type: ignore[no-untyped-def]
    values, grads, means, squares = value[first:last], grad[first:last], mean[first:last], square[first:last]
    for i in range(len(values)):
        g = grads[i]
        m = means[i] + c1 * (g - means[i])
        v = squares[i] * beta2 + c2 * g * g
        means[i], squares[i] = m, v
        values[i] += step * m / (np.sqrt(v) / root + eps)
