"""Packed integers back to real values in one pass: ``real_of(code, scale, zero_point)``, the grid's own arithmetic.

What is packed, and how, is told in `minquant.quant.qtensor`; a grid is as in ``fake_quantize.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from minquant.kernels.elements import fingerprint, prepare
from minquant.kernels.threads import in_parts

__all__ = ["dequantize"]

WORK = 100
"""Operations an element, as `in_parts` counts them."""


def dequantize(
    packed: np.ndarray, bits: int, signed: bool, count: int, grid: tuple[Any, ...], real_of: Callable[..., Any]
) -> np.ndarray:
    """The real values of `count` integers.

    Args:
        packed: uint8, `bits` bits of each integer, 2 or 4, lowest first.
        bits: of an integer.
        signed: whether they are two's complement.
        count: how many there are.
        grid: see the module's text; its `length` must be a multiple of the integers in a byte.
        real_of: arithmetic, of numbers.

    Returns:
        float32 (count,).
    """
    out = np.empty(count, np.float32)
    length, _, scale, zero_point, _, _ = grid
    kernel, rows = _kernel(real_of, bits, signed), count // length
    in_parts(lambda first, last: kernel(packed, out, length, scale, zero_point, first, last), rows, WORK * count)
    return out


@cache
def _kernel(real_of: Callable[..., Any], bits: int, signed: bool) -> Callable[..., None]:
    mark, real_of = fingerprint(real_of), prepare(real_of)
    each, mask, half = 8 // bits, (1 << bits) - 1, 1 << (bits - 1) if signed else 0

    @njit(cache=True, nogil=True)
    def kernel(packed, out, length, scale, zero_point, first, last):  # type: ignore[no-untyped-def]
        mark  # noqa: B018 (see elements.py)
        for row in range(first, last):
            s, z = scale[row % len(scale)], zero_point[row % len(scale)]
            codes = packed[row * length // each : (row + 1) * length // each]
            values = out[row * length : (row + 1) * length]
            for i in range(length):
                code = np.int32(codes[i // each]) >> (i % each * bits)
                values[i] = real_of(np.float32(((code & mask) ^ half) - half), s, z)

    return kernel
