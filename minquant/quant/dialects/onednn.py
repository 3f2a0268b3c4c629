"""onednn, Intel's library behind torch's ``"onednn"`` engine, on a processor with VNNI."""

from __future__ import annotations

import numpy as np

from minquant.functional.geometry import Geometry

from ..qtensor import QTensor
from ..spec import QParams, QSpec
from .fbgemm_grid import fbgemm_qparams
from .torch_rules import TorchDialect, run_time_range

__all__ = ["ONEDNN"]


def reciprocal_twice(value: np.ndarray | np.floating) -> np.ndarray:
    """``f(1/f(1/float64(v)))``: the library is handed the reciprocal of each scale and takes it back."""
    inverse = (1.0 / value.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(1) / inverse)


class ONEDNN(TorchDialect):
    """Scales arrive as reciprocals and are inverted again, but for a convolution's weight scales.

    The zero point of the output is added before the rounding.
    """

    name = "onednn"

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``clip(rint(f(f(x · f(1/se)) + z)), 0, 255)`` with ``se`` the twice inverted scale."""
        scale, zero_point = fbgemm_qparams(*run_time_range(x), spec.qmin, spec.qmax)
        effective = reciprocal_twice(scale)
        codes = np.rint(x * (np.float32(1) / effective) + np.float32(zero_point))
        return np.clip(codes, 0, 255).astype(np.uint8), effective, np.asarray(zero_point, np.int32)

    def rescale(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """``y = f(f(f(f(acc)·se)·we) + bias)``."""
        return self.to_real(acc, x_scale, reciprocal_twice(w_scale), bias)

    def requantize(
        self,
        acc: np.ndarray,
        x_scale: np.ndarray,
        w_scale: np.ndarray,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
    ) -> np.ndarray:
        """``rint(f(f(u · f(1/so')) + zo))`` with ``u`` the rescaled float output, relu applied to ``u``."""
        real = self.rescale(acc, reciprocal_twice(x_scale), w_scale, bias)
        return to_codes(real, reciprocal_twice(output.scale), output, relu)

    def to_real(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Accumulator -> real values, with the scales as the library has them."""
        return acc.astype(np.float32) * x_scale * w_scale + bias

    # ---- convolution -------------------------------------------------------------------------------------------------

    def conv(
        self, x: QTensor, weight: QTensor, bias: np.ndarray, output: QParams, relu: bool, geometry: Geometry
    ) -> QTensor:
        """As Linear, with the weight's own scales instead of the twice inverted ones."""
        scales = reciprocal_twice(x.qparams.scale), reciprocal_twice(output.scale)
        return self.conv_of_scales(x, weight, bias, output, relu, geometry, *scales)

    def conv_to_input_grid(
        self, x: QTensor, scale: np.float64, weight: QTensor, bias: np.ndarray, geometry: Geometry
    ) -> QTensor:
        """The reciprocal is taken of the float64 scale."""
        effective = reciprocal_twice(scale)
        return self.conv_of_scales(x, weight, bias, x.qparams, False, geometry, effective, effective)

    def conv_of_scales(
        self,
        x: QTensor,
        weight: QTensor,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
        geometry: Geometry,
        x_scale: np.ndarray,
        out_scale: np.ndarray,
    ) -> QTensor:
        """The convolution, with the scales of input and output as the library has them."""
        real = self.to_real(self.conv_sums(x, weight, geometry), x_scale, weight.qparams.scale, bias)
        return QTensor(geometry.images(to_codes(real, out_scale, output, relu), x.shape), output)


def to_codes(real: np.ndarray, scale: np.ndarray, output: QParams, relu: bool) -> np.ndarray:
    """``rint(f(f(u · f(1/so')) + zo))`` on the output's grid."""
    real = np.maximum(real, np.float32(0)) if relu else real
    codes = np.rint(real * (np.float32(1) / scale) + output.zero_point.astype(np.float32))
    return np.clip(codes, output.spec.qmin, output.spec.qmax).astype(np.uint8)
