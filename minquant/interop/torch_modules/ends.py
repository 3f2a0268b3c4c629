"""Where integers begin and where they end: stubs after `convert`, and tables of an Embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minquant.quant import PerGroup
from minquant.quant.dialects import get_dialect

from . import quantizing
from .quantized import Grid, QuantizedTensor, Weight, integers_of

__all__ = ["DeQuantize", "Embedding", "Quantize"]


class Quantize(torch.nn.Module):
    """minquant's `Quantize`: real values -> integers on a fixed grid.

    Args:
        module: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, module: Any, path: str) -> None:
        super().__init__()
        self.path, self.backend = path, module.backend
        self.qparams = Grid(module.qparams)

    def forward(self, x: Tensor) -> QuantizedTensor:
        """Of any shape.

        Raises:
            TypeError: a tensor that is not of real values.
            ValueError: NaN.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"Quantize '{self.path}': expected a tensor of real values, got {getattr(x, 'dtype', x)}")
        if x.isnan().any():
            raise ValueError(f"Quantize '{self.path}': NaN in the input, for which a grid has no integer")
        grid = self.qparams.qparams
        return QuantizedTensor(quantizing.quantize(get_dialect(self.backend), x.float(), grid), grid)

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"


class DeQuantize(torch.nn.Module):
    """minquant's `DeQuantize`: integers -> ``f((q - z)·s)``."""

    path = ""

    def forward(self, x: QuantizedTensor) -> Tensor:
        return integers_of(x, self).dequantize()


class Embedding(torch.nn.Module):
    """minquant's `QuantizedEmbedding`: a row of integers for each index, as real values.

    Args:
        module: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, module: Any, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = Weight(module.weight)

    def forward(self, index: Tensor) -> Tensor:
        """(…) integers -> (…, features), ``f((q - z) · s)``."""
        scale, zero_point = self.weight.scale, self.weight.zero_point
        if scale.ndim:
            scale, zero_point = (self._of_rows(values, index) for values in (scale, zero_point))
        return (self.weight.unpacked()[index].int() - zero_point).float() * scale

    def _of_rows(self, values: Tensor, index: Tensor) -> Tensor:
        """(rows,) or (rows, groups) -> what broadcasts against (…, features)."""
        granularity = self.weight.spec.granularity
        size = granularity.group_size if isinstance(granularity, PerGroup) else 1
        return values.reshape(len(values), -1)[index].repeat_interleave(size, -1)
