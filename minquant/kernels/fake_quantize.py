"""Fake-quantization in one pass: each value is read once, its neighbour on the grid and the gradient's mask written.

The arithmetic is the grid's own, handed over as two functions of numbers (see ``elements.py``): ``to_code(x, 1/scale,
zero_point)``, a whole number, and ``real_of(code, scale, zero_point)``. All arrays are C-contiguous. A grid is

    (length, 1/scale, scale, zero_point, qmin, qmax)

where `length` values that follow one another in memory share a scale, and the scales, (C,), take turns; all but the
length are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numba import njit

from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.threads import in_parts

__all__ = ["all_finite", "masked", "min_max", "round_to_grid", "rounded_and_integers", "to_integers", "to_own_grids"]

Rule: TypeAlias = Callable[..., Any]
Grid: TypeAlias = tuple[Any, ...]

ROUND, MASK = 80, 34
"""Operations an element, as `in_parts` counts them: two hundred of them take a nanosecond."""


def round_to_grid(
    x: np.ndarray, grid: Grid, ends: tuple[np.ndarray, np.ndarray] | None, rules: tuple[Rule, Rule]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """``real_of(clip(to_code(x)))``, the mask of the gradient, and whether x holds NaN.

    Args:
        x: float32.
        grid: see the module's text.
        ends: the mask is true from the first to the second, both float32 (C,); None: where nothing is clipped.
        rules: ``to_code`` and ``real_of``.
    """
    out, inside = np.empty(x.shape, np.float32), np.empty(x.shape, np.bool_)
    kernel = _rounding(*rules, ends is None)
    arguments = x.reshape(-1), out.reshape(-1), inside.reshape(-1), *grid, *(ends or grid[1:3])
    nans: list[bool] = []
    in_parts(lambda first, last: nans.append(kernel(*arguments, first, last)), x.size, ROUND * x.size)
    return out, inside, any(nans)


@cache
def _rounding(to_code: Rule, real_of: Rule, by_code: bool) -> Callable[..., bool]:
    mark = fingerprint(to_code, real_of)
    to_code, real_of = prepare(to_code), prepare(real_of)

    @njit(cache=True, nogil=True)
    def kernel(x, out, inside, length, inverse, scale, zero_point, qmin, qmax, low, high, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        nans = np.int32(0)
        while first < last:
            row = first // length
            end, c = min(last, (row + 1) * length), row % len(scale)
            inv, s, z, lo, hi = inverse[c], scale[c], zero_point[c], low[c], high[c]
            values, rounded, mask = x[first:end], out[first:end], inside[first:end]
            for i in range(len(values)):
                v = values[i]
                code = to_code(v, inv, z)
                nans += np.int32(v != v)
                mask[i] = (qmin <= code) & (code <= qmax) if by_code else (lo <= v) & (v <= hi)
                code = qmin if code < qmin else code
                rounded[i] = real_of(qmax if code > qmax else code, s, z)
            first = end
        return nans > 0

    return kernel


def to_integers(x: np.ndarray, grid: Grid, dtype: np.dtype, to_code: Rule) -> tuple[np.ndarray, bool]:
    """``clip(to_code(x))`` as integers of that dtype, of 8 or 16 bits; and whether x holds NaN."""
    out = np.empty(x.shape, dtype)
    bits = out.reshape(-1).view(np.uint8 if out.itemsize == 1 else np.uint16)  # one kernel for both signs
    kernel, arguments = _coding(to_code), (x.reshape(-1), bits, *grid)
    nans: list[bool] = []
    in_parts(lambda first, last: nans.append(kernel(*arguments, first, last)), x.size, ROUND * x.size)
    return out, any(nans)


@cache
def _coding(to_code: Rule) -> Callable[..., bool]:
    to_code, mark = prepare(to_code), fingerprint(to_code)

    @njit(cache=True, nogil=True)
    def kernel(x, out, length, inverse, scale, zero_point, qmin, qmax, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        nans = np.int32(0)
        while first < last:
            row = first // length
            end, c = min(last, (row + 1) * length), row % len(scale)
            inv, z = inverse[c], zero_point[c]
            values, codes = x[first:end], out[first:end]
            for i in range(len(values)):
                v = values[i]
                code = to_code(v, inv, z)
                nans += np.int32(v != v)
                code = qmin if code < qmin else code
                codes[i] = np.int32(qmax if code > qmax else code)
            first = end
        return nans > 0

    return kernel


def rounded_and_integers(
    x: np.ndarray, grid: Grid, dtype: np.dtype, rules: tuple[Rule, Rule]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """``real_of(clip(to_code(x)))``, the ``clip(to_code(x))`` as `to_integers` has them, and whether x holds NaN."""
    out, integers = np.empty(x.shape, np.float32), np.empty(x.shape, dtype)
    bits = integers.reshape(-1).view(np.uint8 if integers.itemsize == 1 else np.uint16)
    kernel, arguments = _both(*rules), (x.reshape(-1), out.reshape(-1), bits, *grid)
    nans: list[bool] = []
    in_parts(lambda first, last: nans.append(kernel(*arguments, first, last)), x.size, ROUND * x.size)
    return out, integers, any(nans)


@cache
def _both(to_code: Rule, real_of: Rule) -> Callable[..., bool]:
    mark = fingerprint(to_code, real_of)
    to_code, real_of = prepare(to_code), prepare(real_of)

    @njit(cache=True, nogil=True)
    def kernel(x, out, integers, length, inverse, scale, zero_point, qmin, qmax, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        nans = np.int32(0)
        while first < last:
            row = first // length
            end, c = min(last, (row + 1) * length), row % len(scale)
            inv, s, z = inverse[c], scale[c], zero_point[c]
            values, rounded, codes = x[first:end], out[first:end], integers[first:end]
            for i in range(len(values)):
                v = values[i]
                code = to_code(v, inv, z)
                nans += np.int32(v != v)
                code = qmin if code < qmin else code
                code = qmax if code > qmax else code
                rounded[i] = real_of(code, s, z)
                codes[i] = np.int32(code)
            first = end
        return nans > 0

    return kernel


def to_own_grids(
    x: np.ndarray, dtype: np.dtype, limits: tuple[np.float32, ...], rules: tuple[Rule, Rule]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Integers of each row on the grid for its own range: codes, scales float32 (M,) and zero points int32 (M,).

    Args:
        x: float32 (M, K).
        dtype: of the integers, of 8 bits.
        limits: qmax - qmin, qmin, qmax and the smallest scale.
        rules: ``terms(lo, hi, qmax - qmin, smallest scale)``, the scale of a range with 0 in it and how many steps lo
            lies from 0; and ``to_code``.

    Returns:
        None where a row holds NaN or infinity, or its range is wider than float32.
    """
    codes, scale, zero_point = np.empty(x.shape, dtype), np.empty(len(x), np.float32), np.empty(len(x), np.int32)
    kernel, arguments = _owning(*rules), (x, x.view(np.int32), codes.view(np.uint8), scale, zero_point, *limits)
    sound: list[bool] = []
    in_parts(lambda first, last: sound.append(kernel(*arguments, first, last)), len(x), 2 * ROUND * x.size)
    return (codes, scale, zero_point) if all(sound) else None


