"""The grid that FBGEMM chooses for a range, at run time and in torch's fused fake quantizer."""

from __future__ import annotations

import numpy as np

__all__ = ["fbgemm_qparams"]

SMALLEST_SCALE = np.float32(6.1e-5)
RECIPROCAL_INFINITE = 2.0**-128
"""Of this float32 and all smaller ones, 0 among them, ``f(1/s)`` is infinite."""


def fbgemm_qparams(
    x_min: float | np.floating,
    x_max: float | np.floating,
    qmin: int,
    qmax: int,
    symmetric: bool = False,
    scale_dtype: type = np.float64,
) -> tuple[np.float64, int]:
    """The grid that FBGEMM chooses for a range: not the observers' formula.

    ``s = (float64(max) - min) / (qmax - qmin)``, at least 6.1e-5 (the range is then widened to match); a scale
    whose reciprocal is infinite becomes 0.1. The zero point is computed in float64 from the end of the range
    that rounds less, then rounded and clipped. Symmetric with values of both signs: the range is first made
    ``-(h+1)·m … h·m`` with ``h = (qmax-qmin)//2``, and the zero point is the middle of the grid; with one sign
    it is the affine rule.

    Args:
        x_min: smallest value.
        x_max: largest value.
        qmin: smallest integer.
        qmax: largest integer.
        symmetric: "preserve sparsity" in FBGEMM's words.
        scale_dtype: in which the scale is kept while the zero point is computed: float64 at run time, float32 in the
            fused fake quantizer. It decides ties, as in a range that is symmetric around 0.

    Returns:
        scale (float64) and zero point.

    Source: quant_utils::ChooseQuantizationParams in ATen, torch 2.13.
    """
    low, high = np.float32(x_min), np.float32(x_max)
    mirrored = symmetric and bool(low < 0 < high)
    if mirrored:
        half = (qmax - qmin) // 2
        step = max(abs(np.float64(low / np.float32(-half - 1))), abs(np.float64(high / np.float32(half))))
        low, high = np.float32(step * (-half - 1)), np.float32(step * half)
    lo, hi = min(float(low), 0.0), max(float(high), 0.0)  # Python's numbers are float64, and quicker one by one
    scale = float(scale_dtype((hi - lo) / (qmax - qmin)))
    if float(np.float32(scale)) <= RECIPROCAL_INFINITE:
        scale = float(scale_dtype(0.1))
    if scale < SMALLEST_SCALE:
        lo, hi = _widen(np.float32(lo), np.float32(hi), np.float32(scale), qmax - qmin)
        scale = float(SMALLEST_SCALE)
    zero_point = round((qmin + qmax) / 2) if mirrored else _zero_point(lo, hi, scale, qmin, qmax)
    return np.float64(scale), zero_point


def _widen(low: np.float32, high: np.float32, scale: np.float32, steps: int) -> tuple[float, float]:
    if low == 0:
        return float(low), float(SMALLEST_SCALE * np.float32(steps))
    if high == 0:
        return float(-SMALLEST_SCALE * np.float32(steps)), float(high)
    amplifier = SMALLEST_SCALE / scale
    return float(low * amplifier), float(high * amplifier)


def _zero_point(low: float, high: float, scale: float, qmin: int, qmax: int) -> int:
    from_min, from_max = qmin - low / scale, qmax - high / scale
    error_from_min = abs(qmin) + abs(low / scale)
    error_from_max = abs(qmax) + abs(high / scale)
    exact = from_min if error_from_min < error_from_max else from_max
    return round(min(max(exact, qmin), qmax))
