"""Linear whose weight alone is integers, as a torch module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.kernels import cuda
from minquant.kernels.tensors import in_torch
from minquant.quant import QTensor
from minquant.quant.dialects.tinygemm import TinygemmTensor
from minquant.quant.grid import real_of

from .integer_layer import real_tensor
from .quantized import Weight

__all__ = ["WeightOnlyLinear"]


class TinygemmWeight(torch.nn.Module):
    """Integers, scales and real zero points of a `TinygemmTensor`, as buffers.

    Args:
        weight: minquant's.
    """

    def __init__(self, weight: TinygemmTensor) -> None:
        super().__init__()
        self.shape, self.spec, self.middle = weight.shape, weight.qparams.spec, float(weight.qparams.middle)
        self.register_buffer("scale", torch.tensor(weight.qparams.scale))
        self.register_buffer("zero_point", torch.tensor(weight.qparams.zero_point))
        self.register_buffer("integers", torch.tensor(weight.storage))

    def unpacked(self) -> Tensor:
        """uint8, in the weight's shape."""
        return cuda.unpack_bits(self.integers, self.spec.bits, self.spec.signed, self.shape)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.spec}, tinygemm"


class WeightOnlyLinear(torch.nn.Module):
    """minquant's `WeightOnlyQuantizedLinear`: ``y = x ŵᵀ + b`` in float32.

    Args:
        layer: minquant's.
        path: where it stands in the model.
    """

    def __init__(self, layer: Any, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = Weight(layer.weight) if isinstance(layer.weight, QTensor) else TinygemmWeight(layer.weight)
        self.register_buffer("bias", None if layer.bias is None else torch.tensor(np.array(layer.bias)))

    @property
    def where(self) -> str:
        """Its kind and path, for messages."""
        return f"{type(self).__name__} '{self.path}'"

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) real values -> (…, N)."""
        return torch.nn.functional.linear(real_tensor(x, self), self.real_weight(), self.bias)

    def real_weight(self) -> Tensor:
        """ŵ, (N, K), as minquant has it to the last bit."""
        weight = self.weight
        scale, zero_point = weight.scale.reshape(-1, 1), weight.zero_point.reshape(-1, 1)
        codes = weight.unpacked().reshape(len(scale), -1).float()  # a row for each scale
        if isinstance(weight, TinygemmWeight):
            return ((codes - weight.middle) * scale + zero_point).reshape(weight.shape)
        return in_torch(real_of)(codes, scale, zero_point.float()).reshape(weight.shape)
