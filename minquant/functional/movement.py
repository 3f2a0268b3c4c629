"""Operations that move elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.autograd import Function, unbroadcast
from minquant.functional.axes import axis_of
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Movement(Function):
    """What lay on a quantization grid still does."""

    on_grid = True


class Reshape(Movement):
    """The same elements, in order, in another shape."""

    def forward(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        self.shape = x.shape
        try:
            return x.reshape(shape)
        except ValueError:
            raise ValueError(f"reshape: shape {x.shape} has {x.size} elements, which do not fill {shape}") from None

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad.reshape(self.shape)


class Permute(Movement):
    """Axis i of the result is axis dims[i] of x."""

    def forward(self, x: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
        if sorted(d % x.ndim if x.ndim else d for d in dims) != list(range(x.ndim)):
            raise ValueError(f"permute: dims {dims} is not an order of the {x.ndim} axes of shape {x.shape}")
        self.order = np.argsort([d % x.ndim for d in dims])
        return x.transpose(dims)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad.transpose(self.order)


class Expand(Movement):
    """Axes of size 1 repeated, new axes in front; the gradients of the copies are added."""

    def forward(self, x: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
        self.shape = x.shape
        new = len(sizes) - x.ndim
        kept = tuple(x.shape[i - new] if n == -1 and i >= new else n for i, n in enumerate(sizes))  # -1: as it is
        try:
            return np.broadcast_to(x, kept)
        except ValueError:
            raise ValueError(
                f"expand: shape {x.shape} cannot be repeated to {sizes}: only axes of size 1 can"
            ) from None

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return unbroadcast(grad, self.shape)


class GetItem(Movement):
    """x[index]; an element taken several times gets the sum of their gradients."""

    def forward(self, x: np.ndarray, index: Any) -> np.ndarray:
        self.shape, self.index = x.shape, index
        try:
            base, last = _last_step(x, index)
            return np.asarray(base[last])
        except IndexError as error:
            raise IndexError(f"indexing a tensor of shape {x.shape}: {error}") from None

    def backward(self, grad: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape, grad.dtype)
        np.add.at(*_last_step(out, self.index), grad)
        return out


class SetItem(Function):
    """x with x[index] = value."""

    def forward(self, x: np.ndarray, value: np.ndarray, index: Any) -> np.ndarray:
        self.index, self.shape = index, value.shape
        out = x.copy()
        assign(out, index, value)
        return out

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = grad.copy()
        assign(kept, self.index, np.zeros((), grad.dtype))
        base, last = _last_step(grad, self.index)
        return kept, unbroadcast(np.asarray(base[last]), self.shape)


def assign(x: np.ndarray, index: Any, value: np.ndarray) -> None:
    """x[index] = value, in place."""
    base, last = _last_step(x, index)
    base[last] = value


def _last_step(x: np.ndarray, index: Any) -> tuple[np.ndarray, Any]:
    """A view of x and the index that remains: x[index] is view[rest].

    Beside an array, NumPy counts a number as another array, which decides where the array's axes go. In torch a
    number only takes its axis away; so here numbers, slices and None come first, and then the arrays.
    """
    if not isinstance(index, tuple):
        return x, index
    arrays = [isinstance(i, (list, np.ndarray)) for i in index]
    if not any(arrays) or not any(isinstance(i, (int, np.integer)) for i in index):
        return x, index
    first: list[Any] = []
    rest: list[Any] = []
    for i, is_array in zip(index, arrays, strict=True):
        axes = np.ndim(i) if is_array and np.asarray(i).dtype == bool else 1
        first += [slice(None)] * axes if is_array else [i]
        if not isinstance(i, (int, np.integer)):
            rest.append(i if is_array or i is ... else slice(None))
    return x[tuple(first)], tuple(rest)


class Cat(Function):
    """Tensors joined along an existing axis; each gets back its own part of the gradient."""

    promotes = True

    def forward(self, *arrays: np.ndarray, dim: int) -> np.ndarray:
        self.axis = axis_of(dim, arrays[0].shape)
        try:
            out = np.concatenate(arrays, axis=self.axis)
        except ValueError:
            shapes = ", ".join(str(a.shape) for a in arrays)
            raise ValueError(f"cat: shapes {shapes} must agree except along dim {dim}") from None
        self.ends = np.cumsum([a.shape[self.axis] for a in arrays])
        return out

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(grad, self.ends[:-1], axis=self.axis))


# ---- as functions ------------------------------------------------------------------------------------------


def reshape(input: TensorLike, shape: Sequence[int]) -> Tensor:
    """The same elements in another shape; one size may be -1, whatever is left."""
    return Reshape.apply(input, shape=tuple(shape))


def permute(input: TensorLike, dims: Sequence[int]) -> Tensor:
    """Axis i of the result is axis dims[i] of x."""
    return Permute.apply(input, dims=tuple(dims))


def transpose(input: TensorLike, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged."""
    shape = np.shape(input)
    dims = list(range(len(shape)))
    first, second = axis_of(dim0, shape), axis_of(dim1, shape)
    dims[first], dims[second] = second, first
    return permute(input, dims)


