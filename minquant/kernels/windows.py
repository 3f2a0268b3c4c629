"""Windows over images, by place: where in an image a window starts, and where in a window each tap lies.

An image is a run of `size` values in memory: one channel or several, of one spatial axis or more. Tap k of the window
at place p is value ``starts[p] + taps[k]`` of it, both intp. Arrays are C-contiguous, and floats are float32.

Where windows overlap gradients are added from the first tap to the last, which is from the last window to the first:
the order of ``functional.windows.add_windows``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from minquant.kernels.threads import in_parts

__all__ = ["add_columns", "add_largest", "columns", "largest"]

TAP = 140
"""Operations a value that is moved, as `in_parts` counts them: two hundred of them take a nanosecond."""


def columns(x: np.ndarray, starts: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Images (N, G, size) of any dtype -> ``columns[g, n · P + p, k] = x[n, g, starts[p] + taps[k]]``, (G, N·P, K)."""
    N, G, _ = x.shape
    out = np.empty((G, N * len(starts), len(taps)), x.dtype)
    in_parts(lambda first, last: _columns(x, starts, taps, out, first, last), N, TAP * out.size)
    return out


@njit(cache=True, nogil=True)
def _columns(x, starts, taps, out, first, last):  # type: ignore[no-untyped-def]
    for n in range(first, last):
        for g in range(x.shape[1]):
            for p in range(len(starts)):
                row, image = out[g, n * len(starts) + p], x[n, g, starts[p] :]
                for k in range(len(row)):
                    row[k] = image[taps[k]]


def add_columns(columns: np.ndarray, starts: np.ndarray, taps: np.ndarray, size: int) -> np.ndarray:
    """The transpose of `columns`: (G, N·P, K) -> images (N, G, size), each value the sum of what saw it."""
    G, rows, _ = columns.shape
    out = np.zeros((rows // max(len(starts), 1), G, size), np.float32)
    in_parts(lambda first, last: _add_columns(columns, starts, taps, out, first, last), len(out), TAP * columns.size)
    return out


@njit(cache=True, nogil=True)
def _add_columns(columns, starts, taps, out, first, last):  # type: ignore[no-untyped-def]
    for n in range(first, last):
        for g in range(out.shape[1]):
            rows = columns[g, n * len(starts) : (n + 1) * len(starts)]
            for k in range(len(taps)):
                image = out[n, g, taps[k] :]
                for p in range(len(starts)):
                    image[starts[p]] += rows[p, k]


def largest(x: np.ndarray, starts: np.ndarray, taps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, size) -> the largest value of each window (the first NaN, if any), and its tap, (N, P) both."""
    out = np.empty((len(x), len(starts)), np.float32)
    index = np.empty(out.shape, np.intp)
    arguments = x, x.view(np.int32), starts, taps, out, index
    in_parts(lambda first, last: _largest(*arguments, first, last), len(x), TAP * out.size * len(taps))
    return out, index


@njit(cache=True, nogil=True)
def _largest(x, bits, starts, taps, out, index, first, last):  # type: ignore[no-untyped-def]
    """As integers floats are in order, and a comparison is no branch, which the processor would have to guess.

    Those with a sign are turned round, then -0 is made 0 and NaN the largest; the tap, from the last, stands behind.
    """
    turn, nan, lanes = np.int64(0x7FFFFFFF), np.int64(0x7F800001), len(taps)
    for n in range(first, last):
        for p in range(len(starts)):
            best = np.int64(-(2**63))
            for k in range(lanes):
                key = np.int64(bits[n, starts[p] + taps[k]])
                key ^= (key >> 63) & turn
                key = min(key + (key == -1), nan)
                key = nan if key < -nan else key
                best = max(best, (key << 31) + (lanes - 1 - k))
            tap = lanes - 1 - (best & turn)
            out[n, p], index[n, p] = x[n, starts[p] + taps[tap]], tap


def add_largest(grad: np.ndarray, index: np.ndarray, starts: np.ndarray, taps: np.ndarray, size: int) -> np.ndarray:
    """The gradient of `largest`: (N, P) -> images (N, size), each value the sum of the gradients that it won."""
    out = np.zeros((len(grad), size), np.float32)
    in_parts(lambda first, last: _add_largest(grad, index, starts, taps, out, first, last), len(grad), TAP * grad.size)
    return out


@njit(cache=True, nogil=True)
def _add_largest(grad, index, starts, taps, out, first, last):  # type: ignore[no-untyped-def]
    for n in range(first, last):
        for p in range(len(starts) - 1, -1, -1):
            out[n, starts[p] + taps[index[n, p]]] += grad[n, p]