@cache
def _owning(terms: Rule, to_code: Rule) -> Callable[..., bool]:
    mark = fingerprint(terms, to_code)
    terms, to_code = prepare(terms), prepare(to_code)

    @njit(cache=True, nogil=True)
    def kernel(x, bits, out, scales, zero_points, steps, qmin, qmax, eps, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        ends = np.zeros((2, 1), np.int32)
        low, high = ends.view(np.float32)
        for row in range(first, last):
            _min_max(bits[row], bits.shape[1], ends)
            scale, below_zero = terms(min(low[0], np.float32(0)), max(high[0], np.float32(0)), steps, eps)
            zero_point = min(max(qmin - below_zero, qmin), qmax)
            if not (abs(low[0]) < np.inf and abs(high[0]) < np.inf and scale < np.inf):
                return False
            scales[row], zero_points[row], inverse = scale, np.int32(zero_point), np.float32(1) / scale
            values, codes = x[row], out[row]
            for i in range(len(values)):
                code = to_code(values[i], inverse, zero_point)
                code = qmin if code < qmin else code
                codes[i] = np.int32(qmax if code > qmax else code)
        return True

    return kernel


def masked(grad: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``grad · inside``."""
    out = np.empty(grad.shape, np.float32)
    flat = grad.reshape(-1), inside.reshape(-1), out.reshape(-1)
    in_parts(lambda first, last: _masked(*flat, first, last), grad.size, MASK * grad.size)
    return out


@njit(cache=True, nogil=True)
def _masked(grad, inside, out, first, last):  # type: ignore[no-untyped-def]
    grads, mask, to = grad[first:last], inside[first:last], out[first:last]
    for i in range(len(grads)):
        to[i] = grads[i] * np.float32(mask[i])


# ---- ranges ----------------------------------------------------------------------------------------------------------


def min_max(x: np.ndarray, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest of the values that share a scale, float32 (count,): NaN where there is one."""
    ends = np.empty((2, count), np.int32)
    _min_max(x.reshape(-1).view(np.int32), length, ends)
    low, high = ends.view(np.float32)
    return low, high


@njit(cache=True, nogil=True)
def _min_max(bits, length, ends):  # type: ignore[no-untyped-def]
    """As integers floats are in order, once those with a sign are turned round; NaN are first or last."""
    turn, infinity, nan = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(0x7FC00000)
    ends[0], ends[1] = turn, ~turn
    for row in range(len(bits) // max(length, 1)):
        values, least, most = bits[row * length : (row + 1) * length], turn, ~turn
        for i in range(len(values)):
            key = values[i] ^ ((values[i] >> np.int32(31)) & turn)
            least, most = min(least, key), max(most, key)
        c = row % ends.shape[1]
        ends[0, c], ends[1, c] = min(ends[0, c], least), max(ends[1, c], most)
    for c in range(ends.shape[1]):
        has_nan = ends[1, c] > infinity or ends[0, c] < ~infinity
        for i in range(2):
            ends[i, c] = nan if has_nan else ends[i, c] ^ ((ends[i, c] >> np.int32(31)) & turn)


def all_finite(x: np.ndarray) -> bool:
    """Whether x holds neither NaN nor infinity: those whose exponent has all bits set."""
    return _all_finite(x.reshape(-1).view(np.int32))


@njit(cache=True, nogil=True)
def _all_finite(bits):  # type: ignore[no-untyped-def]
    exponent, others = np.int32(0x7F800000), np.int32(0)
    for i in range(len(bits)):
        others += np.int32((bits[i] & exponent) == exponent)
    return others == 0
