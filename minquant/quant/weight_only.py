"""Linears whose weight alone is integers, or whose input has one grid for good."""

from __future__ import annotations

import numpy as np

from minquant import functional
from minquant.tensor import Tensor

from .dialects import get_dialect
from .dialects.tinygemm import TinygemmTensor
from .grid import to_integers
from .linear import IntegerLinear
from .qtensor import QTensor
from .spec import QParams
from .weighted import check_features, check_input_spec, finite_input, real_input

__all__ = ["StaticActivationLinear", "WeightOnlyQuantizedLinear"]


class WeightOnlyQuantizedLinear(IntegerLinear):
    """``y = x ŵᵀ + b`` in float32, where only the weight is kept as integers: ``ŵ = f((q - z) · s)``.

    It saves memory and no time: the weight is taken back to real values at every call, and forgotten.

    Args:
        weight: QTensor or TinygemmTensor ``(out_features, in_features)``.
        bias: float32 array ``(out_features,)`` or None.

    Raises (in forward):
        TypeError: integers instead of real values.
        ValueError: another number of features.

    The weight is exact; n = K + 1 float32 additions in any order err by at most ``n·u/(1 - n·u)`` of
    ``Σ|x||ŵ| + |b|``, u = 2⁻²⁴.
    Source: torchao.quantization.IntxWeightOnlyConfig and Int8WeightOnlyConfig, torchao 0.18.
    """

    def __init__(self, weight: QTensor | TinygemmTensor, bias: np.ndarray | None) -> None:
        super().__init__(weight, bias, "torchao")  # type: ignore[arg-type]

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) float32 -> (…, out_features) float32."""
        array = real_input(x, self)
        check_features(array.shape, self)
        return Tensor(functional.linear(array, self.weight.dequantize(), self.bias).data)


class StaticActivationLinear(IntegerLinear):
    """Real values in and out, integers in between: the input's grid was chosen beforehand, and stays.

    Args:
        weight: QTensor ``(out_features, in_features)``, symmetric, per channel or per tensor.
        bias: float32 array ``(out_features,)`` or None.
        input_grid: the grid of the input, one scale; values beyond it are clipped.
        backend: the dialect.

    Raises (in forward):
        TypeError: integers instead of real values.
        ValueError: another number of features; NaN in the input.

    Source: torchao.quantization.Int8StaticActivationInt8WeightConfig, torchao 0.18.
    """

    def __init__(self, weight: QTensor, bias: np.ndarray | None, input_grid: QParams, backend: str) -> None:
        super().__init__(weight, bias, backend)
        check_input_spec(input_grid.spec, self)
        self.input_grid = input_grid

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """(…, in_features) float32 -> (…, out_features) float32."""
        array = real_input(x, self)
        check_features(array.shape, self)
        grid, weight = self.input_grid, self.weight
        with finite_input(array, self):
            qx = to_integers(array, grid).reshape(-1, self.in_features)
        terms = qx, grid.scale, grid.zero_point, weight.int_repr(), weight.qparams, self._bias_or_zeros()
        y = get_dialect(self.backend).real_output(*terms)
        return Tensor(y.reshape(*array.shape[:-1], self.out_features))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input={self.input_grid}"
