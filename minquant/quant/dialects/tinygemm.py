"""tinygemm, torchao's format for 4-bit weights: a zero point in real values, in the middle of the grid.

``x ≈ (q - mid)·s + z`` with ``mid = (qmin + qmax + 1)/2``, so that z is the real value of the middle integer. The grid
runs from the smallest value to the largest, and real 0 need not lie on it: where all have one sign, no integer is
spent on values that do not occur.

Source: the tinygemm functions of torchao.quantization.quant_primitives, torchao 0.18, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minquant.tensor import Function, Tensor

from ..grid import check_finite, float_array, refuse_nan
from ..qtensor import pack_bits, unpack_bits
from ..spec import QSpec

__all__ = ["TinygemmGrid", "TinygemmTensor", "choose_qparams", "dequantize", "fake_quantize", "quantize"]

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


class TinygemmTensor:
    """Integers on tinygemm's grid: a weight that is kept packed.

    Args:
        integers: (N, K), of the grid's integers.
        qparams: the grid.

    Attributes:
        storage: the bytes that are kept; see `minquant.quant.qtensor.pack_bits`.
    """

    def __init__(self, integers: np.ndarray, qparams: TinygemmGrid) -> None:
        self.shape, self.qparams = integers.shape, qparams
        self.storage = pack_bits(integers, qparams.spec.bits)
        self.storage.flags.writeable = False

    @classmethod
    def of(cls, x: np.ndarray, spec: QSpec) -> TinygemmTensor:
        """The integers of real values, on the grid for their range; errors as `choose_qparams`."""
        grid = choose_qparams(x, spec)
        return cls(quantize(x, grid), grid)

    def int_repr(self) -> np.ndarray:
        """The integers, unpacked for this call."""
        spec = self.qparams.spec
        return unpack_bits(self.storage, spec.bits, spec.signed, self.shape)

    def dequantize(self) -> np.ndarray:
        """The real values, float32."""
        return dequantize(self.int_repr(), self.qparams)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept: packed integers, float32 scales and zero points."""
        return self.storage.nbytes + self.qparams.scale.nbytes + self.qparams.zero_point.nbytes

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"TinygemmTensor({self.int_repr()}, {self.qparams})"


def fake_quantize(x: Tensor, spec: QSpec) -> Tensor:
    """``dequantize(quantize(x))`` on the grid for x's own range, with the gradient passed on unchanged.

    Source: torchao.quantization.qat.IntxFakeQuantizer with zero_point_domain FLOAT, torchao 0.18, whose mask is true
    everywhere: no value lies outside a range chosen from it.
    """
    return RoundToTinygemm.apply(x, spec=spec)


class RoundToTinygemm(Function):
    """See `fake_quantize`."""

    def forward(self, x: np.ndarray, spec: QSpec) -> np.ndarray:
        values = float_array(x, "fake_quantize")
        grid = choose_qparams(values, spec)
        return dequantize(quantize(values, grid), grid).astype(x.dtype, copy=False)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad
