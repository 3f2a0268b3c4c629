"""fbgemm on an x86 processor without VNNI, where products are added in pairs in int16 and may saturate."""

from __future__ import annotations

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.saturating import saturating_matmul

from ..integer import accumulate
from ..qtensor import QTensor
from .fbgemm import FBGEMM
from .saturating_conv import windows_in_pairs

__all__ = ["FBGEMMWithoutVNNI"]


class FBGEMMWithoutVNNI(FBGEMM):
    """Everything as fbgemm, but for the accumulator; the same model then depends on the processor that runs it.

    Saturation acts on the raw uint8·int8 products. The zero points are taken out afterwards, exactly, so that what was
    cut off does not come back. Its presets ask for reduce_range, with which nothing saturates (see
    `saturating_matmul`); a qconfig without it shows the failure.
    """

    name = "fbgemm_avx2"
    adds_exactly = False

    def accumulate(self, qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray) -> np.ndarray:
        """``Σ_pairs clip(qx·qw + qx'·qw', int16) - zx·Σ qw - zw·Σ qx + K·zx·zw``."""
        return accumulate(qx, zx, qw, zw, saturating_matmul)

    def convolves_exactly(self, weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
        """No kernel does."""
        return False

    def conv_sums(self, x: QTensor, weight: QTensor, geometry: Geometry) -> np.ndarray:
        """The same over each window, whatever kernel runs it."""
        zx, zw = x.qparams.zero_point, weight.qparams.zero_point
        return windows_in_pairs(x.int_repr(), zx, weight.int_repr(), zw, geometry)
