"""The grid that FBGEMM chooses for a range, at run time and in torch's fused fake quantizer."""

from __future__ import annotations

import numpy as np

__all__ = ["fbgemm_qparams"]

SMALLEST_SCALE = np.float32(6.1e-5)


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
    mirrored = symmetric and low < 0 < high
    if mirrored:
        half = (qmax - qmin) // 2
        step = max(abs(np.float64(low / np.float32(-half - 1))), abs(np.float64(high / np.float32(half))))
        low, high = np.float32(step * (-half - 1)), np.float32(step * half)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = np.float64(scale_dtype((np.float64(high) - np.float64(low)) / (qmax - qmin)))
    with np.errstate(divide="ignore", over="ignore"):
        if np.float32(scale) == 0 or np.isinf(np.float32(1) / np.float32(scale)):
            scale = np.float64(scale_dtype(0.1))
    if scale < SMALLEST_SCALE:
        low, high = _widen(low, high, np.float32(scale), qmax - qmin)
        scale = np.float64(SMALLEST_SCALE)
    if mirrored:
        return scale, int(np.rint((qmin + qmax) / 2))
    return scale, _zero_point(np.float64(low), np.float64(high), scale, qmin, qmax)


def _widen(low: np.float32, high: np.float32, scale: np.float32, steps: int) -> tuple[np.float32, np.float32]:
    if low == 0:
        return low, SMALLEST_SCALE * np.float32(steps)
    if high == 0:
        return -SMALLEST_SCALE * np.float32(steps), high
    amplifier = SMALLEST_SCALE / scale
    return low * amplifier, high * amplifier


def _zero_point(low: np.float64, high: np.float64, scale: np.float64, qmin: int, qmax: int) -> int:
    from_min, from_max = qmin - low / scale, qmax - high / scale
    error_from_min = abs(qmin) + abs(low / scale)
    error_from_max = abs(qmax) + abs(high / scale)
    exact = from_min if error_from_min < error_from_max else from_max
    return int(np.rint(np.clip(exact, qmin, qmax)))
