"""The operands of the product by groups as its kernel reads them (see `minquant.kernels.grouped`).

    ``words[p, g, u, n]``: codes ``u·h … u·h + h - 1`` of group g, ``h = 32 / bits``, of column ``p·columns + n``

What belongs to a group and a column lies in the same order, ``[p, g, n]``: the codes' sums, the scales and, unless they
are all one, the zero points. What is made of read-only arrays is kept as long as they live.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from minquant.kernels.isa import Isa
from minquant.kernels.kept import kept
from minquant.kernels.packed import GroupedWeight

__all__ = ["enter", "pack_codes", "pack_scales", "pack_zero_points"]

INT16_MAX = 2**15 - 1

# ---- the weight ------------------------------------------------------------------------------------------------------


def pack_codes(weight: GroupedWeight, isa: Isa) -> tuple[np.ndarray, np.ndarray]:
    """Words of codes, int32 (P, G, units, columns), and ``Σ code``, int16 or int32 (P, G, columns)."""

    def pack() -> tuple[np.ndarray, np.ndarray]:
        (N, groups), bits, size = weight.scale.shape, weight.stored_bits, weight.size
        panels, units = -(-N // isa.columns), -(-size * bits // 32)
        words = np.zeros((panels, groups, units, isa.columns), np.int32)
        sums = np.zeros((panels, groups, isa.columns), np.int16 if size << bits <= INT16_MAX else np.int32)
        _packer(isa.columns, bits)(np.ascontiguousarray(weight.integers()), size, weight.shift, words, sums)
        return words, sums

    return kept(weight.storage, ("codes", isa, weight.size), pack)


@cache
def _packer(columns: int, bits: int) -> Callable[..., None]:
    held, mask = 32 // bits, (1 << bits) - 1

    @njit(cache=True, nogil=True)
    def pack(integers: np.ndarray, size: int, shift: int, words: np.ndarray, sums: np.ndarray) -> None:
        N, K = integers.shape
        for n in range(N):
            p, column = n // columns, n % columns
            for g in range(words.shape[1]):
                total = np.int64(0)
                for u in range(words.shape[2]):
                    word = np.uint32(0)
                    for r in range(min(held, size - u * held)):
                        code = np.int64(integers[n, g * size + u * held + r]) + shift
                        total += code
                        word |= np.uint32(code & mask) << np.uint32(r % 4 * 8 + r // 4 * bits)
                    words[p, g, u, column] = np.int32(word)
                sums[p, g, column] = total

    return pack


def pack_scales(scale: np.ndarray, isa: Isa) -> np.ndarray:
    """(N, G) -> (P, G, columns), float32."""
    return kept(scale, ("scales", isa), lambda: _in_panels(scale, isa.columns))


def pack_zero_points(weight: GroupedWeight, isa: Isa) -> np.ndarray:
    """(N, G) -> those of the codes, int16 (P · G · columns,); a single number if all are one."""
    zero_point = weight.zero_point

    def pack() -> np.ndarray:
        if not zero_point.size or zero_point.min() == zero_point.max():
            return np.array([zero_point.reshape(-1)[:1].sum() + weight.shift], np.int32)
        return _in_panels(zero_point.astype(np.int16) + np.int16(weight.shift), isa.columns).reshape(-1)

    return kept(zero_point, ("zero points", isa, weight.shift), pack)


def _in_panels(values: np.ndarray, columns: int) -> np.ndarray:
    N, groups = values.shape
    panels = -(-N // columns)
    packed = np.zeros((panels, groups, columns), values.dtype)
    _transpose(np.ascontiguousarray(values), packed)
    return packed


@njit(cache=True, nogil=True)
def _transpose(values: np.ndarray, packed: np.ndarray) -> None:
    columns = packed.shape[2]
    for n in range(values.shape[0]):
        for g in range(values.shape[1]):
            packed[n // columns, g, n % columns] = values[n, g]


# ---- x ---------------------------------------------------------------------------------------------------------------


def enter(
    qx: np.ndarray, x_scale: np.ndarray, zx: np.ndarray, weight: GroupedWeight, isa: Isa, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whole tiles of `rows` rows of x, with whole words of each group, in bytes that the instruction takes.

    Bytes of another sign are shifted by 128, their zero point alike.

    Returns:
        The bytes, int8 or uint8 (R, G · values of a group's words); zero points, int32 (R,); ``Σ (x - zx)`` of each
        group, int32 (R, G); scales, float32 (R,).
    """
    (M, _), groups, held = qx.shape, weight.scale.shape[1], 32 // weight.stored_bits
    width, R = -(-weight.size // held) * held, -(-M // rows) * rows
    dtype = np.dtype(np.uint8 if isa.operand == "uint8" else np.int8)
    shift = 0 if qx.dtype == dtype else 128 if dtype == np.uint8 else -128
    x, zeros, totals, scales = (np.zeros(shape, kind) for shape, kind in (
        ((R, groups * width), dtype), (R, np.int32), ((R, groups), np.int32), (R, np.float32)))  # fmt: skip
    zeros[:M], scales[:M] = np.reshape(zx, -1), np.reshape(x_scale, -1)
    _fill(np.ascontiguousarray(qx), weight.size, width, shift, x, zeros, totals)
    return x, zeros + np.int32(shift), totals, scales


@njit(cache=True, nogil=True)
def _fill(
    qx: np.ndarray, size: int, width: int, shift: int, x: np.ndarray, zeros: np.ndarray, totals: np.ndarray
) -> None:
    for m in range(qx.shape[0]):
        for g in range(totals.shape[1]):
            values, to, total = qx[m, g * size : (g + 1) * size], x[m, g * width :], np.int32(0)
            for k in range(size):
                value = np.int32(values[k])
                to[k] = value + np.int32(shift)
                total += value
            totals[m, g] = total - size * zeros[m]
