"""Automatic differentiation: operations that remember their inputs, walked backwards.

A `Function` is one operation, its gradient beside it. `Function.apply` runs it on arrays and, while gradients
are enabled, leaves the Function in the result's `grad_fn`. `backward` visits those Functions from the newest
to the oldest: an operation is younger than all that it read, so its gradient is complete when its turn comes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minquant.kernels.choice import compiled
from minquant.tensor import FLOATS, Tensor, as_tensor, is_float

if TYPE_CHECKING:
    from typing import TypeAlias

    Gradients: TypeAlias = np.ndarray | None | tuple[np.ndarray | None, ...]

_sequence = itertools.count()


class _GradMode(threading.local):
    disabled = 0  # how many no_grad blocks this thread is inside


_mode = _GradMode()


class no_grad(contextlib.ContextDecorator):  # noqa: N801 (torch's name)
    """Switch the recording of operations off, as a context manager or a decorator."""

    def __enter__(self) -> no_grad:
        _mode.disabled += 1
        return self

    def __exit__(self, *exception: object) -> None:
        _mode.disabled -= 1


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return _mode.disabled == 0


class Function:
    """One differentiable operation: subclasses write `forward` and, beside it, `backward`.

    `forward` takes arrays and options and returns an array; `backward` takes dL/d(output) and returns, for
    each input, dL/d(input) or None. `save` keeps the arrays that backward needs, which must not change until
    then, and are freed afterwards. Anything else may be kept as an attribute.
    """

    on_grid: ClassVar[bool] = False  # maps the points of its first input's quantization grid to points of the same grid
    promotes: ClassVar[bool] = False  # brings its inputs to one dtype first
    broadcasts: ClassVar[bool] = False  # stretches its inputs, so gradients are summed back to their shapes
    floats_only: ClassVar[bool] = False  # refuses integer and bool inputs

    inputs: Sequence[Tensor] = ()
    needs_grad: tuple[bool, ...] = ()  # by input, so that backward may skip work
    saved: tuple[Any, ...] = ()
    freed = False
    versions: Sequence[tuple[list[int], int]] = ()
    retained: weakref.ref[Tensor] | None = None

    def __init__(self) -> None:
        self.number = next(_sequence)

    forward: Callable[..., np.ndarray]
    backward: Callable[[np.ndarray], Gradients]

    def save(self, *arrays: np.ndarray | None) -> None:
        """Keep arrays for backward, which reads them as `self.saved` (None: not needed this time)."""
        self.saved = arrays

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Tensor:
        """Run the operation on Tensors, arrays or numbers, and record it if an input requires a gradient.

        An input that is no Tensor and has a method `__tensor_function__(function_cls, inputs, options)` (a quantized
        tensor, say) takes the call over, like NumPy's `__array_function__`.
        """
        for x in inputs:
            if not isinstance(x, Tensor) and hasattr(x, "__tensor_function__"):
                return x.__tensor_function__(cls, inputs, options)
        tensors = promote(inputs) if cls.promotes else [x if isinstance(x, Tensor) else Tensor(x) for x in inputs]
        cls._check(tensors)
        function = cls()
        function.needs_grad = tuple([t._requires_grad for t in tensors])
        arrays = _common_dtype(tensors) if cls.promotes else [t.data for t in tensors]
        with np.errstate(all="ignore"):  # infinities and NaN follow IEEE 754, as in torch
            out = Tensor(function._forward(arrays, options))
        function._link(tensors, out)
        return out

    def _forward(self, arrays: list[np.ndarray], options: dict[str, Any]) -> np.ndarray:
        if not self.broadcasts:
            return self.forward(*arrays, **options)
        try:
            return self.forward(*arrays, **options)
        except ValueError as error:
            if "broadcast" not in str(error):
                raise
            shapes = " and ".join(str(a.shape) for a in arrays)
            raise ValueError(
                f"{self}: shapes {shapes} do not broadcast: from the right, sizes must be equal or 1"
            ) from None

    @classmethod
    def _check(cls, tensors: Sequence[Tensor]) -> None:
        if cls.floats_only:
            for t in tensors:
                if t.data.dtype not in FLOATS:
                    raise TypeError(
                        f"{cls.__name__} expects float32 or float64, got {t.dtype}: convert it, "
                        "with .float(), or .astype(np.float32) of an array"
                    )

    def _link(self, tensors: Sequence[Tensor], out: Tensor) -> None:
        """Make `out` the result of this operation on `tensors`: grid, version counter and graph."""
        grid = tensors[0].qparams if self.on_grid else None
        if grid is not None and grid.scale.ndim == 0:  # a per-channel grid has an axis, which may have moved
            out.qparams = grid
        if out.data.base is not None:
            for t in tensors:
                if np.may_share_memory(out.data, t.data):
                    out._version, out._is_view = t._version, True
        if is_grad_enabled() and any(self.needs_grad) and out.data.dtype in FLOATS:
            self.inputs = tensors
            if self.saved:
                self.versions = [(t._version, t._version[0]) for t in (*tensors, out) if self._has_saved(t)]
            if out._is_view:  # a recorded change of the base would leave the view with an outdated graph
                self.versions = [*self.versions, (out._version, out._version[0])]
            out._requires_grad = True
            out.grad_fn = self

    def _has_saved(self, t: Tensor) -> bool:
        return any([array is not None and _share_memory(t.data, array) for array in self.saved])

    def check_intact(self) -> None:
        """Raise RuntimeError if what backward needs was freed, or changed since forward."""
        if self.freed:
            raise RuntimeError(
                f"backward reached {self} a second time, and what it had saved was freed by the first: "
                "pass retain_graph=True to the first backward()"
            )
        for version, count in self.versions:
            if version[0] != count:
                raise RuntimeError(
                    f"a tensor that {self} needs for its gradient was changed in place: "
                    f"it is at version {version[0]}, expected {count}. "
                    "Change it after backward(), or change a clone()"
                )

    def gradients(self, grad: np.ndarray) -> list[tuple[Tensor, np.ndarray]]:
        """The inputs that require a gradient, each with its gradient in its own shape and dtype."""
        result = self.backward(grad)
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(self.inputs):
            raise RuntimeError(f"{self}.backward returned {len(results)} gradients for {len(self.inputs)} inputs")
        return [
            (t, self._fit(g, t))
            for t, g in zip(self.inputs, results, strict=True)
            if t._requires_grad and g is not None
        ]

    def _fit(self, grad: np.ndarray, t: Tensor) -> np.ndarray:
        x = t.data
        if self.broadcasts:
            grad = unbroadcast(grad, x.shape)
        if grad.shape != x.shape:
            raise RuntimeError(f"{self}.backward returned a gradient of shape {grad.shape} for an input of {x.shape}")
        return grad if grad.dtype == x.dtype else grad.astype(x.dtype)

    def __repr__(self) -> str:
        return type(self).__name__


def _share_memory(a: np.ndarray, b: np.ndarray) -> bool:
    if a is b:
        return True
    own_theirs = a.base is None and b.base is None  # each its own, which the other cannot be part of
    return not own_theirs and np.may_share_memory(a, b)


def backward(root: Tensor, gradient: np.ndarray, retain_graph: bool) -> None:
    """Add dL/d(leaf) to the `grad` of every leaf that `root` was made from, given dL/d(root)."""
    if root.grad_fn is None:
        return _accumulate(root, gradient)
    functions = _graph(root.grad_fn)
    for function in functions:  # before any gradient is touched
        function.check_intact()
    pending = {root.grad_fn: gradient}
    with np.errstate(all="ignore"):
        for function in functions:
            grad = pending.pop(function, None)
            if grad is not None:
                _step(function, grad, pending)
            if function.saved and not retain_graph:
                function.saved, function.freed = (), True


def _graph(root: Function) -> list[Function]:
    """Every function that `root` depends on, newest first."""
    seen, stack = {root}, [root]
    while stack:
        for t in stack.pop().inputs:
            if t.grad_fn is not None and t.grad_fn not in seen:
                seen.add(t.grad_fn)
                stack.append(t.grad_fn)
    return sorted(seen, key=lambda function: -function.number)


def _step(function: Function, grad: np.ndarray, pending: dict[Function, np.ndarray]) -> None:
    retained = function.retained() if function.retained else None
    if retained is not None:
        _accumulate(retained, grad)
    for t, g in function.gradients(grad):
        if t.grad_fn is None:
            _accumulate(t, g)
        elif t.grad_fn in pending:
            pending[t.grad_fn] = pending[t.grad_fn] + g
        else:
            pending[t.grad_fn] = g


def _accumulate(t: Tensor, grad: np.ndarray) -> None:
    if t.grad is None:
        t.grad = Tensor(np.array(grad, dtype=t.dtype, order="C"))  # a copy: gradients of different tensors never alias
    else:
        np.add(t.grad.data, grad, out=t.grad.data)
        t.grad._version[0] += 1


def total(x: np.ndarray, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> np.ndarray:
    """Sum of x, accumulated in float64 (integers in int64) and rounded once."""
    kernels = compiled("sums", x.size)
    blocks = by_channel(x.shape, axis) if x.dtype == np.float32 and x.flags.c_contiguous else None
    if kernels and blocks:
        return kernels.channel_sums(x.reshape(blocks)).astype(np.float32).reshape(_left(x.shape, axis, keepdims))
    if is_float(x.dtype):
        return np.asarray(x.sum(axis=axis, dtype=np.float64, keepdims=keepdims)).astype(x.dtype, copy=False)
    return np.asarray(x.sum(axis=axis, dtype=np.int64, keepdims=keepdims))


def by_channel(shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> tuple[int, int, int] | None:
    """A shape as (before, channels, after), if summing over `axis` leaves neighbouring axes, the channels, or none."""
    axes = _axes(shape, axis)
    kept = [i for i in range(len(shape)) if i not in axes]
    if not kept:
        return 1, 1, math.prod(shape)
    first, last = kept[0], kept[-1] + 1
    if len(kept) < last - first:
        return None
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def _axes(shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> list[int]:
    if axis is None:
        return list(range(len(shape)))
    return [i % len(shape) for i in (axis if isinstance(axis, tuple) else (axis,))]


def _left(shape: tuple[int, ...], axis: int | tuple[int, ...] | None, keepdims: bool) -> list[int]:
    axes = _axes(shape, axis)
    return [1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes]


def unbroadcast(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum grad over the axes along which an array of this shape was stretched to grad's."""
    if grad.shape == shape:
        return grad
    new = grad.ndim - len(shape)  # axes that broadcasting put in front
    stretched = tuple(range(new)) + tuple(new + i for i, n in enumerate(shape) if n == 1 and grad.shape[new + i] != 1)
    return total(grad, stretched, keepdims=True).reshape(shape)