def flatten(input: TensorLike, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from start_dim to end_dim, both included, as one."""
    shape = np.shape(input) or (1,)
    start, end = axis_of(start_dim, shape), axis_of(end_dim, shape)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in shape {shape}")
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


def squeeze(input: TensorLike, dim: int | None = None) -> Tensor:
    """Without its axes of size 1, or without axis dim if that has size 1."""
    shape = np.shape(input)
    axis = None if dim is None else axis_of(dim, shape)
    return reshape(input, [n for i, n in enumerate(shape) if n != 1 or axis not in (None, i)])


def unsqueeze(input: TensorLike, dim: int) -> Tensor:
    """With a new axis of size 1 at position dim."""
    shape = np.shape(input)
    axis = axis_of(dim, (*shape, 1))  # an axis of the result
    return reshape(input, (*shape[:axis], 1, *shape[axis:]))


def expand(input: TensorLike, sizes: Sequence[int]) -> Tensor:
    """Axes of size 1 repeated to `sizes`, new axes in front; -1 keeps an axis as it is."""
    return Expand.apply(input, sizes=tuple(sizes))


def getitem(input: TensorLike, index: Any) -> Tensor:
    """x[index]: numbers, slices, None, ..., and integer or bool arrays or tensors."""
    return GetItem.apply(input, index=array_index(index))


def setitem(input: TensorLike, index: Any, value: TensorLike) -> Tensor:
    """A copy of x in which x[index] is value."""
    return SetItem.apply(input, value, index=array_index(index))


def array_index(index: Any) -> Any:
    """`index` with arrays, or numbers where they have no axes, in place of Tensors."""
    if isinstance(index, tuple):
        return tuple(array_index(i) for i in index)
    array = index.data if isinstance(index, Tensor) else index
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array


def cat(tensors: Sequence[TensorLike], dim: int = 0) -> Tensor:
    """Tensors joined along axis dim."""
    if not tensors:
        raise ValueError("cat: expected at least one tensor, got none")
    return Cat.apply(*tensors, dim=dim)


def stack(tensors: Sequence[TensorLike], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis dim."""
    shapes = {np.shape(t) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(f"stack: expected tensors of one shape, got {', '.join(map(str, sorted(shapes)))}")
    return cat([unsqueeze(t, dim) for t in tensors], dim)


def split(input: TensorLike, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of `split_size` along axis dim (the last may be smaller), or of the listed sizes."""
    shape = np.shape(input)
    axis = axis_of(dim, shape)
    n = shape[axis]
    if isinstance(split_size, int):
        if split_size <= 0:
            raise ValueError(f"split: split_size must be positive, got {split_size}")
        starts = range(0, n or 1, split_size)
        sizes: Sequence[int] = [min(split_size, n - start) for start in starts]
    else:
        sizes = split_size
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise ValueError(f"split: sizes {list(sizes)} do not add up to {n}, axis {dim} of shape {shape}")
    ends = np.cumsum(sizes).tolist()
    before = (slice(None),) * axis
    return tuple(getitem(input, (*before, slice(end - size, end))) for size, end in zip(sizes, ends, strict=True))
