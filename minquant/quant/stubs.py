"""What the stubs of `minquant.nn` become: where real values turn into integers, and integers into real values."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import functional
from minquant.nn import DeQuantStub, Dropout, Module
from minquant.tensor import Tensor

from .dialects import get_dialect
from .qtensor import QTensor
from .spec import QParams

__all__ = ["DeQuantize", "GridDropout", "LeaveGridStub", "Quantize"]


class Quantize(Module):
    """What a QuantStub becomes: real values -> integers on a fixed grid.

    Args:
        qparams: the grid, chosen by calibration.
        backend: the dialect, which says how to round.
    """

    def __init__(self, qparams: QParams, backend: str) -> None:
        super().__init__()
        self.qparams = qparams
        self.backend = backend

    def forward(self, x: Tensor | np.ndarray) -> QTensor:
        if isinstance(x, QTensor):
            raise TypeError("Quantize expects real values, got a QTensor: is there a QuantStub too many?")
        return get_dialect(self.backend).quantize(x, self.qparams)

    def extra_repr(self) -> str:
        return f"{self.qparams}, backend={self.backend!r}"


class DeQuantize(Module):
    """What a DeQuantStub becomes: integers -> ``f((q - z)·s)``."""

    def forward(self, x: QTensor) -> Tensor:
        if not isinstance(x, QTensor):
            raise TypeError(
                "DeQuantize expects a quantized tensor, got real values: nothing before it was quantized. "
                "Put a QuantStub where the quantized part begins"
            )
        return Tensor(x.dequantize())


class LeaveGridStub(DeQuantStub):
    """A DeQuantStub in training: what reaches it must lie on a grid, since it will be integers after `convert`.

    Attributes:
        fake_quant_enabled: as of `FakeQuantize`; while values are not rounded, none lie on a grid.

    Raises (in forward):
        ValueError: real values that lie on no grid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake_quant_enabled = True

    def forward(self, x: Tensor) -> Tensor:
        if self.fake_quant_enabled and x.qparams is None:
            raise ValueError(
                "DeQuantStub: expected values on a quantization grid, got plain real values: an operation between the "
                "last quantized layer and this stub left the grid, so that the converted model could not run it. Move "
                "the stub before that operation, or write it with a FloatFunctional. (Where fake-quantization is off "
                "for single layers, set this stub's fake_quant_enabled to False as well.)"
            )
        return super().forward(x)


class GridDropout(Dropout):
    """Dropout on a grid: what is kept grows by ``1/(1-p)``, and so does the grid's scale."""

    def forward(self, input: Any) -> Any:
        y = functional.dropout(input, self.p, self.training)
        grid = getattr(input, "qparams", None)
        if self.training and grid is not None and self.p < 1:
            y.qparams = QParams(grid.scale * np.float32(1 / (1 - self.p)), grid.zero_point, grid.spec)
        return y
