"""Operations that remove axes. `dim` is one axis, several, or None for all; sums accumulate in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minquant.autograd import Function, no_grad, total
from minquant.functional.axes import axes_of, axis_of
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import Dims, TensorLike


class Sum(Function):
    """Σ x; every element that was summed gets the sum's gradient."""

    def forward(self, x: np.ndarray, dim: Dims, keepdim: bool) -> np.ndarray:
        self.shape, self.axes = x.shape, axes_of(dim, x.shape)
        return total(x, self.axes, keepdim)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return _stretch(grad, self.shape, self.axes)


class Mean(Function):
    """Σ x / n."""

    floats_only = True

    def forward(self, x: np.ndarray, dim: Dims, keepdim: bool) -> np.ndarray:
        self.shape, self.axes = x.shape, axes_of(dim, x.shape)
        return total(x, self.axes, keepdim) / _count(self.shape, self.axes, x.dtype)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return _stretch(grad / _count(self.shape, self.axes, grad.dtype), self.shape, self.axes)


class Var(Function):
    """Σ (x − mean)² / (n − correction)."""

    floats_only = True

    def forward(self, x: np.ndarray, dim: Dims, correction: int, keepdim: bool) -> np.ndarray:
        self.axes = axes_of(dim, x.shape)
        wide = x.astype(np.float64)
        n = _count(x.shape, self.axes, wide.dtype)
        self.divisor = np.maximum(n - correction, 0)
        centred = wide - total(wide, self.axes, keepdims=True) / n
        self.save(centred.astype(x.dtype))
        return np.asarray(total(centred * centred, self.axes, keepdim) / self.divisor, x.dtype)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (centred,) = self.saved
        return _stretch(grad * (2 / self.divisor).astype(grad.dtype), centred.shape, self.axes) * centred


class Extreme(Function):
    """The largest (or smallest) of all elements; those that share it share its gradient evenly."""

    def forward(self, x: np.ndarray, reduce: Callable[..., Any]) -> np.ndarray:
        _check_filled(x, range(x.ndim))
        out = np.asarray(reduce(x))
        self.save(np.isnan(x) if np.isnan(out) else x == out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (chosen,) = self.saved
        return chosen * (grad / chosen.sum().astype(grad.dtype))


class Pick(Function):
    """The element at `index` along an axis; the others get no gradient."""

    def forward(self, x: np.ndarray, index: np.ndarray, dim: int, keepdim: bool) -> np.ndarray:
        self.shape, self.dim = x.shape, dim
        self.index = np.expand_dims(index, dim)
        out = np.take_along_axis(x, self.index, dim)
        return out if keepdim else out.squeeze(dim)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape, grad.dtype)
        np.put_along_axis(out, self.index, grad.reshape(self.index.shape), self.dim)
        return out


def _check_filled(x: np.ndarray, axes: Iterable[int]) -> None:
    if 0 in (x.shape[i] for i in axes):
        raise ValueError(f"shape {x.shape} has no elements among which one could be the largest or smallest")


def _count(shape: tuple[int, ...], axes: tuple[int, ...], dtype: np.dtype) -> Any:
    return dtype.type(math.prod(shape[i] for i in axes))


def _stretch(grad: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return np.broadcast_to(grad.reshape(kept), shape)


# ---- as functions ------------------------------------------------------------------------------------------


def sum(input: TensorLike, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Σ x (integers and bools in int64)."""
    return Sum.apply(input, dim=dim, keepdim=keepdim)


def mean(input: TensorLike, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Σ x / n."""
    return Mean.apply(input, dim=dim, keepdim=keepdim)


def var(input: TensorLike, dim: Dims = None, *, correction: int = 1, keepdim: bool = False) -> Tensor:
    """Σ (x − mean)² / (n − correction)."""
    return Var.apply(input, dim=dim, correction=correction, keepdim=keepdim)


class ValuesAndIndices(NamedTuple):
    """What max and min along an axis return."""

    values: Tensor
    indices: Tensor


def max(input: TensorLike, dim: int | None = None, keepdim: bool = False) -> Any:
    """The largest element (equal ones share its gradient), or (values, indices) along dim (the first)."""
    if dim is None:
        return Extreme.apply(input, reduce=np.max)
    return _pick(input, np.argmax, dim, keepdim)


def min(input: TensorLike, dim: int | None = None, keepdim: bool = False) -> Any:
    """The smallest element (equal ones share its gradient), or (values, indices) along dim (the first)."""
    if dim is None:
        return Extreme.apply(input, reduce=np.min)
    return _pick(input, np.argmin, dim, keepdim)


def _pick(input: TensorLike, find: Callable[..., np.ndarray], dim: int, keepdim: bool) -> ValuesAndIndices:
    indices = _search(input, find, dim, keepdim)
    index = np.squeeze(indices.data, dim) if keepdim else indices.data
    return ValuesAndIndices(Pick.apply(input, index=index, dim=dim, keepdim=keepdim), indices)


class Search(Function):
    """find(x, axis): positions, without a gradient."""

    def forward(self, x: np.ndarray, find: Callable[..., Any], dim: int | None, keepdim: bool) -> np.ndarray:
        axis = None if dim is None else axis_of(dim, x.shape)
        _check_filled(x, range(x.ndim) if axis is None else (axis,))
        return np.asarray(find(x, axis=axis, keepdims=keepdim))


def _search(input: TensorLike, find: Callable[..., Any], dim: int | None, keepdim: bool) -> Tensor:
    with no_grad():
        return Search.apply(input, find=find, dim=dim, keepdim=keepdim)


def argmax(input: TensorLike, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The position of the first largest element, in the flattened tensor or along dim."""
    return _search(input, np.argmax, dim, keepdim)
