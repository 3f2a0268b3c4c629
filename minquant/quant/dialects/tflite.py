"""TFLite's grids, beside the others in the Rosetta table: int8 activations and int8 weights, a half away from zero.

Its requantization is in `fixed_point`; no model runs in this dialect here.
"""

from __future__ import annotations

import numpy as np

__all__ = ["away_from_zero", "tflite_activation", "tflite_weight"]

F32 = np.float32
QMIN, QMAX = -128, 127


def away_from_zero(x: np.ndarray) -> np.ndarray:
    """To the nearest integer, a half away from zero: C's round()."""
    return np.trunc(x) + np.trunc(2 * (x - np.trunc(x)))


def tflite_activation(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """``q = clip(round(f(x / s)) + z, -128, 127)`` with ``s = f(f(hi - lo)/255)``, ``z = round(f(-128 - f(lo/s)))``.

    Args:
        x: float32, not empty, finite.

    Returns:
        int8 integers of the shape of `x`, scale, zero point; a tensor of zeros has the scale 1 here (TFLite refuses 0).

    Raises:
        ValueError: a range so narrow that the scale would be 0.

    Source: GetAsymmetricQuantizationParams in TFLite's tools/optimize/quantization_utils.cc; AffineQuantize in
    kernels/internal/reference/quantize.h.
    """
    low, high = np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))
    scale = (high - low) / F32(QMAX - QMIN) if low < high else F32(1)
    if scale == 0:
        raise ValueError(f"the range {low} … {high} makes the scale 0; rescale the data")
    zero_point = int(away_from_zero(np.clip(F32(QMIN) - low / scale, QMIN, QMAX)))
    codes = away_from_zero(x / scale) + zero_point
    return np.clip(codes, QMIN, QMAX).astype(np.int8), scale, zero_point


def tflite_weight(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """``q = clip(round(f(x · f(127/amax))), -127, 127)``; the scale is ``f(amax/127)``, or 1 for zeros.

    Raises:
        ValueError: an amax so small that 127/amax is infinite.

    Source: SymmetricQuantizeFloats in TFLite's kernels/internal/reference/portable_tensor_utils.cc.
    """
    amax = np.abs(x).max()
    if amax == 0:
        return np.zeros(x.shape, np.int8), F32(1)
    with np.errstate(over="ignore"):
        inverse = F32(QMAX) / amax
    if np.isinf(inverse):
        raise ValueError(f"the largest value, {amax}, is so small that 127/{amax} is infinite; rescale the data")
    return np.clip(away_from_zero(x * inverse), -QMAX, QMAX).astype(np.int8), amax / F32(QMAX)
