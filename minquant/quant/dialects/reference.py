"""``"reference"``, minquant's own dialect: the one plain rule of `minquant.quant.grid`, in training and after it.

A Linear or Conv computes, in float32 and in this order, with groups g of K in ascending order (one group unless the
weight of a Linear is quantized per group) and nothing fused:

    ``acc_g = Σₖ (qx - zx)(qw - zw)`` exact  →  ``y = Σ_g f(f(acc_g)·f(sx·sw_g))``  →  ``+ bias``  →  relu  →  quantize

Quantization-aware training runs this same arithmetic forward, so that a trained model and the converted one
agree to the last bit; only its gradient is that of the float layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import functional
from minquant.autograd import total
from minquant.functional.conv import Conv
from minquant.functional.geometry import Geometry
from minquant.kernels.epilogue import ToCodes, ToReal
from minquant.kernels.packed import GroupedWeight
from minquant.tensor import Function, Tensor

from .. import grid
from ..fake_quant import FakeQuantize, WeightFakeQuantize
from ..grid import to_code
from ..grouped import grouped_output, weight_of_arrays, weight_of_qtensor
from ..histogram import HistogramObserver
from ..integer import product_conv
from ..observers import MinMaxObserver, PerChannelMinMaxObserver
from ..qtensor import QTensor, quantize
from ..spec import PerGroup, QParams, QSpec
from .base import Dialect, Factory, codes_on

__all__ = ["Reference"]

WEIGHT = {"dtype": "qint8", "qscheme": "per_channel_symmetric"}


def integer_range(bits: int, signed: bool = True) -> dict[str, int]:
    """quant_min and quant_max of a grid of that many bits."""
    spec = QSpec(bits, signed)
    return {"quant_min": spec.qmin, "quant_max": spec.qmax}


class Reference(Dialect):
    """One rule everywhere."""

    name = "reference"

    def observers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Histogram for activations; symmetric per channel for weights."""
        activation = HistogramObserver.with_args(**integer_range(act_bits, signed=False))
        return activation, PerChannelMinMaxObserver.with_args(**WEIGHT, **integer_range(weight_bits))

    def fake_quantizers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Smallest and largest value so far for activations; the current ones, per channel, for weights."""
        activation = FakeQuantize.with_args(observer=MinMaxObserver, **integer_range(act_bits, signed=False))
        weight = {"observer": PerChannelMinMaxObserver, **WEIGHT, **integer_range(weight_bits)}
        return activation, WeightFakeQuantize.with_args(**weight)

    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """0…255 per tensor for activations; symmetric per channel for weights."""
        return QSpec(signed=False), PerChannelMinMaxObserver.with_args(**WEIGHT, **integer_range(weight_bits))

    def quantize(self, x: np.ndarray | Tensor, qparams: QParams) -> QTensor:
        """``clip(rint(f(x · f(1/s))) + z, qmin, qmax)``."""
        return quantize(x, qparams)

    def converted_grid(self, qparams: QParams) -> QParams:
        """The grid that calibration chose, unchanged."""
        return qparams

    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The grid of this x's own range, per tensor or per token, as `spec` says."""
        nothing = np.zeros(spec.granularity.qparams_shape(x.shape), np.float32)
        x_min, x_max = grid.range_of(x, spec.granularity) if x.size else (nothing, nothing)
        qparams = grid.choose_qparams(x_min, x_max, spec)
        return grid.to_integers(x, qparams), *qparams.expand(x.shape)

    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """``y = f(f(f(acc) · f(sx·sw)) + bias)``."""
        return ToReal(real, x_scale, w_scale, bias, relu)

    def real_output(
        self,
        qx: np.ndarray,
        x_scale: np.ndarray,
        zx: np.ndarray,
        qw: np.ndarray,
        w_grid: QParams,
        bias: np.ndarray,
        relu: bool = False,
    ) -> np.ndarray:
        """Integers -> float32 (M, N); with groups, ``y = f(y + f(f(acc_g) · f(sx·sw_g)))``, then bias and relu."""
        if not isinstance(w_grid.spec.granularity, PerGroup):
            return super().real_output(qx, x_scale, zx, qw, w_grid, bias, relu)
        return self._by_groups(qx, x_scale, zx, weight_of_arrays(qw, w_grid), bias, relu)

    def _by_groups(
        self,
        qx: np.ndarray,
        x_scale: np.ndarray,
        zx: np.ndarray,
        weight: GroupedWeight,
        bias: np.ndarray,
        relu: bool,
    ) -> np.ndarray:
        y = grouped_output(qx, x_scale, zx, weight, bias, scaled)
        return np.maximum(y, np.float32(0)) if relu else y

    def to_codes(
        self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, output: QParams, relu: bool
    ) -> ToCodes:
        """The real value, relu, and quantized to the output's grid like any other real value."""
        terms = x_scale, w_scale, bias, np.float32(1) / output.scale
        return codes_on(output, relu, codes, terms, np.float32(output.zero_point))

    def linear(self, x: QTensor, weight: QTensor, bias: np.ndarray, output: QParams, relu: bool) -> QTensor:
        """As every dialect's; with groups, the real values are quantized to the output's grid."""
        if not isinstance(weight.qparams.spec.granularity, PerGroup):
            return super().linear(x, weight, bias, output, relu)
        rows = x.int_repr().reshape(-1, x.shape[-1])
        grouped = weight_of_qtensor(weight)
        y = self._by_groups(rows, x.qparams.scale, x.qparams.zero_point, grouped, bias, relu)
        return quantize(y.reshape(*x.shape[:-1], len(weight)), output)

    def dynamic_linear(self, x: np.ndarray, weight: QTensor, bias: np.ndarray, relu: bool, spec: QSpec) -> np.ndarray:
        """As every dialect's; with groups, of a weight that is kept as kernels read it."""
        if not isinstance(weight.qparams.spec.granularity, PerGroup):
            return super().dynamic_linear(x, weight, bias, relu, spec)
        rows = x.reshape(-1, x.shape[-1])
        y = self._by_groups(*self.quantize_at_run_time(rows, spec), weight_of_qtensor(weight), bias, relu)
        return y.reshape(*x.shape[:-1], len(weight))

    def check_weight(self, spec: QSpec) -> None:
        """Every weight grid of up to 8 bits has its arithmetic here."""

    def qat_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The integer arithmetic forward, the float Linear's gradient backward."""
        if x.qparams is None or weight.qparams is None:  # fake-quantization is switched off for one of them
            return functional.linear(x, weight, bias)
        return integer_linear(x, weight, bias, self)

    def qat_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """The integer arithmetic forward, the float convolution's gradient backward."""
        inputs = (x, weight, *(() if bias is None else (bias,)))
        if x.qparams is None or weight.qparams is None:
            return Conv.apply(*inputs, geometry=geometry)
        return IntegerConv.apply(*inputs, geometry=geometry, x_grid=x.qparams, w_grid=weight.qparams, dialect=self)


