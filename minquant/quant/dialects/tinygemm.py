"""tinygemm, torchao's format for 4-bit weights: a zero point in real values, in the middle of the grid.

``x ≈ (q - mid)·s + z`` with ``mid = (qmin + qmax + 1)/2``, so that z is the real value of the middle integer. The grid
runs from the smallest value to the largest, and real 0 need not lie on it: where all have one sign, no integer is
spent on values that do not occur.

Source: the tinygemm functions of torchao.quantization.quant_primitives, torchao 0.18, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..grid import check_finite, refuse_nan
from ..spec import QSpec

__all__ = ["TinygemmGrid", "choose_qparams", "dequantize", "quantize"]

F32 = np.float32
EPS = 1e-6


@dataclass(frozen=True, eq=False)
class TinygemmGrid:
    """Where a grid with a real zero point lies.

    Args:
        scale: float32, shaped as `QParams.scale`.
        zero_point: float32, same shape: the real value of the middle integer.
        spec: which integers, and how much of a tensor shares a scale.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QSpec

    @property
    def middle(self) -> np.float32:
        """``(qmin + qmax + 1) / 2``: 8 of 0…15."""
        return F32((self.spec.qmin + self.spec.qmax + 1) / 2)

    def expand(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point, shaped to broadcast against a tensor of this shape."""
        granularity = self.spec.granularity
        return granularity.expand(self.scale, shape), granularity.expand(self.zero_point, shape)


def choose_qparams(x: np.ndarray, spec: QSpec, eps: float = EPS) -> TinygemmGrid:
    """``s = max(f(f(max - min) / (qmax - qmin)), eps)``, ``z = f(min + f(s·mid))``; the range need not hold 0.

    Args:
        x: float32 array.
        spec: the kind of grid, affine; torchao's own is QSpec(4, signed=False, granularity=PerGroup(size)).
        eps: smallest scale.

    Raises:
        ValueError: a symmetric spec; NaN or infinity in x.

    Source: torchao.quantization.utils.get_groupwise_affine_qparams and _choose_qparams_affine_tinygemm, torchao 0.18.
    """
    if spec.symmetric:
        raise ValueError(f"tinygemm has no symmetric grid, got {spec}; give QSpec(symmetric=False)")
    check_finite(x, "choose_qparams: x", "Mend the data")
    x_min, x_max = spec.granularity.min_max(x)
    scale = np.maximum((x_max - x_min) / F32(spec.qmax - spec.qmin), F32(eps))
    middle = TinygemmGrid(scale, scale, spec).middle
    return TinygemmGrid(scale, x_min + scale * middle, spec)


def quantize(x: np.ndarray, grid: TinygemmGrid) -> np.ndarray:
    """``clip(rint(f(f(x - min) / s)), qmin, qmax)`` with ``min = f(z - f(s·mid))``; integers of the spec's dtype.

    Raises:
        ValueError: NaN.

    Source: _quantize_affine_tinygemm, torchao 0.18.
    """
    refuse_nan(x)
    scale, zero_point = grid.expand(x.shape)
    lowest = zero_point - scale * grid.middle
    return np.clip(np.rint((x - lowest) / scale), grid.spec.qmin, grid.spec.qmax).astype(grid.spec.dtype)


def dequantize(q: np.ndarray, grid: TinygemmGrid) -> np.ndarray:
    """``f(f((q - mid)·s) + z)``. Source: _dequantize_affine_tinygemm, torchao 0.18."""
    scale, zero_point = grid.expand(q.shape)
    return (q.astype(F32) - grid.middle) * scale + zero_point
