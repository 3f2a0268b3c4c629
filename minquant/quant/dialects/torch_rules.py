"""Rules that all of PyTorch's CPU engines share (torch 2.13): how x becomes integers, and the run-time grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels.fma import fma
from minquant.tensor import Tensor

from ..grid import float_array, range_of, to_integers
from ..histogram import HistogramObserver
from ..observers import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from ..qtensor import QTensor
from ..spec import PerTensor, QParams, QSpec
from .base import Factory
from .fbgemm_grid import fbgemm_qparams
from .float_qparams import FloatQParamsTable, quantize_rows
from .fused_fake_quant import FusedMovingAvgObsFakeQuantize
from .torch_operations import TorchOperations

__all__ = ["TorchDialect"]

QUINT8 = QSpec(bits=8, signed=False)
ABOVE_INT32, ROUND_INT32 = np.float32(2.0**31), np.float32(2.0**32)
LOWEST_INT16, HIGHEST_INT16 = np.float32(-32768), np.float32(32767)
PER_CHANNEL = {"dtype": "qint8", "qscheme": "per_channel_symmetric"}
PER_TENSOR = {"dtype": "qint8", "qscheme": "per_tensor_symmetric"}


class TorchDialect(TorchOperations):
    """What fbgemm, x86, qnnpack and onednn have in common."""

    run_time_qmax = 127
    """Largest integer of a dynamic layer's input: the modules ask for reduce_range."""

    reduce_range = False
    """Whether the presets leave one bit of the activations unused."""

    pooling_keeps_the_grid = True
    trains_tables = False

    per_channel_weight = True
    """Whether the presets give each output channel of a weight its own scale."""

    def observers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Histogram for activations; symmetric weights. torch.ao.quantization.get_default_qconfig."""
        self.only_8_bits(weight_bits, act_bits)
        activation = HistogramObserver.with_args(reduce_range=self.reduce_range)
        per_channel = PerChannelMinMaxObserver.with_args(**PER_CHANNEL)
        return activation, per_channel if self.per_channel_weight else MinMaxObserver.with_args(**PER_TENSOR)

    def fake_quantizers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Moving averages, fused. torch.ao.quantization.get_default_qat_qconfig, version 1."""
        self.only_8_bits(weight_bits, act_bits)
        fused, int8 = FusedMovingAvgObsFakeQuantize, {"quant_min": -128, "quant_max": 127}
        activation = fused.with_args(observer=MovingAverageMinMaxObserver, reduce_range=self.reduce_range)
        per_channel = fused.with_args(observer=MovingAveragePerChannelMinMaxObserver, **PER_CHANNEL, **int8)
        per_tensor = fused.with_args(observer=MovingAverageMinMaxObserver, **PER_TENSOR, **int8)
        return activation, per_channel if self.per_channel_weight else per_tensor

    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """Per-tensor weights for every engine. torch.ao.quantization.default_dynamic_qconfig."""
        self.only_8_bits(weight_bits, 8)
        return QSpec(signed=False, qmax=self.run_time_qmax), MinMaxObserver.with_args(**PER_TENSOR)

    def quantize(self, x: np.ndarray | Tensor, qparams: QParams) -> QTensor:
        """``clip(rint(fma(x, f(1/s), z)), 0, 255)``: torch.quantize_per_tensor to quint8, which makes 255 of NaN.

        Raises:
            ValueError: NaN.
        """
        return QTensor.clipped(to_integers(float_array(x, "quantize"), qparams, to_code), qparams)

    def quantize_table(self, table: np.ndarray, qparams: QParams) -> FloatQParamsTable:
        """On the only grid that torch has for tables, whatever the qconfig chose: see `float_qparams`."""
        return quantize_rows(table)

    def full_spec(self, spec: QSpec) -> QSpec:
        """All of 0…255: reduce_range binds the observer, not the operator."""
        return QUINT8

    def converted_grid(self, qparams: QParams) -> QParams:
        """The same scale and zero point on all of 0…255."""
        return QParams(qparams.scale, qparams.zero_point, QUINT8)

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """FBGEMM's grid for the range of this x; the operator clips at 0…255 even where the grid ends at 127."""
        scale, zero_point = fbgemm_qparams(*run_time_range(x), spec.qmin, spec.qmax)
        grid = np.asarray(scale, np.float32), np.asarray(zero_point, np.int32)
        return to_integers(x, QParams(*grid, QUINT8), to_code), *grid

    # ---- convolution -------------------------------------------------------------------------------------------------

    def dynamic_conv(
        self, x: np.ndarray, weight: QTensor, bias: np.ndarray, relu: bool, spec: QSpec, geometry: Geometry
    ) -> np.ndarray:
        """Dynamic quantized Conv, float32 in and out: a static one whose output is written to the grid of its *input*.

        That is a fault of torch: an output beyond the input's range is cut off at its ends, and one far below it rounds
        to 0. torch's modules warn of "poor numerical accuracy" for it. The reference dialect returns the real values.

        Source: PackedConvWeight::apply_dynamic and its like (qconv_dynamic.cpp), torch 2.13.
        """
        scale, zero_point = fbgemm_qparams(*run_time_range(x), spec.qmin, spec.qmax)
        grid = QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), QUINT8)
        y = self.conv_to_input_grid(self.quantize(x, grid), scale, weight, bias, geometry).dequantize()
        return np.maximum(y, np.float32(0)) if relu else y

    def conv_to_input_grid(
        self, x: QTensor, scale: np.float64, weight: QTensor, bias: np.ndarray, geometry: Geometry
    ) -> QTensor:
        """Static Conv to the grid of x, whose scale is also given before its rounding to float32."""
        return self.conv(x, weight, bias, x.qparams, False, geometry)


def quantize_codes(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """``rint(fma(x, f(1/s), z))`` before clipping, float32."""
    return to_code(x, np.float32(1) / scale, zero_point)


def to_code(x: Any, inverse: Any, zero_point: Any) -> Any:
    """``rint(fma(x, inverse, z))``, of arrays and of numbers inside kernels."""
    return np.rint(fma(x, inverse, zero_point))


def run_time_range(x: np.ndarray) -> tuple[Any, Any]:
    """Smallest and largest value; (0, 0) of an empty batch.

    Raises:
        ValueError: NaN or infinity.
    """
    low, high = range_of(x, PerTensor()) if x.size else (np.float32(0), np.float32(0))
    if not (low > -np.inf and high < np.inf):  # NaN is neither
        raise ValueError(f"a range must be finite, got {low} … {high}")
    return low, high


def saturated(steps: Any, zero_point: Any) -> Any:
    """Rounded steps -> codes before clipping, as the vector kernels pack them.

    Convert to int32, where anything too large becomes -2³¹; saturate to int16, add the zero point. (What is too small
    becomes -2³¹, too, which saturates like itself.)
    """
    limited = np.minimum(steps, ABOVE_INT32)
    wrapped = limited - ROUND_INT32 * np.float32(limited >= ABOVE_INT32)
    return np.minimum(np.maximum(wrapped, LOWEST_INT16), HIGHEST_INT16) + zero_point
