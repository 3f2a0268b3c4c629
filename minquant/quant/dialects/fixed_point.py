"""TFLite's way from int32 to 8 bits, by gemmlowp: no float at run time, an integer multiplier and a shift.

``acc · m`` with a real multiplier ``m = sx·sw/so`` becomes ``acc · mantissa · 2^(shift - 31)``, mantissa an int32
between 2³⁰ and 2³¹, and the product is rounded **twice**: once to the upper half of the 64-bit product, where a tie
goes up, and once in the shift to the right, where a tie goes away from zero.

=======================  =====================================  ==========================================
acc · m                  first rounding                         second rounding
=======================  =====================================  ==========================================
5 · ½                    2.5 → 3                                no shift: **3**
-5 · ½                   -2.5 → -2                              no shift: **-2**
-10 · ¼                  -5                                     -2.5 → **-3**
1 · ¼                    0.5 → 1                                0.5 → **1**, though ¼ is nearer to 0
=======================  =====================================  ==========================================

The bias is an int32 in steps of ``sx·sw``, added to the accumulator beforehand. No model runs in this dialect here: it
stands beside the others in the Rosetta table.
Source: gemmlowp fixedpoint/fixedpoint.h; TFLite kernels/internal/common.h and quantization_util.cc (double rounding,
its default); Jacob et al. 2018 (arXiv:1712.05877), section 2.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import QParams

__all__ = [
    "multiply_by_quantized_multiplier",
    "quantize_multiplier",
    "requantize",
    "rounding_divide_by_pot",
    "saturating_rounding_doubling_high_mul",
]

INT32 = np.iinfo(np.int32)
SMALLEST_SHIFT = -31


def quantize_multiplier(multiplier: Any) -> tuple[np.ndarray, np.ndarray]:
    """``m = mantissa · 2^(shift - 31)`` as nearly as 31 bits can: the mantissa is 0, or in ``2³⁰ … 2³¹ - 1``.

    Args:
        multiplier: real numbers from 0, float64, any shape: ``float64(sx)·float64(sw)/float64(so)``.

    Returns:
        mantissa and shift, both int32 of that shape. Below 2⁻³² the mantissa is 0: every bit would be shifted out.

    Raises:
        ValueError: a multiplier that is negative or not finite.

    Source: QuantizeMultiplier in TFLite's quantization_util.cc.
    """
    real = np.asarray(multiplier, np.float64)
    if not (np.isfinite(real) & (real >= 0)).all():
        raise ValueError(f"quantize_multiplier: expected finite multipliers from 0, as sx·sw/so is; got {multiplier}")
    fraction, shift = np.frexp(real)  # ½ ≤ fraction < 1, or 0
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carried = mantissa == 2**31
    mantissa, shift = np.where(carried, 2**30, mantissa), shift + carried
    lost = shift < SMALLEST_SHIFT
    return np.where(lost, 0, mantissa).astype(np.int32), np.where(lost, 0, shift).astype(np.int32)


def saturating_rounding_doubling_high_mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``⌊a·b/2³¹ + ½⌋``, int32: the upper half of the doubled product, ties upwards. -2³¹·-2³¹ gives 2³¹ - 1.

    Source: gemmlowp SaturatingRoundingDoublingHighMul, which is ARM's instruction VQRDMULH.
    """
    high = (np.asarray(a, np.int64) * np.asarray(b, np.int64) + 2**30) >> 31
    return np.minimum(high, INT32.max).astype(np.int32)


def rounding_divide_by_pot(x: np.ndarray, exponent: Any) -> np.ndarray:
    """``x / 2^exponent`` to the nearest integer, ties away from zero, int32; exponent 0 … 31.

    Source: gemmlowp RoundingDivideByPOT.
    """
    wide, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    half = (np.int64(1) << exponent) >> 1
    return (np.sign(wide) * ((np.abs(wide) + half) >> exponent)).astype(np.int32)


def multiply_by_quantized_multiplier(x: np.ndarray, mantissa: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """``x · mantissa · 2^(shift - 31)``, int32, rounded twice.

    Args:
        x: int32.
        mantissa: and `shift`: of `quantize_multiplier`; they broadcast with x, so ``(N,)`` for one a channel.
        shift: positive: x is shifted to the left first; negative: the product is shifted to the right.

    Raises:
        ValueError: ``x · 2^shift`` leaves int32, where TFLite's result is undefined.
    """
    shifted = np.asarray(x, np.int64) << np.maximum(shift, 0)
    if shifted.size and not (INT32.min <= shifted.min() and shifted.max() <= INT32.max):
        raise ValueError(
            f"multiply_by_quantized_multiplier: x · 2^shift reaches {np.abs(shifted).max()} and leaves int32; a "
            "multiplier of at most 1 shifts nothing to the left: check the scales"
        )
    return rounding_divide_by_pot(
        saturating_rounding_doubling_high_mul(shifted, mantissa), np.maximum(-np.asarray(shift), 0)
    )


def requantize(acc: np.ndarray, multiplier: Any, output: QParams, relu: bool = False) -> np.ndarray:
    """int32 accumulator, bias included -> integers on the output's grid: ``clip(acc · m + zo, qmin, qmax)``.

    Args:
        acc: int32 (…, N).
        multiplier: ``float64(sx)·float64(sw)/float64(so)``, one, or one a channel ``(N,)``.
        output: grid of the result, per tensor.
        relu: whether a relu is fused in: the integers then start at the zero point.

    Returns:
        (…, N) of the grid's dtype: uint8, or int8 as TFLite's own models have it.

    Raises:
        ValueError: as `quantize_multiplier` and `multiply_by_quantized_multiplier`.
    """
    steps = multiply_by_quantized_multiplier(acc, *quantize_multiplier(multiplier)).astype(np.int64)
    lowest = int(output.zero_point) if relu else output.spec.qmin
    return np.clip(steps + output.zero_point, lowest, output.spec.qmax).astype(output.spec.dtype)
