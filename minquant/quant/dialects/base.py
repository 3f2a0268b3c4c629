"""What an engine has to say for itself: the rules that differ from one to the next.

All engines run a quantized Linear or Conv in the same three steps, and only the first and the last differ:

    quantize x  →  exact int32 sums (`minquant.quant.integer`)  →  to real values, or to integers of the next grid

Other operations on quantized tensors are done in real values, ``quantize(f(dequantize(x), …))``, unless an engine has
a way of its own.

A dialect is a class with those rules as small functions, each standing once: NumPy runs them on arrays, and kernels on
each sum as it comes out (`minquant.kernels.epilogue`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minquant import functional
from minquant.functional.conv import Conv
from minquant.functional.geometry import Geometry
from minquant.kernels.epilogue import Epilogue, ToCodes, ToReal
from minquant.tensor import Tensor

from ..grid import EPS
from ..integer import accumulate, accumulate_conv, finish, product, product_conv
from ..qtensor import QTensor, quantize
from ..spec import PerGroup, QParams, QSpec

__all__ = ["Dialect", "Factory", "codes_on"]

Factory = Callable[[], Any]


class Dialect(ABC):
    """One engine's way to quantize, rescale and requantize."""

    name: str

    pooling_keeps_the_grid = False
    """Whether average pooling writes to its input's grid, so that its output needs no observer."""

    @abstractmethod
    def quantize(self, x: np.ndarray | Tensor, qparams: QParams) -> QTensor:
        """Real values -> integers, where a model's input enters (QuantStub)."""

    @abstractmethod
    def converted_grid(self, qparams: QParams) -> QParams:
        """The grid that a converted layer writes to, given the grid that calibration chose."""

    def full_spec(self, spec: QSpec) -> QSpec:
        """The integers that a converted layer writes, given those that were observed: the same."""
        return spec

    @abstractmethod
    def quantize_at_run_time(self, x: np.ndarray, spec: QSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integers, scale and zero point of a dynamic layer's input, chosen from this very input."""

    def run_time_eps(self, spec: QSpec) -> np.float32:
        """The smallest scale that `quantize_at_run_time` gives."""
        return EPS

    @abstractmethod
    def to_real(self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, relu: bool = False) -> ToReal:
        """How int32 sums become float32 outputs, bias included."""

    @abstractmethod
    def to_codes(
        self, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, output: QParams, relu: bool
    ) -> ToCodes:
        """How int32 sums become integers on the output's grid, bias and (fused) relu included."""

    def rescale(self, acc: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """int32 accumulator (R, N) -> float32 output (R, N), bias included."""
        return self.to_real(x_scale, w_scale, bias)(acc)

    def requantize(
        self,
        acc: np.ndarray,
        x_scale: np.ndarray,
        w_scale: np.ndarray,
        bias: np.ndarray,
        output: QParams,
        relu: bool,
    ) -> np.ndarray:
        """int32 accumulator (R, N) -> integers (R, N) on the output's grid, bias and (fused) relu included."""
        return self.to_codes(x_scale, w_scale, bias, output, relu)(acc)

    def qat_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Linear in quantization-aware training, from fake-quantized x and weight: simulated in float."""
        return functional.linear(x, weight, bias)

    def qat_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Conv (N, C, *size) in quantization-aware training, likewise."""
        return Conv.apply(x, weight, *(() if bias is None else (bias,)), geometry=geometry)

    # ---- presets -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def observers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Activation and weight observers of static quantization."""

    @abstractmethod
    def fake_quantizers(self, weight_bits: int, act_bits: int) -> tuple[Factory, Factory]:
        """Activation and weight fake quantizers of quantization-aware training."""

    @abstractmethod
    def dynamic(self, weight_bits: int) -> tuple[QSpec, Factory]:
        """Activation grid and weight observer of dynamic quantization."""

    def only_8_bits(self, weight_bits: int, act_bits: int) -> None:
        """ValueError unless both are 8; for the presets of engines that have no other integers."""
        if (weight_bits, act_bits) != (8, 8):
            raise ValueError(
                f"{self.name} knows 8 bits only, got weight_bits={weight_bits}, act_bits={act_bits}; "
                'the dialect "reference" has 2 to 8'
            )

    # ---- arithmetic --------------------------------------------------------------------------------------------------

    def check_weight(self, spec: QSpec) -> None:
        """Refuses a weight grid that this engine has no arithmetic for.

        Raises:
            ValueError: weights per group, which only the reference dialect rescales.
        """
        if isinstance(spec.granularity, PerGroup):
            raise ValueError(
                f'{self.name} has no Linear for a weight {spec}; use PerTensor or PerChannel, or backend="reference"'
            )

    def linear(self, x: QTensor, weight: QTensor, bias: np.ndarray, output: QParams, relu: bool) -> QTensor:
        """Static quantized Linear: integers in, integers out.

        Args:
            x: (…, K), one scale.
            weight: (N, K).
            bias: (N,) float32.
            output: grid of the result.
            relu: whether a relu is fused in.

        Returns:
            QTensor (…, N) on the grid `output`.
        """
        rows = x.int_repr().reshape(-1, x.shape[-1])
        codes = self.to_codes(x.qparams.scale, weight.qparams.scale, bias, output, relu)
        q = self.product(rows, x.qparams.zero_point, weight.int_repr(), weight.qparams.zero_point, codes)
        return QTensor.clipped(q.reshape(*x.shape[:-1], len(weight)), output)

    def dynamic_linear(self, x: np.ndarray, weight: QTensor, bias: np.ndarray, relu: bool, spec: QSpec) -> np.ndarray:
        """Dynamic quantized Linear: float32 in, float32 out, integers in between.

        Args:
            x: (…, K) float32; its grid is chosen from its own range.
            weight: (N, K).
            bias: (N,) float32.
            relu: whether a relu follows.
            spec: the kind of grid for x.

        Returns:
            (…, N) float32.
        """
        rows = x.reshape(-1, x.shape[-1])
        y = self.real_output(*self.quantize_at_run_time(rows, spec), weight.int_repr(), weight.qparams, bias, relu)
        return y.reshape(*x.shape[:-1], len(weight))

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
        """Integers (M, K) and (N, K) -> float32 output (M, N), bias and relu included."""
        return self.product(qx, zx, qw, w_grid.zero_point, self.to_real(x_scale, w_grid.scale, bias, relu))

    adds_exactly = True
    """Whether `accumulate` is the exact sum, which kernels compute and finish in one go."""

    def product(self, qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray, epilogue: Epilogue) -> np.ndarray:
        """Integers (M, K) and (N, K) -> the epilogue of `accumulate`, (M, N)."""
        if self.adds_exactly:
            return product(qx, zx, qw, zw, epilogue)
        return finish(self.accumulate(qx, zx, qw, zw), epilogue)

    def accumulate(self, qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray) -> np.ndarray:
        """Integers (M, K) and (N, K) -> ``Σ (qx - zx)(qw - zw)``, (M, N) int32: exact, as processors with VNNI add."""
        return accumulate(qx, zx, qw, zw)

    # ---- tables ------------------------------------------------------------------------------------------------------

    trains_tables = True
    """Whether a table is fake-quantized in training on the grid that it is converted to."""

    def quantize_table(self, table: np.ndarray, qparams: QParams) -> Any:
        """The integers of an Embedding's table (rows, features), on the grid that its qconfig chose."""
        return quantize(table, qparams)

    # ---- convolution -------------------------------------------------------------------------------------------------

    def conv(
        self, x: QTensor, weight: QTensor, bias: np.ndarray, output: QParams, relu: bool, geometry: Geometry
    ) -> QTensor:
        """Static quantized Conv: integers in, integers out.

        Args:
            x: (N, C, *size), one scale.
            weight: (M, C/groups, *kernel), one scale or one an output channel.
            bias: (M,) float32.
            output: grid of the result.
            relu: whether a relu is fused in.
            geometry: how the kernel slides.

        Returns:
            QTensor (N, M, *places) on the grid `output`.
        """
        codes = self.to_codes(x.qparams.scale, weight.qparams.scale, bias, output, relu)
        return QTensor.clipped(geometry.channels_last(self.conv_product(x, weight, geometry, codes), x.shape), output)

    def convolves_exactly(self, weight_shape: tuple[int, ...], geometry: Geometry) -> bool:
        """Whether `conv_sums` of such a weight are the exact sums."""
        return True

    def conv_product(self, x: QTensor, weight: QTensor, geometry: Geometry, epilogue: Epilogue) -> np.ndarray:
        """The epilogue of `conv_sums`, (R, M)."""
        if not self.convolves_exactly(weight.shape, geometry):
            return finish(self.conv_sums(x, weight, geometry), epilogue)
        zx, zw = x.qparams.zero_point, weight.qparams.zero_point
        return product_conv(x.int_repr(), zx, weight.int_repr(), zw, geometry, epilogue)

    def conv_sums(self, x: QTensor, weight: QTensor, geometry: Geometry) -> np.ndarray:
        """``Σ (qx - zx)(qw - zw)`` over each window, (R, M) int32, exact; the padding contributes nothing."""
        zx, zw = x.qparams.zero_point, weight.qparams.zero_point
        return accumulate_conv(x.int_repr(), zx, weight.int_repr(), zw, geometry)

    def dynamic_conv(
        self, x: np.ndarray, weight: QTensor, bias: np.ndarray, relu: bool, spec: QSpec, geometry: Geometry
    ) -> np.ndarray:
        """Dynamic quantized Conv: float32 in, float32 out, integers in between.

        Args:
            x: (N, C, *size) float32; its grid is chosen from its own range.
            weight: (M, C/groups, *kernel).
            bias: (M,) float32.
            relu: whether a relu follows.
            spec: the kind of grid for x, per tensor.
            geometry: how the kernel slides.

        Returns:
            (N, M, *places) float32.
        """
        qx, x_scale, zx = self.quantize_at_run_time(x, spec)
        qw, zw = weight.int_repr(), weight.qparams.zero_point
        y = product_conv(qx, zx, qw, zw, geometry, self.to_real(x_scale, weight.qparams.scale, bias, relu))
        return geometry.images(y, x.shape)

    # ---- other operations on quantized tensors -----------------------------------------------------------------------

    def in_real_values(self, function: Callable[..., Tensor], operands: Sequence[QTensor], output: QParams) -> QTensor:
        """``quantize(function(dequantized operands))``: the plain rule for whatever has no integer form of its own."""
        return self.quantize(function(*(Tensor(x.dequantize()) for x in operands)), output)

    def add(self, a: QTensor, b: QTensor, output: QParams, relu: bool) -> QTensor:
        """``a + b``, each with a scale of its own; then relu."""
        return self.in_real_values(lambda x, y: _relu_if(relu, x + y), (a, b), output)

    def mul(self, a: QTensor, b: QTensor, output: QParams, relu: bool) -> QTensor:
        """``a · b``; then relu."""
        return self.in_real_values(lambda x, y: _relu_if(relu, x * y), (a, b), output)

    def add_scalar(self, a: QTensor, c: float, output: QParams) -> QTensor:
        """``a + c`` of a real number c."""
        return self.in_real_values(lambda x: x + c, (a,), output)

    def mul_scalar(self, a: QTensor, c: float, output: QParams) -> QTensor:
        """``a · c`` of a real number c."""
        return self.in_real_values(lambda x: x * c, (a,), output)

    def matmul(self, a: QTensor, b: QTensor, output: QParams) -> QTensor:
        """``a @ b`` of two activations."""
        return self.in_real_values(functional.matmul, (a, b), output)

    def cat(self, operands: Sequence[QTensor], dim: int, output: QParams) -> QTensor:
        """The operands along one axis, all brought to one grid."""
        return self.in_real_values(lambda *xs: functional.cat(xs, dim), operands, output)

    def avg_pool2d(
        self, x: QTensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], output: QParams
    ) -> QTensor:
        """The mean of each window, the real zeros of the padding counted."""
        return self.in_real_values(lambda y: functional.avg_pool2d(y, kernel, stride, padding), (x,), output)

    def adaptive_avg_pool2d(self, x: QTensor, size: tuple[int, int], output: QParams) -> QTensor:
        """The mean of each region."""
        return self.in_real_values(lambda y: functional.adaptive_avg_pool2d(y, size), (x,), output)

    def sigmoid(self, x: QTensor, output: QParams) -> QTensor:
        """``1 / (1 + e⁻ˣ)``."""
        return self.in_real_values(functional.sigmoid, (x,), output)

    def tanh(self, x: QTensor, output: QParams) -> QTensor:
        """The hyperbolic tangent."""
        return self.in_real_values(functional.tanh, (x,), output)

    def softmax(self, x: QTensor, dim: int, output: QParams) -> QTensor:
        """``exp(x) / Σ exp(x)`` along dim."""
        return self.in_real_values(lambda y: functional.softmax(y, dim), (x,), output)


def codes_on(
    output: QParams, relu: bool, function: Callable[..., Any], terms: tuple[Any, ...], zero_point: np.number
) -> ToCodes:
    """Codes clipped to the output's grid; a relu cuts off at its zero point, which is real 0.

    `function` gets four terms; where there are fewer, zeros that it has no use for.
    """
    spec, unused = output.spec, (np.float32(0),) * (4 - len(terms))
    lowest = int(output.zero_point) if relu else spec.qmin
    return ToCodes(function, (*terms, *unused), zero_point, lowest, spec.qmax, spec.dtype)


def _relu_if(relu: bool, x: Tensor) -> Tensor:
    return functional.relu(x) if relu else x
