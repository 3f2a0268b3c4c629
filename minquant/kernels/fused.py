"""The product and its epilogue in one go: a block of sums is finished while it lies in the cache.

    for each block of rows               as many sums as the second-level cache holds
        the integer product              ``cpu.py``
        for each sum of the block        the dialect's own arithmetic, compiled (``elements.py``)

Equal to ``epilogue(product)`` in NumPy, bit for bit: the same functions, the same order of roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from minquant.kernels import cpu
from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.epilogue import Epilogue, ToReal
from minquant.kernels.packed import Packed
from minquant.kernels.packing import enter
from minquant.kernels.threads import in_parts, thread_count

__all__ = ["blocks", "dtype_of", "finish", "finish_rows", "product"]

SUMS = 65_536
"""Of a block: 256 kB."""

FEWEST_ROWS = 96
"""Of a block, so that the right operand need not be read again too often."""

NO_BOUND, ZERO = np.float32(-np.inf), np.float32(0)


def product(a: np.ndarray, zero_point: int, b: Packed, epilogue: Epilogue) -> np.ndarray:
    """``epilogue(Σ_k (a[m, k] - zero_point) · b[k, n])``.

    Args:
        a: (M, K) int8 or uint8.
        zero_point: of a.
        b: (K, N), packed.
        epilogue: what becomes of the sums.

    Returns:
        (M, N), of the epilogue's dtype.
    """
    M, N = len(a), b.shape[1]
    out = np.empty((M, N), dtype_of(epilogue))
    ends = blocks(M, max(FEWEST_ROWS, SUMS // max(1, N)), b.isa.rows)
    if len(ends) == 2:
        finish_rows(cpu.matmul(a, b, zero_point), epilogue, 0, out)
        return out

    def work(first: int, last: int) -> None:
        for i in range(first, last):
            rows, count = slice(ends[i], ends[i + 1]), ends[i + 1] - ends[i]
            sums = cpu.room_for_sums(count, b)
            entered, shift = enter(a[rows], b.isa, cpu.tile_rows(count, b.isa.rows))
            cpu.multiply(entered, b, shift + zero_point, count, sums)
            finish_rows(sums, epilogue, ends[i], out[rows])

    in_parts(work, len(ends) - 1, operations=2 * a.size * N)
    return out


def finish(acc: np.ndarray, epilogue: Epilogue) -> np.ndarray:
    """``epilogue(acc)`` of int32 sums (M, N)."""
    out = np.empty(acc.shape, dtype_of(epilogue))
    finish_rows(np.ascontiguousarray(acc), epilogue, 0, out)
    return out


def blocks(M: int, most: int, rows: int) -> list[int]:
    """Where blocks of about `most` rows begin and end: whole tiles, and as many blocks for each thread."""
    if M <= most:
        return [0, M]
    tiles, threads = -(-M // rows), thread_count()
    count = min(tiles, -(-M // (most * threads)) * threads)
    return [min(M, tiles * i // count * rows) for i in range(count + 1)]


def dtype_of(epilogue: Epilogue) -> np.dtype:
    """What the epilogue makes of sums: float32, or the integers of its grid."""
    return np.dtype(np.float32) if isinstance(epilogue, ToReal) else epilogue.dtype


def finish_rows(acc: np.ndarray, epilogue: Epilogue, first: int, out: np.ndarray) -> None:
    """Rows of the result, which begin with row `first` of the whole; of the sums, what lies beyond is left out."""
    M, N = out.shape
    if isinstance(epilogue, ToReal):
        x_scale = epilogue.x_scale if np.ndim(epilogue.x_scale) == 0 else epilogue.x_scale[first : first + M, 0]
        lowest = ZERO if epilogue.relu else NO_BOUND
        _to_real(epilogue.function)(
            acc, _each(x_scale, M), _each(epilogue.w_scale, N), _each(epilogue.bias, N), lowest, out
        )
    else:
        terms = (_each(term, N) for term in epilogue.terms)
        zero_point = epilogue.zero_point
        ends = type(zero_point)(epilogue.lowest), type(zero_point)(epilogue.highest)
        _to_codes(epilogue.function)(acc, *terms, zero_point, *ends, out)


def _each(term: np.ndarray, count: int) -> np.ndarray:
    """One number for each row or column, in a row of memory."""
    term = np.asarray(term)
    if term.shape == (count,) and term.flags.c_contiguous:
        return term
    each = np.empty(count, term.dtype)
    each[:] = term
    return each


@cache
def _to_real(function: Callable[..., float]) -> Callable[..., None]:
    prepare(function)
    mark = fingerprint(function)

    @njit(cache=True, nogil=True)
    def kernel(
        acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, lowest: float, out: np.ndarray
    ) -> None:
        mark  # noqa: B018 (see elements.py)
        for m in range(out.shape[0]):
            scale = x_scale[m]
            for n in range(out.shape[1]):
                out[m, n] = np.maximum(function(acc[m, n], scale, w_scale[n], bias[n]), lowest)

    return kernel


@cache
def _to_codes(function: Callable[..., float]) -> Callable[..., None]:
    prepare(function)
    mark = fingerprint(function)

    @njit(cache=True, nogil=True)
    def kernel(
        acc: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        c: np.ndarray,
        d: np.ndarray,
        zero_point: float,
        lowest: float,
        highest: float,
        out: np.ndarray,
    ) -> None:
        mark  # noqa: B018 (see elements.py)
        for m in range(out.shape[0]):
            for n in range(out.shape[1]):
                code = function(acc[m, n], a[n], b[n], c[n], d[n], zero_point)
                out[m, n] = min(max(code, lowest), highest)

    return kernel
