"""The accumulator of x86 processors without VNNI: products are added in pairs in int16, where the sum may not fit."""

from __future__ import annotations

import numpy as np

from minquant.kernels import runs_compiled

__all__ = ["saturating_matmul"]

INT16 = np.iinfo(np.int16)
MAX_K = 2 * ((2**31 - 1) // 2**15)


def saturating_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``acc[m, n] = Σ_i clip(a[m, 2i]·b[2i, n] + a[m, 2i+1]·b[2i+1, n], -2¹⁵, 2¹⁵ - 1)``.

    One instruction, vpmaddubsw, multiplies uint8 by int8 and adds neighbours along K with saturation to int16; the
    next, vpmaddwd by ones, widens to int32, and from there on every sum is exact. A pair reaches 2·255·127 = 64,770,
    twice what int16 holds; with a ≤ 127 it reaches 2·127·128 = 32,512, which fits: the reason for reduce_range.

    Args:
        a: ``(M, K)`` uint8. An odd K is filled up with a zero.
        b: ``(K, N)`` int8.

    Returns:
        ``(M, N)`` int32.

    Raises:
        TypeError: `a` is not uint8, or `b` not int8.
        ValueError: shapes that do not fit, or a K above 131,070, where int32 could overflow.

    Error bound: none, it equals the instructions bit for bit.
    Source: FBGEMM, GenerateKernelU8S8S32ACC32 without VNNI, in torch 2.13.
    """
    _check(a, b)
    if runs_compiled():
        from minquant.kernels.saturating_loops import multiply_pairs

        return multiply_pairs(a, b)
    wide_a, wide_b = a.astype(np.int32), b.astype(np.int32)
    acc = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for k in range(0, a.shape[1], 2):
        pair = wide_a[:, k : k + 2] @ wide_b[k : k + 2]  # (M, 2) @ (2, N) -> (M, N)
        acc += np.clip(pair, INT16.min, INT16.max)
    return acc


def _check(a: np.ndarray, b: np.ndarray) -> None:
    for name, operand, expected in (("a", a, np.uint8), ("b", b, np.int8)):
        if operand.dtype != expected:
            raise TypeError(
                f"saturating_matmul: {name} must be {np.dtype(expected)}, as the instruction has it; got "
                f"{operand.dtype}. Other kinds of integers have int8_matmul, which is exact"
            )
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"saturating_matmul: expected a (M, K) and b (K, N), got shapes {a.shape} and {b.shape}; "
            "a weight stored as (N, K) must be passed transposed"
        )
    if a.shape[1] > MAX_K:
        raise ValueError(
            f"saturating_matmul: K = {a.shape[1]} could overflow int32, K = {MAX_K} cannot; split K into parts and add "
            "their results in int64"
        )
