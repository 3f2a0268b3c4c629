"""NVIDIA ModelOpt's integer quantizer, beside the others in the Rosetta table; no model runs in it here."""

from __future__ import annotations

import numpy as np

__all__ = ["modelopt_integers"]

SMALLEST_AMAX = np.float32(2.0**-24)


def modelopt_integers(x: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.float32]:
    """``q = clip(rint(f(x · f(qmax/amax))), -qmax, qmax)`` with ``qmax = 2^(bits-1) - 1`` and ``amax = max |x|``.

    Narrow range: -128 is never used, so that positive and negative values are treated alike; and x is multiplied by
    the quotient ``qmax/amax``, where others round ``amax/qmax`` first and take its reciprocal.

    Args:
        x: float32, not empty, finite.
        bits: 2 to 8.

    Returns:
        int8 integers of the shape of `x`, and the scale ``f(amax/qmax)``; an amax of 2⁻²⁴ or less counts as 0: the
        integers are all 0 and the scale is 1.

    Source: modelopt.torch.quantization.tensor_quant, ModelOpt 0.47 (num_bits 8, narrow_range True).
    """
    qmax, amax = np.float32(2 ** (bits - 1) - 1), np.abs(x).max()
    if amax <= SMALLEST_AMAX:
        return np.zeros(x.shape, np.int8), np.float32(1)
    return np.clip(np.rint(x * (qmax / amax)), -qmax, qmax).astype(np.int8), amax / qmax
