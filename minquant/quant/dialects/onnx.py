"""``"onnx"`` and ``"onnxruntime"``: models whose layers are ONNX's quantized operators.

The operators stand in `onnx_grid` (QuantizeLinear and its kin) and `onnx_products` (MatMulInteger and its kin). A
static Linear is QLinearMatMul with a bias in the accumulator, that is QLinearConv with a kernel of one element; a
dynamic one is DynamicQuantizeLinear, MatMulInteger, Cast, Mul by ``f(x_scale · w_scale)`` and Add of the float bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minquant.kernels.epilogue import ToCodes, ToReal
from minquant.tensor import Tensor

from ..fake_quant import FakeQuantize, WeightFakeQuantize
from ..grid import float_array, refuse_nan
from ..observers import MinMaxObserver, PerChannelMinMaxObserver
from ..qtensor import QTensor
from ..spec import QParams, QSpec
from .base import Dialect, Factory, codes_on
from .onnx_grid import dequantize_linear, dynamic_quantize_linear, quantize_linear, to_codes
from .onnx_products import (
    conv_integer,
    in_double,
    in_single,
    matmul_integer,
    multiplier,
    qlinear_conv,
    qlinear_matmul,
)
from .reference import real

__all__ = [
    "ONNX",
    "ONNXRuntime",
    "conv_integer",
    "dequantize_linear",
    "dynamic_quantize_linear",
    "matmul_integer",
    "qlinear_conv",
    "qlinear_matmul",
    "quantize_linear",
]

UINT8 = QSpec(signed=False)
WEIGHT = {"dtype": "qint8", "qscheme": "per_channel_symmetric", "quant_min": -127, "quant_max": 127}
"""Without -128, as onnxruntime's own quantizer makes symmetric weights."""


def codes_in_double(acc: Any, bias: Any, multiplier: Any, unused: Any, unused_too: Any, zero_point: Any) -> Any:
    """`in_double` of the sum and its int32 bias."""
    return in_double(np.int32(acc + bias), multiplier, zero_point)


def codes_in_single(acc: Any, bias: Any, multiplier: Any, unused: Any, unused_too: Any, zero_point: Any) -> Any:
    """`in_single` of the sum and its int32 bias."""
    return in_single(np.int32(acc + bias), multiplier, zero_point)


class ONNX(Dialect):
    """QLinearMatMul and QLinearConv scaled as onnx's reference implementation does, in float64."""

    name = "onnx"
    codes: Callable[..., Any] = staticmethod(codes_in_double)

    # ---- presets: the operators prescribe none -----------------------------------------------------------------------

    def observers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Smallest and largest value for activations, 0…255; symmetric per channel for weights, ±127."""
        self.only_8_bits(weight_bits, act_bits)
        return MinMaxObserver.with_args(), PerChannelMinMaxObserver.with_args(**WEIGHT)

    def fake_quantizers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """The same grids."""
        self.only_8_bits(weight_bits, act_bits)
        activation = FakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=255)
        return activation, WeightFakeQuantize.with_args(observer=PerChannelMinMaxObserver, **WEIGHT)

    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """uint8 for activations, which is all that DynamicQuantizeLinear has; symmetric per channel for weights."""
        self.only_8_bits(weight_bits, 8)
        return UINT8, PerChannelMinMaxObserver.with_args(**WEIGHT)

    # ---- arithmetic --------------------------------------------------------------------------------------------------

    def quantize(self, x: np.ndarray | Tensor, qparams: QParams) -> QTensor:
        """QuantizeLinear: ``clip(rint(f(x / s)) + z, qmin, qmax)``.

        Raises:
            ValueError: NaN.
        """
        array = float_array(x, "quantize")
        refuse_nan(array)
        scale, zero_point = qparams.expand(array.shape)
        codes = np.clip(to_codes(array, scale, zero_point), qparams.spec.qmin, qparams.spec.qmax)
        return QTensor(codes.astype(qparams.spec.dtype), qparams)

    def converted_grid(self, qparams: QParams) -> QParams:
        """The same scale and zero point on the whole of uint8 or int8, at whose ends the operators saturate."""
        return QParams(qparams.scale, qparams.zero_point, QSpec(signed=qparams.spec.signed))

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """DynamicQuantizeLinear.

        Raises:
            ValueError: a grid that is not uint8, per tensor, which is all that the operator has.
        """
        if spec != UINT8:
            raise ValueError(f"{self.name}: DynamicQuantizeLinear knows {UINT8} only, got {spec} for the input")
        q, scale, zero_point = dynamic_quantize_linear(x)
        return q, scale, zero_point.astype(np.int32)

    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """Cast, Mul, Add: ``y = f(f(f(acc) · f(sx·sw)) + bias)``."""
        return ToReal(real, x_scale, w_scale, bias, relu)

    def to_codes(
        self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, output: QParams, relu: bool
    ) -> ToCodes:
        """The end of QLinearConv, with an int32 bias; a relu behind it is ``max(q, zo)``."""
        terms = integer_bias(bias, x_scale, w_scale), multiplier(x_scale, w_scale, output.scale)
        return codes_on(output, relu, self.codes, terms, np.float64(output.zero_point))


class ONNXRuntime(ONNX):
    """The same scaled as onnxruntime does, in float32, on processors with VNNI or with uint8 weights.

    Without VNNI onnxruntime's products of uint8 activations and int8 weights saturate in int16 (see
    `minquant.kernels.saturating`).
    """

    name = "onnxruntime"
    codes = staticmethod(codes_in_single)


def integer_bias(bias: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray) -> np.ndarray:
    """``clip(rint(bias / f(sx·sw)))``, divided in float64, int32.

    Source: onnxruntime.quantization, quantize_bias_static, version 1.32.
    """
    steps = np.rint(bias.astype(np.float64) / (x_scale * w_scale))
    return np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32)
