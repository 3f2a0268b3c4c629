"""Operations between tensors as a module, so that quantization can watch their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.nn.module import Module
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class FloatFunctional(Module):
    """``a + b`` and its like in a model that is to be quantized: ``self.skip.add(x, y)`` for ``x + y``.

    A sum of two quantized tensors needs a grid of its own, which an operator in `forward` has no place for. One
    object for each use: its results share one grid.

    Source: torch.ao.nn.quantized.FloatFunctional, torch 2.13 (there the results of the two operations with a scalar are
    not observed).
    """

    def forward(self, function: Callable[..., Tensor], *operands: TensorLike) -> Tensor:
        """``function(*operands)``: what the methods call, so that forward hooks see operands and result."""
        return function(*operands)

    def add(self, x: TensorLike, y: TensorLike) -> Tensor:
        """X + y."""
        return self(F.add, x, y)

    def add_relu(self, x: TensorLike, y: TensorLike) -> Tensor:
        """max(x + y, 0)."""
        return self(lambda a, b: F.relu(F.add(a, b)), x, y)

    def mul(self, x: TensorLike, y: TensorLike) -> Tensor:
        """X · y."""
        return self(F.mul, x, y)

    def add_scalar(self, x: TensorLike, y: float) -> Tensor:
        """X + y of a number y."""
        return self(lambda a: F.add(a, y), x)

    def mul_scalar(self, x: TensorLike, y: float) -> Tensor:
        """X · y of a number y."""
        return self(lambda a: F.mul(a, y), x)

    def matmul(self, x: TensorLike, y: TensorLike) -> Tensor:
        """X @ y over the last two axes."""
        return self(F.matmul, x, y)

    def cat(self, x: Sequence[TensorLike], dim: int = 0) -> Tensor:
        """The tensors of x joined along axis dim."""
        return self(lambda *tensors: F.cat(tensors, dim), *x)
