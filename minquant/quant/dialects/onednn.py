"""onednn, Intel's library behind torch's ``"onednn"`` engine, on a processor with VNNI."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.epilogue import ToCodes, ToReal

from ..grid import to_integers
from ..qtensor import QTensor
from ..spec import QParams, QSpec
from .base import codes_on
from .fbgemm_grid import fbgemm_qparams
from .torch_rules import QUINT8, TorchDialect, run_time_range

__all__ = ["ONEDNN"]


def reciprocal_twice(value: np.ndarray | np.floating) -> np.ndarray:
    """``f(1/f(1/float64(v)))``: the library is handed the reciprocal of each scale and takes it back."""
    inverse = (1.0 / value.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(1) / inverse)


def real(acc: Any, x_scale: Any, w_scale: Any, bias: Any) -> Any:
    """``f(f(f(f(acc) · se) · we) + bias)``."""
    return np.float32(acc) * x_scale * w_scale + bias


def code(y: Any, inverse: Any, zero_point: Any) -> Any:
    """``rint(f(f(y · inverse) + zo))``: the zero point is added before the rounding."""
    return np.rint(y * inverse + zero_point)


def codes(acc: Any, x_scale: Any, w_scale: Any, bias: Any, inverse: Any, zero_point: Any) -> Any:
    """The code of the real output."""
    return code(real(acc, x_scale, w_scale, bias), inverse, zero_point)


class ONEDNN(TorchDialect):
    """Scales arrive as reciprocals and are inverted again, but for a convolution's weight scales.

    The zero point of the output is added before the rounding.
    """

    name = "onednn"
    real, codes = staticmethod(real), staticmethod(codes)

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``clip(rint(f(f(x · f(1/se)) + z)), 0, 255)`` with ``se`` the twice inverted scale."""
        scale, zero_point = fbgemm_qparams(*run_time_range(x), spec.qmin, spec.qmax)
        effective = reciprocal_twice(scale)
        z = np.asarray(zero_point, np.int32)
        return to_integers(x, QParams(effective, z, QUINT8), code), effective, z

    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """``y = f(f(f(f(acc)·se)·we) + bias)``."""
        return ToReal(self.real, x_scale, reciprocal_twice(w_scale), bias, relu)

    def to_codes(
        self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, output: QParams, relu: bool
    ) -> ToCodes:
        """``rint(f(f(u · f(1/so')) + zo))`` with ``u`` the real output, relu applied to ``u``."""
        scales = reciprocal_twice(x_scale), reciprocal_twice(w_scale), reciprocal_twice(output.scale)
        return self.codes_of_scales(*scales, bias, output, relu)

    def codes_of_scales(
        self,
        x_scale: np.ndarray,
        w_scale: np.ndarray,
        out_scale: np.ndarray,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
    ) -> ToCodes:
        """The same, with the scales as the library has them."""
        terms = x_scale, w_scale, bias, np.float32(1) / out_scale
        return codes_on(output, relu, self.codes, terms, np.float32(output.zero_point))

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
        to_codes = self.codes_of_scales(x_scale, weight.qparams.scale, out_scale, bias, output, relu)
        return QTensor.clipped(
            geometry.channels_last(self.conv_product(x, weight, geometry, to_codes), x.shape), output
        )
