"""Operations on two tensors: broadcasting arithmetic, choice, matrix product, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.autograd import Function, no_grad, unbroadcast
from minquant.tensor import Tensor, as_tensor, is_float

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Binary(Function):
    """Stretches its inputs to one shape, as NumPy does, and brings them to one dtype, as torch does."""

    promotes = True
    broadcasts = True


class Add(Binary):
    """a + b."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return grad, grad


class Sub(Binary):
    """a − b."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a - b

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return grad, -grad


class Mul(Binary):
    """a · b."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.save(a if self.needs_grad[1] else None, b if self.needs_grad[0] else None)
        return a * b

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b = self.saved
        return None if b is None else grad * b, None if a is None else grad * a


class Div(Binary):
    """a / b (integers are divided in float32)."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if not is_float(a.dtype):
            a, b = a.astype(np.float32), b.astype(np.float32)
        self.save(a if self.needs_grad[1] else None, b)
        return a / b

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        a, b = self.saved
        return grad / b, None if a is None else -grad * ((a / b) / b)


class Pow(Binary):
    """aᵇ; the gradient of b is 0 where a = 0 <= b."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = _power(a, b)
        self.save(a, b, out)
        return out

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b, out = self.saved
        by_a = by_b = None
        if self.needs_grad[0]:
            by_a = grad * (2 * a) if _is_two(b) else np.where(b == 0, 0, grad * (b * _power(a, b - 1)))
        if self.needs_grad[1]:
            by_b = np.where((a == 0) & (b >= 0), 0, grad * (out * np.log(a)))
        return by_a, by_b


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a * a if _is_two(b) else np.power(a, b)  # a square is one rounding, as in torch


def _is_two(b: np.ndarray) -> bool:
    return b.ndim == 0 and bool(b == 2)


class Where(Binary):
    """a where the condition holds, b elsewhere."""

    def forward(self, a: np.ndarray, b: np.ndarray, condition: np.ndarray) -> np.ndarray:
        self.save(condition)
        return np.where(condition, a, b)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (condition,) = self.saved
        return np.where(condition, grad, 0), np.where(condition, 0, grad)


class MatMul(Function):
    """a @ b over the last two axes: (…, N, K) @ (…, K, M) -> (…, N, M).

    dL/da = G bᵀ and dL/db = aᵀ G. A vector a is a row (1, K), a vector b a column (K, 1), and the axis of 1
    is dropped from the result.
    """

    broadcasts = True

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        _check_matmul(a, b)
        self.save(a, b)
        return a @ b

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b = self.saved
        rows = a[None, :] if a.ndim == 1 else a  # (…, N, K)
        columns = b[:, None] if b.ndim == 1 else b  # (…, K, M)
        grad = np.expand_dims(grad, -1) if b.ndim == 1 else grad
        grad = np.expand_dims(grad, -2) if a.ndim == 1 else grad  # (…, N, M)
        by_a = by_b = None
        if self.needs_grad[0]:
            by_a = unbroadcast(grad @ columns.swapaxes(-1, -2), rows.shape).reshape(a.shape)
        if self.needs_grad[1]:
            by_b = unbroadcast(rows.swapaxes(-1, -2) @ grad, columns.shape).reshape(b.shape)
        return by_a, by_b


def _check_matmul(a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype != b.dtype:
        raise TypeError(
            f"matmul: both must have one dtype, got {a.dtype} and {b.dtype}: convert one, e.g. with .float()"
        )
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: both need at least 1 axis, got shapes {a.shape} and {b.shape}: use *")
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape} do not fit: "
            f"the last axis of the first has {a.shape[-1]}, the rows of the second are {inner}"
        )


# ---- as functions ------------------------------------------------------------------------------------------


def add(input: TensorLike, other: TensorLike) -> Tensor:
    """The sum, a + b."""
    return Add.apply(input, other)


def sub(input: TensorLike, other: TensorLike) -> Tensor:
    """The difference, a − b."""
    return Sub.apply(input, other)


def mul(input: TensorLike, other: TensorLike) -> Tensor:
    """The product, a · b."""
    return Mul.apply(input, other)


def div(input: TensorLike, other: TensorLike) -> Tensor:
    """The quotient, a / b (integers are divided in float32)."""
    return Div.apply(input, other)


def pow(input: TensorLike, exponent: TensorLike) -> Tensor:
    """aᵇ."""
    return Pow.apply(input, exponent)


def where(condition: TensorLike, input: TensorLike, other: TensorLike) -> Tensor:
    """`input` where the condition holds, `other` elsewhere; TypeError unless the condition is bool."""
    mask = as_tensor(condition).data
    if mask.dtype != bool:
        raise TypeError(f"where: the condition must be bool, got {mask.dtype}: compare first, e.g. x > 0")
    return Where.apply(input, other, condition=mask)


def matmul(input: TensorLike, other: TensorLike) -> Tensor:
    """(…, N, K) @ (…, K, M) -> (…, N, M); vectors as in torch.matmul.

    Raises:
        ValueError: the inner sizes differ, the leading axes do not broadcast, or a number was given.
        TypeError: two dtypes.
    """
    return MatMul.apply(input, other)


class Compare(Function):
    """relation(a, b), a bool tensor without a gradient."""

    promotes = True
    broadcasts = True

    def forward(self, a: np.ndarray, b: np.ndarray, relation: Callable[..., np.ndarray]) -> np.ndarray:
        return relation(a, b)


def compare(relation: Callable[..., np.ndarray], input: Any, other: Any) -> Tensor:
    """relation(a, b), for a NumPy comparison: a bool tensor without a gradient."""
    with no_grad():
        return Compare.apply(input, other, relation=relation)
