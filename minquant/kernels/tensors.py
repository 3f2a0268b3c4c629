"""A dialect's arithmetic on torch's tensors: the very functions that NumPy runs on arrays, with torch in NumPy's place.

``elements.py`` compiles such a function with numba; here its ``np`` is another: `InTorch`, and what it calls is treated
alike. Each operation then is a kernel of torch's, which rounds its result to float32, as NumPy does: no compiler sees
two of them, so none makes one multiply-add of a product and a sum. On a GPU with Triton the function is compiled as a
whole instead (`minquant.kernels.triton_elements`).

Both operands of a quotient must be tensors of the device: instead of dividing by a number, torch's GPU kernels multiply
with the reciprocal, and a number over a tensor is the number times its reciprocal everywhere.
"""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from minquant.kernels import fma as fma_in_numpy

__all__ = ["apply", "fma", "has_triton", "in_torch"]

Function: TypeAlias = Callable[..., Any]


def apply(
    function: Function,
    values: Tensor,
    terms: Sequence[Tensor],
    dtype: torch.dtype,
    low: float | None = None,
    high: float | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """``clip(function(values - shift, *terms), low, high)``, element by element.

    Args:
        function: of numbers or arrays alike (see ``elements.py``).
        values: (R, N).
        terms: each one number, (N,) or (R, 1), on the same device.
        dtype: of the result.
        low: the smallest result, if there is one.
        high: the largest.
        shift: as a term, of the dtype of the values.
    """
    if values.is_cuda and has_triton():
        from minquant.kernels.triton_elements import run

        return run(function, values, terms, dtype, low, high, shift)
    y = in_torch(function)(values if shift is None else values - shift, *terms)
    y = y if low is None and high is None else y.clamp(low, high)
    return y.to(dtype)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


# ---- NumPy's words in torch ------------------------------------------------------------------------------------------


@cache
def in_torch(function: Function) -> Function:
    """The same function of tensors: every global name that it uses means torch's counterpart."""
    names = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    globals_ = {"__builtins__": builtins, **{name: _counterpart(value) for name, value in names.items()}}
    return FunctionType(function.__code__, globals_, function.__name__)


def _counterpart(value: Any) -> Any:
    if value is np:
        return InTorch
    if isinstance(value, np.generic):
        return value.item()
    if value is fma_in_numpy.fma:
        return fma
    if isinstance(value, FunctionType):
        return in_torch(value)
    if isinstance(value, type) and issubclass(value, np.generic):
        return getattr(InTorch, value.__name__)
    if isinstance(value, ModuleType):
        functions = {name: f for name, f in vars(value).items() if isinstance(f, FunctionType)}
        return SimpleNamespace(**{name: _Later(f) for name, f in functions.items()})
    return value


class _Later:
    """A function of a module, brought to torch when it is called: the others need not be of such words."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return in_torch(self.function)(*args)


class InTorch:
    """The words of NumPy's in which dialects are written; any other is an AttributeError."""

    float32 = staticmethod(Tensor.float)
    float64 = staticmethod(Tensor.double)
    int32 = staticmethod(Tensor.int)
    rint = staticmethod(torch.round)
    abs = staticmethod(torch.abs)
    where = staticmethod(torch.where)

    @staticmethod
    def minimum(x: Tensor, y: Any) -> Tensor:
        """The smaller of each."""
        return torch.clamp(x, max=y)

    @staticmethod
    def maximum(x: Tensor, y: Any) -> Tensor:
        """The larger of each."""
        return torch.clamp(x, min=y)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``f(a·b + c)``, rounded once: `minquant.kernels.fma.fma` with torch's operations, where its reasons stand."""
    product = a.double() * b.double()
    c = c.double()
    total = product + c
    of_c = total - product
    error = (product - (total - of_c)) + (c - of_c)
    to_odd = (error != 0) & (total.view(torch.int64) & 1 == 0) & total.isfinite()
    away = torch.nextafter(total, torch.where(error > 0, torch.inf, -torch.inf).to(total))
    return torch.where(to_odd, away, total).float()
