"""qnnpack, torch's engine for ARM phones."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.epilogue import ToCodes, ToReal

from ..qtensor import QTensor
from ..spec import QParams
from .base import codes_on
from .qnnpack_operations import QNNPACKOperations
from .reference import real
from .torch_rules import TorchDialect, saturated

__all__ = ["QNNPACK"]

INT32_MIN = np.float32(-(2**31))
LARGEST_BIAS = np.float32(2147483520)  # the largest float32 that int32 holds


class QNNPACK(QNNPACKOperations, TorchDialect):
    """The bias is an integer, in steps of ``sx·sw``; run-time grids use all of 0…255."""

    name = "qnnpack"
    per_channel_weight = False
    run_time_qmax = 255

    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """``y = f(f(f(acc) · f(sw·sx)) + bias)``."""
        return ToReal(real, x_scale, w_scale, bias, relu)

    def to_codes(
        self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, output: QParams, relu: bool
    ) -> ToCodes:
        """``rint(f(f(acc + qb) · f(f(sw·sx) · f(1/so)))) + zo`` with ``qb = rint(f(bias · f(1/(sw·sx))))``.

        A bias of more than 2³¹ steps saturates; torch's then depends on the element's place in the vector.
        """
        reciprocal = (1.0 / (np.float64(w_scale) * np.float64(x_scale)).astype(np.float32)).astype(np.float32)
        integer_bias = np.clip(np.rint(bias * reciprocal), INT32_MIN, LARGEST_BIAS).astype(np.int32)
        multiplier = (w_scale * np.float32(x_scale)) * (np.float32(1) / output.scale)
        return codes_on(output, relu, codes, (integer_bias, multiplier), np.float32(output.zero_point))

    def conv_to_input_grid(
        self, x: QTensor, scale: np.float64, weight: QTensor, bias: np.ndarray, geometry: Geometry
    ) -> QTensor:
        """The bias is counted in steps of the float64 scale; the rest is a static Conv."""
        to_codes = self.to_codes(np.asarray(scale), weight.qparams.scale, bias, x.qparams, False)
        return QTensor.clipped(
            geometry.channels_last(self.conv_product(x, weight, geometry, to_codes), x.shape), x.qparams
        )


def codes(acc: Any, integer_bias: Any, multiplier: Any, unused: Any, unused_too: Any, zero_point: Any) -> Any:
    """``rint(f(f(acc + qb) · multiplier)) + zo``."""
    return saturated(np.rint(np.float32(np.int32(acc + integer_bias)) * multiplier), zero_point)
