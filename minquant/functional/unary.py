"""Operations on one tensor, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function
from minquant.functional.erf import erf
from minquant.kernels.choice import compiled
from minquant.kernels.exponential import exp_below
from minquant.tensor import Tensor, is_float

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

# ---- arithmetic --------------------------------------------------------------------------------------------


class Neg(Function):
    """−x."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return -x

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return -grad


class Abs(Function):
    """|x|; gradient sign(x), 0 at 0."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x)
        return np.abs(x)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (x,) = self.saved
        return grad * np.sign(x)


class Exp(Function):
    """eˣ."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        out = np.exp(x)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        return grad * out


class Log(Function):
    """ln x."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x)
        return np.log(x)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (x,) = self.saved
        return grad / x


class Sqrt(Function):
    """√x."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        out = np.sqrt(x)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        return grad / (2 * out)


class Clip(Function):
    """min(max(x, low), high); the gradient passes where low <= x <= high, ends included."""

    def forward(self, x: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
        inside = np.ones(x.shape, bool)
        if low is not None:
            inside &= x >= low
        if high is not None:
            inside &= x <= high
        self.save(inside)
        return np.clip(x, low, high)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (inside,) = self.saved
        return np.where(inside, grad, 0)


class Cast(Function):
    """x in another dtype."""

    def forward(self, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return x.astype(dtype, copy=False)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad


class Clone(Function):
    """A copy of x."""

    on_grid = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.copy()

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad


# ---- activations -------------------------------------------------------------------------------------------


class ReLU(Function):
    """max(x, 0); gradient 0 at 0."""

    on_grid = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        out = np.maximum(x, 0)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        kernels = compiled("activations", out.size)
        if kernels and out.dtype == np.float32 == grad.dtype:
            return kernels.relu_gradient(np.asarray(out, order="C"), np.asarray(grad, order="C"))
        return np.where(out <= 0, 0, grad)


class Sigmoid(Function):
    """σ(x) = 1 / (1 + e⁻ˣ)."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        out = _sigmoid(x)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        return grad * (1 - out) * out


class Tanh(Function):
    """(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        out = np.tanh(x)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        return grad * (1 - out * out)


class SiLU(Function):
    """x σ(x)."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        kernels = compiled("activations", x.size) if x.dtype == np.float32 else None
        if kernels:
            out, s = kernels.silu(np.asarray(x, order="C"))
        else:
            z = exp_below(-np.abs(x)) if x.dtype == np.float32 else np.exp(-np.abs(x))
            s = np.where(x >= 0, 1, z) / (1 + z)
            out = x * s
        self.save(x, s)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        x, s = self.saved
        kernels = compiled("activations", x.size)
        if kernels and x.dtype == np.float32 == grad.dtype:
            return kernels.silu_gradient(*[np.asarray(a, order="C") for a in (x, s, grad)])
        return grad * s * (1 + x * (1 - s))


class GELU(Function):
    """x Φ(x), where Φ(x) = (1 + erf(x/√2)) / 2."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        phi = 0.5 * (1 + erf(x * math.sqrt(0.5)))
        self.save(x, phi)
        return x * phi

    def backward(self, grad: np.ndarray) -> np.ndarray:
        x, phi = self.saved
        density = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return grad * (phi + x * density)


class TanhGELU(Function):
    """x (1 + tanh u) / 2, where u = √(2/π) (x + 0.044715 x³)."""

    floats_only = True

    def forward(self, x: np.ndarray) -> np.ndarray:
        t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
        self.save(x, t)
        return 0.5 * x * (1 + t)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        x, t = self.saved
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)  # du/dx
        return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1, z) / (1 + z)


# ---- as functions ------------------------------------------------------------------------------------------


def neg(input: TensorLike) -> Tensor:
    """−x."""
    return Neg.apply(input)


def abs(input: TensorLike) -> Tensor:
    """|x|; gradient 0 at 0."""
    return Abs.apply(input)


def exp(input: TensorLike) -> Tensor:
    """eˣ."""
    return Exp.apply(input)


def log(input: TensorLike) -> Tensor:
    """Ln x (−inf at 0, NaN below)."""
    return Log.apply(input)


def sqrt(input: TensorLike) -> Tensor:
    """√x."""
    return Sqrt.apply(input)


def clip(input: TensorLike, min: float | None = None, max: float | None = None) -> Tensor:
    """min(max(x, min), max); the gradient passes where min <= x <= max. ValueError if both are missing."""
    if min is None and max is None:
        raise ValueError("clip needs min, max or both")
    return Clip.apply(input, low=min, high=max)


def cast(input: TensorLike, dtype: np.dtype) -> Tensor:
    """The values in another dtype; TypeError if a gradient would be lost on the way to integers."""
    if not is_float(dtype) and getattr(input, "requires_grad", False):
        raise TypeError(f"cast to {dtype} has no gradient: detach() first")
    return Cast.apply(input, dtype=dtype)


def clone(input: TensorLike) -> Tensor:
    """A copy of x, with x's gradient."""
    return Clone.apply(input)


def relu(input: TensorLike) -> Tensor:
    """max(x, 0); gradient 0 at 0."""
    return ReLU.apply(input)


def sigmoid(input: TensorLike) -> Tensor:
    """1 / (1 + e⁻ˣ)."""
    return Sigmoid.apply(input)


def tanh(input: TensorLike) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh.apply(input)


def silu(input: TensorLike) -> Tensor:
    """x·σ(x)."""
    return SiLU.apply(input)


def gelu(input: TensorLike, approximate: str = "none") -> Tensor:
    """x·Φ(x), by the error function ("none") or by its tanh approximation ("tanh")."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return (GELU if approximate == "none" else TanhGELU).apply(input)
