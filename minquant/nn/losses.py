"""Losses as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.nn.module import Module
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'{type(self).__name__}: reduction must be "mean", "sum" or "none", got {reduction!r}')
        self.reduction = reduction


class MSELoss(_Loss):
    """mean (x − target)² (or the sum, or each)."""

    def forward(self, input: TensorLike, target: TensorLike) -> Tensor:
        return F.mse_loss(input, target, self.reduction)


class CrossEntropyLoss(_Loss):
    """mean −log softmax(x)[target] (or the sum, or each): logits (N, C), class indices (N,)."""

    def forward(self, input: TensorLike, target: TensorLike) -> Tensor:
        return F.cross_entropy(input, target, self.reduction)
