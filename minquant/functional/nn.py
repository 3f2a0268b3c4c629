"""Operations of neural networks: softmax, linear, dropout and the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from minquant import random
from minquant.autograd import Function, total, unbroadcast
from minquant.functional.axes import axis_of
from minquant.functional.reduce import mean
from minquant.functional.reduce import sum as sum_
from minquant.tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Softmax(Function):
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ); dL/dx = y (g − Σ g y)."""

    floats_only = True

    def forward(self, x: np.ndarray, dim: int) -> np.ndarray:
        self.axis = axis_of(dim, x.shape)
        z = np.exp(x - x.max(axis=self.axis, keepdims=True, initial=-np.inf))
        out = z / total(z, self.axis, keepdims=True)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        return out * (grad - total(grad * out, self.axis, keepdims=True))


class LogSoftmax(Function):
    """yᵢ = xᵢ − log Σⱼ exp(xⱼ); dL/dx = g − exp(y) Σ g."""

    floats_only = True

    def forward(self, x: np.ndarray, dim: int) -> np.ndarray:
        self.axis = axis_of(dim, x.shape)
        shifted = x - x.max(axis=self.axis, keepdims=True, initial=-np.inf)
        out = shifted - np.log(total(np.exp(shifted), self.axis, keepdims=True))
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        return grad - np.exp(out) * total(grad, self.axis, keepdims=True)


class Linear(Function):
    """y = x wᵀ + b: (…, K) @ (M, K).T -> (…, M); dL/dx = G w, dL/dw = Gᵀ x, dL/db = Σ G."""

    floats_only = True

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        _check_linear(x, weight, bias)
        self.save(x, weight)
        self.bias = None if bias is None else bias.shape
        out = x.reshape(-1, x.shape[-1]) @ weight.T  # (N, K) @ (K, M) -> (N, M), one product whatever the batch
        out = out.reshape(*x.shape[:-1], len(weight))
        return out if bias is None else out + bias

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, weight = self.saved
        rows = grad.reshape(-1, weight.shape[0])  # (…, M) -> (N, M)
        by_x = (rows @ weight).reshape(x.shape) if self.needs_grad[0] else None
        by_weight = rows.T @ x.reshape(-1, weight.shape[1]) if self.needs_grad[1] else None  # (M, N) @ (N, K)
        return (by_x, by_weight) if self.bias is None else (by_x, by_weight, unbroadcast(rows, self.bias))


def _check_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> None:
    dtypes = [a.dtype for a in (x, weight, bias) if a is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(
            f"linear: input, weight and bias must have one dtype, got {', '.join(map(str, dtypes))}: "
            "convert the input, e.g. with .float()"
        )
    if weight.ndim != 2:
        raise ValueError(f"linear: weight must be (out_features, in_features), got shape {weight.shape}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: input has shape {x.shape}, its last axis must be in_features={weight.shape[1]} "
            f"(weight has shape {weight.shape})"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias has shape {bias.shape}, expected {weight.shape[:1]} (out_features)")


class Dropout(Function):
    """x m / (1 − p), each mask element m 1 with probability 1 − p."""

    floats_only = True

    def forward(self, x: np.ndarray, p: float) -> np.ndarray:
        keep = random.rand(*x.shape).data >= p
        mask = keep * x.dtype.type(1 / (1 - p) if p < 1 else 0)
        self.save(mask)
        return x * mask

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (mask,) = self.saved
        return grad * mask


class PickClass(Function):
    """x[i, target[i]] for each row i."""

    def forward(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.shape, self.index = x.shape, (np.arange(len(target)), target)
        return x[self.index]

    def backward(self, grad: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape, grad.dtype)
        out[self.index] = grad
        return out


# ---- as functions ------------------------------------------------------------------------------------------


def softmax(input: TensorLike, dim: int) -> Tensor:
    """exp(x) / Σ exp(x) along dim."""
    return Softmax.apply(input, dim=dim)


def log_softmax(input: TensorLike, dim: int) -> Tensor:
    """Log of the softmax: x − log Σ exp(x) along dim."""
    return LogSoftmax.apply(input, dim=dim)


def linear(input: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """x·wᵀ + b.

    Args:
        input: (…, in_features), float32 or float64.
        weight: (out_features, in_features), of input's dtype.
        bias: (out_features,) or None.

    Returns:
        (…, out_features).

    Raises:
        ValueError: shapes that do not fit.
        TypeError: integers, or more than one dtype.
    """
    return Linear.apply(input, weight) if bias is None else Linear.apply(input, weight, bias)


def dropout(input: TensorLike, p: float = 0.5, training: bool = True) -> Tensor:
    """In training, zero elements with probability p and scale the others by 1/(1 − p); otherwise x itself.

    The mask comes from minquant.random: reproducible after `manual_seed`, but another one than torch's.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie between 0 and 1, got {p}")
    if not training or p == 0:
        return cast(Tensor, input) if hasattr(input, "__tensor_function__") else as_tensor(input)
    return Dropout.apply(input, p=p)


def mse_loss(input: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """(x − target)², its mean, its sum, or ("none") each element.

    Raises:
        ValueError: two shapes (torch warns and broadcasts them), or an unknown reduction.
    """
    if np.shape(input) != np.shape(target):
        raise ValueError(
            f"mse_loss: input has shape {np.shape(input)}, target {np.shape(target)}: they must be equal, "
            "since broadcasting would compare each with each"
        )
    return _reduced((as_tensor(input) - target) ** 2, reduction)


def cross_entropy(input: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """−log softmax(x)[target].

    Args:
        input: logits, (N, C) or (C,).
        target: class indices, (N,) or (), integers from 0 to C − 1.
        reduction: "mean" over N, "sum", or "none" for each.

    Raises:
        ValueError: shapes that do not fit, an index outside the classes, an unknown reduction.
        TypeError: a target that is not of integers.
    """
    logits, index = as_tensor(input), as_tensor(target)
    _check_cross_entropy(logits.shape, index.data)
    rows = logits.reshape(-1, logits.shape[-1])  # (C,) -> (1, C)
    losses = -PickClass.apply(log_softmax(rows, 1), target=index.data.reshape(-1))
    return _reduced(losses.reshape(index.shape), reduction)


def _check_cross_entropy(shape: tuple[int, ...], target: np.ndarray) -> None:
    if target.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: target must hold class indices (integers), got {target.dtype}")
    if len(shape) not in (1, 2) or target.shape != shape[:-1]:
        raise ValueError(
            f"cross_entropy: input has shape {shape} and target {target.shape}, "
            "expected (N, C) and (N,), or (C,) and ()"
        )
    if target.size and not 0 <= target.min() <= target.max() < shape[-1]:
        raise ValueError(
            f"cross_entropy: target holds {target.min()} to {target.max()}, the classes are 0 to {shape[-1] - 1}"
        )


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    return losses if reduction == "none" else mean(losses) if reduction == "mean" else sum_(losses)