def real(acc: Any, x_scale: Any, w_scale: Any, bias: Any) -> Any:
    """``f(f(f(acc) · f(sx·sw)) + bias)``."""
    return scaled(np.float32(acc), x_scale, w_scale, bias)


def scaled(acc: Any, x_scale: Any, w_scale: Any, y: Any) -> Any:
    """``f(f(acc · f(sx·sw)) + y)`` of acc in float32."""
    return acc * (x_scale * w_scale) + y


def codes(acc: Any, x_scale: Any, w_scale: Any, bias: Any, inverse: Any, zero_point: Any) -> Any:
    """``rint(f(y · f(1/so))) + zo`` of the real value y."""
    return to_code(real(acc, x_scale, w_scale, bias), inverse, zero_point)


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dialect: Dialect) -> Tensor:
    """``y = x̂ ŵᵀ + b`` of values on grids, in the dialect's integer arithmetic."""
    shift = np.zeros(weight.shape[0], np.float32) if bias is None else bias
    grids = {"x_grid": x.qparams, "w_grid": weight.qparams}
    return IntegerLinear.apply(x, weight, shift, **grids, qx=x.integers, qw=weight.integers, dialect=dialect)


class IntegerLinear(Function):
    """``y = x̂ ŵᵀ + b``, computed on the integers behind x̂ and ŵ: those given, or those that the values lie on."""

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        x_grid: QParams,
        w_grid: QParams,
        qx: np.ndarray | None,
        qw: np.ndarray | None,
        dialect: Dialect,
    ) -> np.ndarray:
        self.save(x, weight)
        # Quantizing a value that lies on the grid gives its integer back: the three roundings on the way move it
        # by less than 2^-21 of itself, far below the half step that would change the integer.
        qx = grid.to_integers(x, x_grid) if qx is None else qx
        qw = grid.to_integers(weight, w_grid) if qw is None else qw
        x_scale, zx = (terms.reshape(-1, 1) if terms.ndim else terms for terms in x_grid.expand(x.shape))
        y = dialect.real_output(qx.reshape(-1, x.shape[-1]), x_scale, zx, qw, w_grid, bias)
        return y.reshape(*x.shape[:-1], len(weight))  # (…, N)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, weight = self.saved
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        by_x, by_weight, by_bias = self.needs_grad
        return (
            (grad_rows @ weight).reshape(x.shape) if by_x else None,
            grad_rows.T @ rows if by_weight else None,
            total(grad_rows, 0) if by_bias else None,
        )


class IntegerConv(Conv):
    """``y = x̂ * ŵ + b``, computed on the integers behind x̂ and ŵ; the gradient is `Conv`'s."""

    def forward(  # type: ignore[override]
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        geometry: Geometry,
        x_grid: QParams,
        w_grid: QParams,
        dialect: Reference,
    ) -> np.ndarray:
        self.save(x, weight)
        self.geometry, self.has_bias = geometry, bias is not None
        qx, qw = grid.to_integers(x, x_grid), grid.to_integers(weight, w_grid)
        shift = np.zeros(len(weight), np.float32) if bias is None else bias
        to_real = dialect.to_real(x_grid.scale, w_grid.scale, shift, False)
        y = product_conv(qx, x_grid.zero_point, qw, w_grid.zero_point, geometry, to_real)
        return geometry.images(y, x.shape)
