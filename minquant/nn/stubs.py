"""Markers of where the quantized part of a model begins and ends; until `convert` they change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.nn.module import Module
from minquant.tensor import Function, Tensor, as_tensor


class QuantStub(Module):
    """Marks where a model's real values enter its quantized part; returns them unchanged until `convert`.

    Source: torch.ao.quantization.QuantStub, torch 2.13.
    """

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        return as_tensor(x)


class LeaveGrid(Function):
    """The same values, no longer bound to a grid."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad


class DeQuantStub(Module):
    """Marks where the quantized part ends; returns the values unchanged until `convert`.

    Source: torch.ao.quantization.DeQuantStub, torch 2.13.
    """

    def forward(self, x: Tensor) -> Tensor:
        return LeaveGrid.apply(x)


class QuantWrapper(Module):
    """QuantStub, a module, DeQuantStub.

    Args:
        module: the part to quantize; integers flow through the whole of it.

    Source: torch.ao.quantization.QuantWrapper, torch 2.13.
    """

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.quant = QuantStub()
        self.dequant = DeQuantStub()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.module(self.quant(x)))
