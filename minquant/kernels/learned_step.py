"""The gradients of a learned step (LSQ), and torch's float32 sums of them, each in one pass.

The arithmetic is handed over as a function of numbers (see ``elements.py``). Arrays are float32 and C-contiguous; the
sums are those of ``quant/cascade.py``, addition for addition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numba import njit

from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.threads import in_parts

__all__ = ["channel_sums", "gradients"]

LANES, STRANDS, LEVELS = 8, 4, 4
GRADIENT, ADDED = 150, 50
"""Operations an element, as `in_parts` counts them: two hundred of them take a nanosecond."""


def gradients(
    x: np.ndarray, grad: np.ndarray, grid: tuple[Any, ...], factor: np.float32, rule: Callable[..., Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of each element by x, scale and zero point.

    Args:
        x: what was rounded.
        grad: of the result.
        grid: as ``fake_quantize.py`` has it.
        factor: of the gradients of scale and zero point.
        rule: ``rule(x, grad, 1/scale, scale, zero_point, qmin, qmax, factor)`` tells whether the integer lies inside
            the grid, the gradient by scale there and elsewhere, and that by zero point elsewhere.
    """
    by = tuple(np.empty(x.shape, np.float32) for _ in range(3))
    flat = [a.reshape(-1) for a in (x, grad, *by)]
    in_parts(partial(_kernel(rule), *flat, *grid, factor), x.size, GRADIENT * x.size)
    return by  # type: ignore[return-value]


@cache
def _kernel(rule: Callable[..., Any]) -> Callable[..., None]:
    rule, mark = prepare(rule), fingerprint(rule)

    @njit(cache=True, nogil=True)
    def kernel(x, grad, by_x, by_s, by_z, length, inverse, scale, zero_point, qmin, qmax, factor, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        while first < last:
            row = first // length
            end, c = min(last, (row + 1) * length), row % len(scale)
            inv, s, z = inverse[c], scale[c], zero_point[c]
            values, grads, to_x, to_s, to_z = (
                x[first:end],
                grad[first:end],
                by_x[first:end],
                by_s[first:end],
                by_z[first:end],
            )
            for i in range(len(values)):
                g = grads[i]
                inside, scale_in, scale_out, zero_out = rule(values[i], g, inv, s, z, qmin, qmax, factor)
                to_x[i] = g if inside else np.float32(0)
                to_s[i] = scale_in if inside else scale_out
                to_z[i] = np.float32(0) if inside else zero_out
            first = end

    return kernel


def channel_sums(x: np.ndarray) -> np.ndarray:
    """Of (before, C, after): for each channel the cascade sums of its runs, added one after the other, (C,)."""
    sums = np.zeros(x.shape[1], np.float32)
    in_parts(lambda first, last: _channel_sums(x, sums, first, last), len(sums), ADDED * x.size)
    return sums


@njit(cache=True, nogil=True)
def _channel_sums(x, sums, first, last):  # type: ignore[no-untyped-def]
    for c in range(first, last):
        for b in range(len(x)):
            sums[c] += _cascade_sum(x[b, c])


@njit(cache=True, nogil=True)
def _cascade_sum(x):  # type: ignore[no-untyped-def]
    lanes = LANES if len(x) >= LANES else 1
    width, vectors = STRANDS * lanes, len(x) // lanes
    rows = vectors // STRANDS
    bits = 0
    while (rows - 1) >> bits > 0:
        bits += 1
    shift = max(4, bits // LEVELS)
    sums = np.zeros((LEVELS, width), np.float32)
    for r in range(rows):
        row, level = x[r * width : (r + 1) * width], sums[0]
        for i in range(len(row)):
            level[i] += row[i]
        for k in range(1, LEVELS):
            if (r + 1) & ((1 << (k * shift)) - 1):
                break
            sums[k] += sums[k - 1]
            sums[k - 1] = 0
    for k in range(1, LEVELS):
        sums[0] += sums[k]
    strands = sums[0].reshape(STRANDS, lanes)
    for v in range(STRANDS * rows, vectors):
        strands[0] += x[v * lanes : (v + 1) * lanes]
    for k in range(1, STRANDS):
        strands[0] += strands[k]
    total = np.float32(0)
    for value in x[vectors * lanes :]:
        total += value
    for value in strands[0]:
        total += value
    return total
