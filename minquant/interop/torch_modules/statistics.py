"""Norms and softmax between two grids, on tensors: they add real values, in float64.

A device may add them in another order than NumPy. Sums of n values then differ by n·2⁻⁵³ of the sum of their sizes at
most, and a result, which is rounded to float32 and to an integer, by one step at most: where it lies that near to the
middle of two float32 numbers, and that number as near to a half step as it can, that is, hardly ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.quant import QParams
from minquant.quant.dialects import Dialect
from minquant.quant.dialects.qnnpack_operations import UNIT_SCALE, QNNPACKOperations, exponentials
from minquant.quant.dialects.torch_operations import TorchOperations
from minquant.quant.grid import to_real

from . import quantizing
from .between import BetweenGrids, every_integer, index_of
from .quantized import Grid, QuantizedTensor

__all__ = ["Norm", "Softmax", "uncovered_softmax"]


class Norm(BetweenGrids):
    """Of a LayerNorm or RMSNorm; `real` has the same parameters. Args: see `BetweenGrids`."""

    output: Grid

    def __init__(self, module: Any, path: str, real: torch.nn.Module) -> None:
        super().__init__(module, path, real)
        self.axes = tuple(range(-len(module.module.normalized_shape), 0))
        self.centres, eps = type(module.module).__name__ == "LayerNorm", module.module.eps
        self.eps = float(np.finfo(np.float32).eps) if eps is None else eps

    def on_integers(self, x: QuantizedTensor) -> QuantizedTensor:
        """In float64, rounded once."""
        wide = x.dequantize().double()
        count = torch.full((), math.prod(wide.shape[self.axes[0] :]), dtype=torch.float64, device=wide.device)
        if self.centres:
            wide = wide - wide.sum(self.axes, keepdim=True) / count
        y = (wide * (1 / ((wide * wide).sum(self.axes, keepdim=True) / count + self.eps).sqrt())).float()
        for parameter, apply in ((self.module.weight, torch.mul), (getattr(self.module, "bias", None), torch.add)):
            y = y if parameter is None else apply(y, parameter.detach())
        output = self.output.qparams
        return QuantizedTensor(quantizing.quantize(self.dialect, y, output), output)


class Softmax(BetweenGrids):
    """Of a Softmax; exponentials come from a table that NumPy has filled. Args: see `BetweenGrids`."""

    output: Grid

    def __init__(self, module: Any, path: str, real: torch.nn.Module) -> None:
        super().__init__(module, path, real)
        self.along = module.module.dim

    def on_integers(self, x: QuantizedTensor) -> QuantizedTensor:
        """By the engine's way."""
        return SOFTMAX[type(self.dialect).softmax](self.dialect, x, self.along, self.output.qparams)


def powers(x: QuantizedTensor, dim: int, dtype: type) -> Tensor:
    """``exp(x̂ - max x̂)``, of the float32 difference, computed in that dtype."""
    every = every_integer(x.qparams)
    real = to_real(every.int_repr(), x.qparams)
    with np.errstate(over="ignore"):  # pairs that do not occur: x beyond its own maximum
        table = np.exp((real[np.newaxis] - real[:, np.newaxis]).astype(dtype)).reshape(-1)  # by maximum, then x
    index = index_of(x)
    return torch.tensor(table, device=index.device)[index.amax(dim, keepdim=True) * len(every) + index]


def real_softmax(dialect: Dialect, x: QuantizedTensor, dim: int, output: QParams) -> QuantizedTensor:
    """As `minquant.functional.softmax`: exponentials in float32, their sum in float64, rounded."""
    power = powers(x, dim, np.float32)
    return quantized(dialect, power / power.double().sum(dim, keepdim=True).float(), output)


def torchs_softmax(dialect: Dialect, x: QuantizedTensor, dim: int, output: QParams) -> QuantizedTensor:
    """All in float64, rounded at the end."""
    power = powers(x, dim, np.float64)
    return quantized(dialect, (power / power.sum(dim, keepdim=True)).float(), output)


def qnnpacks_softmax(dialect: Dialect, x: QuantizedTensor, dim: int, output: QParams) -> QuantizedTensor:
    """In integers; on another grid than its own, as torch's other engines."""
    if output.scale != UNIT_SCALE or output.zero_point != 0:
        return torchs_softmax(dialect, x, dim, output)
    q = x.integers.long()
    table = torch.tensor(exponentials(x.qparams.scale, x.shape[dim]), device=q.device)
    power = table[255 - q.amax(dim, keepdim=True) + q]
    total = power.sum(dim, keepdim=True)
    codes = torch.div(256 * power + (total >> 1), total.clamp(min=1), rounding_mode="floor").clamp(max=255)
    return QuantizedTensor(codes.to(x.integers.dtype), output)


def quantized(dialect: Dialect, real: Tensor, output: QParams) -> QuantizedTensor:
    """By the dialect's rule."""
    return QuantizedTensor(quantizing.quantize(dialect, real, output), output)


SOFTMAX: dict[Any, Callable[..., QuantizedTensor]] = {
    Dialect.softmax: real_softmax,
    TorchOperations.softmax: torchs_softmax,
    QNNPACKOperations.softmax: qnnpacks_softmax,
}


def uncovered_softmax(dialect: Dialect) -> str:
    """Why the dialect's softmax is not to be had on tensors; "" if it is."""
    return "" if type(dialect).softmax in SOFTMAX else f"the softmax of {dialect.name} is not covered"