# ---- dtypes ------------------------------------------------------------------------------------------------


def promote(inputs: Sequence[Any]) -> list[Tensor]:
    """The inputs as Tensors, Python numbers in the dtype that they take beside the others."""
    if all([isinstance(x, Tensor) for x in inputs]):
        return list(inputs)
    dtype = result_dtype(inputs)
    return [Tensor(np.asarray(x, dtype)) if _is_number(x) else as_tensor(x) for x in inputs]


def _common_dtype(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    first = tensors[0].data.dtype
    if all([t.data.dtype == first for t in tensors]):
        return [t.data for t in tensors]
    dtype = result_dtype(tensors)
    return [t.data.astype(dtype, copy=False) for t in tensors]


def _is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float))


def result_dtype(inputs: Sequence[Any]) -> np.dtype:
    """torch.result_type: bool < int < float; within one, arrays with axes outrank 0-d, those numbers."""
    ranks: tuple[list[np.dtype], ...] = ([], [], [])
    for x in inputs:
        tensor = as_tensor(x)
        ranks[2 if _is_number(x) else 1 if tensor.ndim == 0 else 0].append(tensor.dtype)
    highest, *lower = [_promote(dtypes) for dtypes in ranks if dtypes]
    for dtype in lower:
        if _category(dtype) > _category(highest):
            highest = dtype
    return highest


def _promote(dtypes: Sequence[np.dtype]) -> np.dtype:
    floats = [d for d in dtypes if is_float(d)]  # an integer never widens a float, as it would in NumPy
    return np.result_type(*(floats or dtypes))


def _category(dtype: np.dtype) -> int:
    return "buif".index(dtype.kind) + (dtype.kind == "u")
