"""Tensor: a NumPy array that remembers how it was made."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from minquant.quant.spec import QParams

    Scalar: TypeAlias = float  # Tensor.float hides the name in the class
    TensorLike: TypeAlias = "Tensor | ArrayLike"
    Dims: TypeAlias = "int | Sequence[int] | None"


FLOATS = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


def is_float(dtype: np.dtype) -> bool:
    """Whether values of this dtype can carry a gradient."""
    return dtype in FLOATS


def _as_array(data: Any) -> np.ndarray:
    if type(data) is np.ndarray and data.dtype in FLOATS:
        return data
    typed = hasattr(data, "dtype")  # an array or a NumPy scalar keeps its dtype, Python's floats become float32
    array = np.asarray(data)
    if not typed and array.dtype == np.float64:
        array = array.astype(np.float32)
    if not (is_float(array.dtype) or array.dtype.kind in "iub"):
        raise TypeError(
            f"Tensor: expected float32, float64, integer or bool data, got {array.dtype}: "
            "convert it first, e.g. np.asarray(data, np.float32)"
        )
    return array


def as_tensor(data: TensorLike) -> Tensor:
    """`data` itself if it is a Tensor, otherwise a Tensor of it."""
    return data if isinstance(data, Tensor) else Tensor(data)


class Tensor:
    """An array with a gradient.

    Args:
        data: an array (shared, not copied), a number, a nested list, or a Tensor. Python floats become
            float32, Python integers int64; float32, float64, integer and bool arrays keep their dtype.
        requires_grad: record the operations on it, so that `backward()` fills its `grad`. Floats only.

    Attributes:
        data: the values, a NumPy array.
        grad: dL/d(this tensor) after `backward()`, a Tensor or None.
        grad_fn: the Function that made it, None for a leaf.
        qparams: the quantization grid on which its values lie, if they lie on one.
        integers: those behind the values, where whoever rounded them kept them.

    Raises:
        TypeError: data that is neither float32, float64, integer nor bool.
        RuntimeError: requires_grad on integers or bools.
    """

    __array_ufunc__ = None  # array + tensor is the tensor's business

    def __init__(self, data: TensorLike, requires_grad: bool = False) -> None:
        self.data: np.ndarray = data.data if isinstance(data, Tensor) else _as_array(data)
        self.grad: Tensor | None = None
        self.grad_fn: Function | None = None
        self.qparams: QParams | None = None
        self.integers: np.ndarray | None = None
        # Counts in-place changes; a list, which views share.
        self._version: list[int] = data._version if isinstance(data, Tensor) else [0]
        self._is_view = False  # of a tensor in the graph
        self._requires_grad = False
        if requires_grad:
            self.requires_grad = True

    # ---- what it is ----------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def is_leaf(self) -> bool:
        return self.grad_fn is None

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not is_float(self.dtype):
            raise RuntimeError(f"only float32 and float64 tensors can require a gradient, this one is {self.dtype}")
        if not value and not self.is_leaf:
            raise RuntimeError("requires_grad can be switched off for leaves only: use detach()")
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad`; returns self."""
        self.requires_grad = requires_grad
        return self

    def numel(self) -> int:
        """How many elements it has."""
        return self.data.size

    def dim(self) -> int:
        """How many axes it has."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or its length along one axis."""
        return self.shape if dim is None else self.shape[dim]

    def item(self) -> Any:
        """The value of a tensor with one element, as a Python number."""
        if self.numel() != 1:
            raise RuntimeError(f"item() needs a tensor with one element, this one has shape {self.shape}")
        return self.data.item()

    def tolist(self) -> Any:
        """The values as (nested lists of) Python numbers."""
        return self.data.tolist()

    def numpy(self) -> np.ndarray:
        """The array itself, memory shared; RuntimeError if it requires a gradient, which would be lost."""
        if self.requires_grad:
            raise RuntimeError("numpy() on a tensor that requires a gradient: call detach().numpy()")
        return self.data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        values = np.array2string(self.data, precision=4, separator=", ", prefix=type(self).__name__ + "(")
        origin = f", grad_fn={self.grad_fn}" if self.grad_fn else ", requires_grad=True" if self.requires_grad else ""
        shape = f", shape={self.shape}" if self.numel() > 1000 or not self.numel() else ""
        return f"{type(self).__name__}({values}, {self.dtype}{shape}{origin})"

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise RuntimeError(f"the truth of a tensor of shape {self.shape} is ambiguous")
        return bool(self.data.item())

    def __float__(self) -> Scalar:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __hash__(self) -> int:  # by identity: == compares values
        return id(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError(f"only leaves can be deep-copied, this tensor was made by {self.grad_fn}: detach() it")
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        Tensor.__init__(new, self.data.copy(), self.requires_grad)
        new.grad = None if self.grad is None else self.grad.clone()
        new.qparams = self.qparams
        return new

    # ---- gradients -----------------------------------------------------------------------------------------

    def backward(self, gradient: TensorLike | None = None, retain_graph: bool = False) -> None:
        """Add dL/d(leaf) to the `grad` of every leaf that requires one.

        Args:
            gradient: dL/d(this tensor), of its shape; may be left out for a single element, where it is 1.
            retain_graph: keep what the operations saved, so that backward can go through them again.

        Raises:
            RuntimeError: nothing requires a gradient; several elements and no `gradient`; a saved tensor was
                changed in place; the graph was freed by an earlier backward. No gradient has then changed.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() on a tensor that does not require a gradient: no input had requires_grad=True"
            )
        if gradient is None:
            if self.numel() != 1:
                raise RuntimeError(
                    f"backward() on a tensor of shape {self.shape} needs a gradient of that shape: "
                    "reduce it to one number (a loss), or pass gradient"
                )
            seed = np.ones_like(self.data)
        else:
            seed = as_tensor(gradient).data.astype(self.dtype, copy=False)
            if seed.shape != self.shape:
                raise RuntimeError(f"backward(): gradient has shape {seed.shape}, the tensor {self.shape}")
        autograd.backward(self, seed, retain_graph)

    def detach(self) -> Tensor:
        """The same values, memory shared, outside the graph."""
        out = Tensor(self)
        out.qparams = self.qparams
        return out

    def retain_grad(self) -> None:
        """Let `backward()` fill the `grad` of a tensor that is not a leaf."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad() on a tensor that does not require a gradient")
        if self.grad_fn is not None:
            self.grad_fn.retained = weakref.ref(self)

    # ---- changes in place ----------------------------------------------------------------------------------

    def _alias(self) -> Tensor:
        """This tensor as it is now, for the graph to hold on to."""
        old = self.detach()
        old.grad_fn, old._requires_grad = self.grad_fn, self._requires_grad
        return old

    def _overwrite(self, new: Tensor, operation: str) -> Tensor:
        """Take over the values of `new`, and its place in the graph."""
        if new.requires_grad:
            if self.requires_grad and self.is_leaf:
                raise RuntimeError(
                    f"{operation} on a leaf that requires a gradient would make it an operation's result. "
                    "Make a new tensor, or write inside no_grad()"
                )
            if self._is_view:
                raise RuntimeError(f"{operation} on a view, which its base's graph would not see: change a clone()")
            self.grad_fn, self._requires_grad = new.grad_fn, True
        np.copyto(self.data, new.data, casting="same_kind")
        return self.mark_changed()

    def _set(self, index: Any, value: TensorLike, operation: str) -> Tensor:
        value = as_tensor(value)
        if is_grad_enabled() and (self.requires_grad or value.requires_grad):
            return self._overwrite(F.setitem(self._alias(), index, value), operation)
        F.assign(self.data, F.array_index(index), value.data)
        return self.mark_changed()

    def mark_changed(self) -> Tensor:
        """Say that `data` was written to, so that backward refuses to go through it; returns self."""
        self._version[0] += 1
        self.qparams = self.integers = None
        return self

    def copy_(self, source: TensorLike) -> Tensor:
        """Overwrite the values; returns self."""
        return self._set(..., source, "copy_")

    def zero_(self) -> Tensor:
        """Set every value to 0; returns self."""
        return self._set(..., 0, "zero_")

    def __setitem__(self, index: Any, value: TensorLike) -> None:
        self._set(index, value, "tensor[...] = value")

    def __iadd__(self, other: TensorLike) -> Tensor:
        return self._overwrite(F.add(self._alias(), other), "+=")

    def __isub__(self, other: TensorLike) -> Tensor:
        return self._overwrite(F.sub(self._alias(), other), "-=")

    def __imul__(self, other: TensorLike) -> Tensor:
        return self._overwrite(F.mul(self._alias(), other), "*=")

    def __itruediv__(self, other: TensorLike) -> Tensor:
        return self._overwrite(F.div(self._alias(), other), "/=")

    # ---- operations: each is documented where it is defined, in minquant.functional ------------------------

    def __neg__(self) -> Tensor:
        return F.neg(self)

    def __add__(self, other: TensorLike) -> Tensor:
        return F.add(self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return F.add(other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return F.sub(self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return F.sub(other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return F.mul(self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return F.mul(other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return F.div(self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return F.div(other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return F.pow(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return F.pow(other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return F.matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return F.matmul(other, self)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return F.compare(np.equal, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return F.compare(np.not_equal, self, other)

    def __lt__(self, other: TensorLike) -> Tensor:
        return F.compare(np.less, self, other)

    def __le__(self, other: TensorLike) -> Tensor:
        return F.compare(np.less_equal, self, other)

    def __gt__(self, other: TensorLike) -> Tensor:
        return F.compare(np.greater, self, other)

    def __ge__(self, other: TensorLike) -> Tensor:
        return F.compare(np.greater_equal, self, other)

    def __getitem__(self, index: Any) -> Tensor:
        return F.getitem(self, index)

    @property
    def T(self) -> Tensor:  # noqa: N802 (torch's name)
        return F.permute(self, range(self.ndim)[::-1])

    def abs(self) -> Tensor:
        return F.abs(self)

    def exp(self) -> Tensor:
        return F.exp(self)

    def log(self) -> Tensor:
        return F.log(self)

    def sqrt(self) -> Tensor:
        return F.sqrt(self)

    def tanh(self) -> Tensor:
        return F.tanh(self)

    def sigmoid(self) -> Tensor:
        return F.sigmoid(self)

    def relu(self) -> Tensor:
        return F.relu(self)

    def softmax(self, dim: int) -> Tensor:
        return F.softmax(self, dim)

    def log_softmax(self, dim: int) -> Tensor:
        return F.log_softmax(self, dim)

    def clip(self, min: Scalar | None = None, max: Scalar | None = None) -> Tensor:
        return F.clip(self, min, max)

    def matmul(self, other: TensorLike) -> Tensor:
        return F.matmul(self, other)

    def float(self) -> Tensor:
        return F.cast(self, np.dtype(np.float32))

    def double(self) -> Tensor:
        return F.cast(self, np.dtype(np.float64))

    def clone(self) -> Tensor:
        return F.clone(self)

    def sum(self, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return F.sum(self, dim, keepdim)

    def mean(self, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return F.mean(self, dim, keepdim)

    def var(self, dim: Dims = None, *, correction: int = 1, keepdim: bool = False) -> Tensor:
        return F.var(self, dim, correction=correction, keepdim=keepdim)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        return F.max(self, dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        return F.min(self, dim, keepdim)

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return F.argmax(self, dim, keepdim)

    def reshape(self, *shape: Any) -> Tensor:
        return F.reshape(self, _sizes(shape))

    def view(self, *shape: Any) -> Tensor:
        """As `reshape`, which copies where torch's view would refuse."""
        return F.reshape(self, _sizes(shape))

    def permute(self, *dims: Any) -> Tensor:
        return F.permute(self, _sizes(dims))

    def expand(self, *sizes: Any) -> Tensor:
        return F.expand(self, _sizes(sizes))

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        return F.transpose(self, dim0, dim1)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return F.flatten(self, start_dim, end_dim)

    def squeeze(self, dim: int | None = None) -> Tensor:
        return F.squeeze(self, dim)

    def unsqueeze(self, dim: int) -> Tensor:
        return F.unsqueeze(self, dim)

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
        return F.split(self, split_size, dim)


def _sizes(args: tuple[Any, ...]) -> Sequence[int]:
    """Both x.reshape(2, 3) and x.reshape((2, 3))."""
    return args[0] if len(args) == 1 and not isinstance(args[0], (int, np.integer)) else args


# Operations are made of Tensors, and Tensors have operations: these need the class above complete.
from minquant import autograd  # noqa: E402
from minquant import functional as F  # noqa: E402, N812
from minquant.autograd import Function, is_grad_enabled, no_grad  # noqa: E402

__all__ = ["Function", "Tensor", "as_tensor", "is_float", "is_grad_enabled", "no_grad"]
