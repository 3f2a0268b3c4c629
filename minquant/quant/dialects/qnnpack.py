"""qnnpack, torch's engine for ARM phones."""

from __future__ import annotations

import numpy as np

from minquant.functional.geometry import Geometry

from ..qtensor import QTensor
from ..spec import QParams
from .qnnpack_operations import QNNPACKOperations
from .torch_rules import TorchDialect, saturating_pack

__all__ = ["QNNPACK"]

INT32_MIN = np.float32(-(2**31))
LARGEST_BIAS = np.float32(2147483520)  # the largest float32 that int32 holds


class QNNPACK(QNNPACKOperations, TorchDialect):
    """The bias is an integer, in steps of ``sx·sw``; run-time grids use all of 0…255."""

    name = "qnnpack"
    per_channel_weight = False
    run_time_qmax = 255

    def rescale(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """``y = f(f(f(acc) · f(sw·sx)) + bias)``."""
        return acc.astype(np.float32) * (w_scale * x_scale) + bias

    def requantize(
        self,
        acc: np.ndarray,
        x_scale: np.ndarray,
        w_scale: np.ndarray,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
    ) -> np.ndarray:
        """``rint(f(f(acc + qb) · f(f(sw·sx) · f(1/so)))) + zo`` with ``qb = rint(f(bias · f(1/(sw·sx))))``.

        A bias of more than 2³¹ steps saturates; torch's then depends on the element's place in the vector.
        """
        reciprocal = (1.0 / (np.float64(w_scale) * np.float64(x_scale)).astype(np.float32)).astype(np.float32)
        integer_bias = np.clip(np.rint(bias * reciprocal), INT32_MIN, LARGEST_BIAS).astype(np.int32)
        multiplier = (w_scale * np.float32(x_scale)) * (np.float32(1) / output.scale)
        steps = np.rint((acc + integer_bias).astype(np.float32) * multiplier)
        lowest = int(output.zero_point) if relu else output.spec.qmin
        return saturating_pack(steps, output.zero_point, lowest, output.spec.qmax)

    def conv_to_input_grid(
        self, x: QTensor, scale: np.float64, weight: QTensor, bias: np.ndarray, geometry: Geometry
    ) -> QTensor:
        """The bias is counted in steps of the float64 scale; the rest is a static Conv."""
        acc = self.conv_sums(x, weight, geometry)
        q = self.requantize(acc, np.asarray(scale), weight.qparams.scale, bias, x.qparams, False)
        return QTensor(geometry.images(q, x.shape), x.qparams)
