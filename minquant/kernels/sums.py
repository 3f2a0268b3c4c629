"""Sums and normalization of float32 values by channel, in float64: what batch norm and gradients of biases need.

Arrays are read as (before, C, after), C-contiguous. A channel's values are added in 64 strands, value i of each run of
`after` to strand ``i mod 64``, and then the strands one after the other: an order that vector instructions can keep
whatever their width, so that all processors get the same sum.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from minquant.kernels.threads import in_parts

__all__ = ["channel_sums", "moments", "rms_norm", "rms_norm_backward", "standardize", "standardize_backward"]

STRANDS = 64
ADDED, STANDARDIZED = 50, 100
"""Operations a value, as `in_parts` counts them: two hundred of them take a nanosecond."""


def channel_sums(x: np.ndarray) -> np.ndarray:
    """``Σ x``, float64 (C,)."""
    sums = np.zeros(x.shape[1])
    if x.shape[2] == 1:
        _column_sums(x[:, :, 0], sums)
    else:
        in_parts(lambda first, last: _channel_sums(x, sums, first, last), len(sums), ADDED * x.size)
    return sums


@njit(cache=True, nogil=True)
def _column_sums(x, sums):  # type: ignore[no-untyped-def]
    for row in x:
        for c in range(len(sums)):
            sums[c] += row[c]


@njit(cache=True, nogil=True)
def _channel_sums(x, sums, first, last):  # type: ignore[no-untyped-def]
    strands = np.empty(min(STRANDS, x.shape[2]))
    for c in range(first, last):
        strands[:] = 0
        for b in range(len(x)):
            for start in range(0, x.shape[2], STRANDS):
                run = x[b, c, start : start + STRANDS]
                for i in range(len(run)):
                    strands[i] += run[i]
        for strand in strands:
            sums[c] += strand


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``Σ x`` and ``Σ (x − mean)²``, float64 (C,)."""
    sums, squares = channel_sums(x), np.zeros(x.shape[1])
    in_parts(lambda first, last: _squares(x, sums, squares, first, last), len(sums), ADDED * x.size)
    return sums, squares


@njit(cache=True, nogil=True, error_model="numpy")
def _squares(x, sums, squares, first, last):  # type: ignore[no-untyped-def]
    strands = np.empty(min(STRANDS, x.shape[2]))
    for c in range(first, last):
        strands[:], mean = 0, sums[c] / (len(x) * x.shape[2])
        for b in range(len(x)):
            for start in range(0, x.shape[2], STRANDS):
                run = x[b, c, start : start + STRANDS]
                for i in range(len(run)):
                    centred = run[i] - mean
                    strands[i] += centred * centred
        for strand in strands:
            squares[c] += strand


def standardize(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``(x − mean) · scale``, in float64, rounded to float32 once."""
    out = np.empty(x.shape, np.float32)
    in_parts(lambda first, last: _standardize(x, mean, scale, out, first, last), len(x), STANDARDIZED * x.size)
    return out


@njit(cache=True, nogil=True)
def _standardize(x, mean, scale, out, first, last):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for c in range(x.shape[1]):
            values, to, m, s = x[b, c], out[b, c], mean[c], scale[c]
            for i in range(len(values)):
                to[i] = (values[i] - m) * s


def standardize_backward(grad: np.ndarray, out: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``(g − mean(g) − y mean(g y)) · scale``, in float64, rounded to float32 once."""
    by_x = np.empty(grad.shape, np.float32)
    in_parts(
        lambda first, last: _standardize_backward(grad, out, scale, by_x, first, last),
        grad.shape[1],
        STANDARDIZED * grad.size,
    )
    return by_x


@njit(cache=True, nogil=True, error_model="numpy")
def _standardize_backward(grad, out, scale, by_x, first, last):  # type: ignore[no-untyped-def]
    before, _, after = grad.shape
    strands, products = np.empty(min(STRANDS, after)), np.empty(min(STRANDS, after))
    for c in range(first, last):
        strands[:], products[:] = 0, 0
        for b in range(before):
            for start in range(0, after, STRANDS):
                g, y = grad[b, c, start : start + STRANDS], out[b, c, start : start + STRANDS]
                for i in range(len(g)):
                    strands[i] += g[i]
                    products[i] += np.float64(g[i]) * np.float64(y[i])
        mean, share, n = 0.0, 0.0, before * after
        for i in range(len(strands)):
            mean, share = mean + strands[i], share + products[i]
        mean, share = mean / n, share / n
        for b in range(before):
            g, y, to = grad[b, c], out[b, c], by_x[b, c]
            for i in range(len(g)):
                to[i] = (g[i] - mean - y[i] * share) * scale[c]


def rms_norm(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """``x · scale``, float32, and ``scale = 1 / √(mean(x²) + ε)``, float64 (R,), for each row of (R, N)."""
    out, scale = np.empty(x.shape, np.float32), np.empty(len(x))
    in_parts(lambda first, last: _rms_norm(x, eps, out, scale, first, last), len(x), STANDARDIZED * x.size)
    return out, scale


@njit(cache=True, nogil=True, error_model="numpy")
def _rms_norm(x, eps, out, scale, first, last):  # type: ignore[no-untyped-def]
    strands = np.empty(min(STRANDS, x.shape[1]))
    for r in range(first, last):
        row, to = x[r], out[r]
        strands[:], squares = 0, 0.0
        for start in range(0, len(row), STRANDS):
            run = row[start : start + STRANDS]
            for i in range(len(run)):
                strands[i] += np.float64(run[i]) * np.float64(run[i])
        for strand in strands:
            squares += strand
        s = 1 / np.sqrt(squares / len(row) + eps)
        scale[r] = s
        for i in range(len(row)):
            to[i] = row[i] * s


def rms_norm_backward(grad: np.ndarray, out: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``(g − y mean(g y)) · scale`` for each row, in float64, rounded to float32 once."""
    by_x = np.empty(grad.shape, np.float32)
    in_parts(
        lambda first, last: _rms_norm_backward(grad, out, scale, by_x, first, last), len(grad), STANDARDIZED * grad.size
    )
    return by_x


@njit(cache=True, nogil=True, error_model="numpy")
def _rms_norm_backward(grad, out, scale, by_x, first, last):  # type: ignore[no-untyped-def]
    strands = np.empty(min(STRANDS, grad.shape[1]))
    for r in range(first, last):
        g, y, to = grad[r], out[r], by_x[r]
        strands[:], share = 0, 0.0
        for start in range(0, len(g), STRANDS):
            a, b = g[start : start + STRANDS], y[start : start + STRANDS]
            for i in range(len(a)):
                strands[i] += np.float64(a[i]) * np.float64(b[i])
        for strand in strands:
            share += strand
        share /= len(g)
        for i in range(len(g)):
            to[i] = (g[i] - y[i] * share) * scale[r]
