"""Attention's element-wise work: softmax over the keys that a query sees, its gradient, and rotary positions.

A row's values are added in 16 strands in float64, value i to strand ``i mod 16``, and then the strands one after the
other: an order that vector instructions can keep whatever their width, so that all processors get the same sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.exponential import exp_below
from minquant.kernels.threads import in_parts

__all__ = ["softmax", "softmax_gradient", "turn"]

STRANDS = 16
SOFTMAX, GRADIENT, TURN = 300, 120, 100
"""Operations an element, as `in_parts` counts them: two hundred of them take a nanosecond."""


def softmax(x: np.ndarray, seen: np.ndarray) -> None:
    """``exp(x − max x) / Σ exp(x − max x)`` over the first values of each row, 0 behind them; in place.

    Args:
        x: float32 (R, S), C-contiguous.
        seen: int64 (T,): row r has its first ``seen[r mod T]`` values, 1 or more.
    """
    kernel = _softmax()
    in_parts(lambda first, last: kernel(x, seen, first, last), len(x), SOFTMAX * x.size)


@cache
def _softmax() -> Callable[..., None]:
    exp, mark = prepare(exp_below), fingerprint(exp_below)

    @njit(cache=True, nogil=True, error_model="numpy")
    def kernel(x, seen, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        peaks, sums = np.empty(STRANDS, np.float32), np.empty(STRANDS)
        for r in range(first, last):
            x[r, seen[r % len(seen)] :] = 0
            row = x[r, : seen[r % len(seen)]]
            peaks[:], sums[:] = -np.inf, 0
            for start in range(0, len(row), STRANDS):
                run = row[start : start + STRANDS]
                for i in range(len(run)):
                    peaks[i] = np.maximum(peaks[i], run[i])
            peak = peaks[0]
            for i in range(1, STRANDS):
                peak = np.maximum(peak, peaks[i])
            for i in range(len(row)):
                row[i] = exp(row[i] - peak)
            for start in range(0, len(row), STRANDS):
                run = row[start : start + STRANDS]
                for i in range(len(run)):
                    sums[i] += run[i]
            total = 0.0
            for i in range(STRANDS):
                total += sums[i]
            divisor = np.float32(total)
            for i in range(len(row)):
                row[i] /= divisor

    return kernel


def softmax_gradient(shares: np.ndarray, grad: np.ndarray, seen: np.ndarray) -> None:
    """``p (g − Σ p g)`` written over g, for the rows p that `softmax` made; both (R, S), C-contiguous."""
    in_parts(lambda first, last: _softmax_gradient(shares, grad, seen, first, last), len(grad), GRADIENT * grad.size)


@njit(cache=True, nogil=True)
def _softmax_gradient(shares, grad, seen, first, last):  # type: ignore[no-untyped-def]
    sums = np.empty(STRANDS)
    for r in range(first, last):
        grad[r, seen[r % len(seen)] :] = 0
        p, g = shares[r, : seen[r % len(seen)]], grad[r, : seen[r % len(seen)]]
        sums[:], total = 0, 0.0
        for start in range(0, len(p), STRANDS):
            a, b = p[start : start + STRANDS], g[start : start + STRANDS]
            for i in range(len(a)):
                sums[i] += a[i] * b[i]
        for i in range(STRANDS):
            total += sums[i]
        mean = np.float32(total)
        for i in range(len(p)):
            g[i] = p[i] * (g[i] - mean)


def turn(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """``(a cos − b sin, b cos + a sin)`` for the halves of each row; float32 (N, H, T, D) of any strides."""
    out = np.empty(x.shape, np.float32)
    in_parts(lambda first, last: _turn(x, cos, sin, out, first, last), len(x), TURN * x.size)
    return out


@njit(cache=True, nogil=True)
def _turn(x, cos, sin, out, first, last):  # type: ignore[no-untyped-def]
    half = x.shape[3] // 2
    for n in range(first, last):
        for h in range(x.shape[1]):
            for t in range(x.shape[2]):
                row, to, c, s = x[n, h, t], out[n, h, t], cos[t], sin[t]
                for i in range(half):
                    a, b = row[i], row[half + i]
                    to[i] = a * c[i] - b * s[i]
                    to[half + i] = b * c[i] + a * s[i]
