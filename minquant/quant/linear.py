"""Linear in its quantized lives: fake-quantized in training, and on integers."""

from __future__ import annotations

import numpy as np

from minquant.nn import Linear
from minquant.tensor import Tensor

from .dialects import get_dialect
from .fake_quant import FakeQuantize
from .qtensor import QTensor
from .spec import PerTensor, PerToken, QParams, QSpec
from .weighted import (
    IntegerWeight,
    QATWeighted,
    check_features,
    check_integer_spec,
    check_output_grid,
    finite_input,
    integer_input,
    real_input,
)

__all__ = [
    "DynamicQuantizedLinear",
    "DynamicQuantizedLinearReLU",
    "QATLinear",
    "QATLinearReLU",
    "QuantizedLinear",
    "QuantizedLinearReLU",
]


class QATLinear(QATWeighted):
    """Linear whose weight is fake-quantized at every step. See `QATWeighted`.

    Source: torch.ao.nn.qat.Linear, torch 2.13.
    """

    def __init__(self, linear: Linear, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__(linear, weight_fake_quant, backend)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return get_dialect(self.backend).qat_linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, backend={self.backend!r}"


class QATLinearReLU(QATLinear):
    """`QATLinear` with the ReLU fused in."""

    relu = True


class IntegerLinear(IntegerWeight):
    """An `IntegerWeight` of shape ``(out_features, in_features)``."""

    def __init__(self, weight: QTensor, bias: np.ndarray | None, backend: str) -> None:
        super().__init__(weight, bias, backend)
        self.out_features, self.in_features = weight.shape

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"


class QuantizedLinear(IntegerLinear):
    """Static quantized Linear: integers in, integers out, one pass in the dialect's arithmetic.

    Args:
        weight: QTensor ``(out_features, in_features)``.
        bias: float32 array ``(out_features,)`` or None.
        output: the grid of the result.
        backend: the dialect.

    Raises (in forward):
        TypeError: real values instead of integers: there is no QuantStub before the layer.
        ValueError: another number of features; an input with more than one scale, or of 16 bits.

    Source: torch.ao.nn.quantized.Linear, torch 2.13; Jacob et al. 2018, section 2.
    """

    def __init__(self, weight: QTensor, bias: np.ndarray | None, output: QParams, backend: str) -> None:
        super().__init__(weight, bias, backend)
        check_output_grid(output, self._kind)
        self.output = output

    def forward(self, x: QTensor) -> QTensor:
        """(…, in_features) integers -> (…, out_features) integers on the grid `output`."""
        x = integer_input(x, self)
        check_features(x.shape, self)
        return get_dialect(self.backend).linear(x, self.weight, self._bias_or_zeros(), self.output, self.relu)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output={self.output}"


class QuantizedLinearReLU(QuantizedLinear):
    """`QuantizedLinear` with the ReLU fused in. Source: torch.ao.nn.intrinsic.quantized.LinearReLU, torch 2.13."""

    relu = True


class DynamicQuantizedLinear(IntegerLinear):
    """Dynamic quantized Linear: float32 in and out; the input's grid is chosen from the input itself.

    Args:
        weight: QTensor ``(out_features, in_features)``.
        bias: float32 array ``(out_features,)`` or None.
        input_spec: the kind of grid for the input, per tensor or per token.
        backend: the dialect.

    Raises (in forward):
        TypeError: integers instead of real values.
        ValueError: another number of features; NaN or infinity in the input.

    Source: torch.ao.nn.quantized.dynamic.Linear, torch 2.13.
    """

    def __init__(self, weight: QTensor, bias: np.ndarray | None, input_spec: QSpec, backend: str) -> None:
        super().__init__(weight, bias, backend)
        check_integer_spec(input_spec, "input")
        if not isinstance(input_spec.granularity, PerTensor | PerToken):
            raise ValueError(f"{self._kind}: the input's grid is per tensor or per token, got {input_spec}")
        self.input_spec = input_spec

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) float32 -> (…, out_features) float32."""
        array = real_input(x, self)
        check_features(array.shape, self)
        dialect = get_dialect(self.backend)
        with finite_input(array, self):
            y = dialect.dynamic_linear(array, self.weight, self._bias_or_zeros(), self.relu, self.input_spec)
        return Tensor(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input={self.input_spec}"


class DynamicQuantizedLinearReLU(DynamicQuantizedLinear):
    """`DynamicQuantizedLinear` with a ReLU behind it."""

    relu = True
