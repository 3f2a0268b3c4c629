"""Normalization: values brought to mean 0 and variance 1, over the batch or over each row.

Means and variances accumulate in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.autograd import Function, by_channel, total, unbroadcast
from minquant.functional.movement import reshape
from minquant.functional.windows import per_axis
from minquant.kernels.choice import compiled
from minquant.tensor import Tensor, as_tensor, is_float

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


LONG_RUN = 8
"""Neighbours in memory, of one channel, from which a kernel is faster than NumPy."""


class Standardize(Function):
    """y = (x − mean) / √(var + ε), both over `axes`; dL/dx = (g − mean(g) − y mean(g y)) / √(var + ε)."""

    floats_only = True

    def forward(
        self, x: np.ndarray, axes: tuple[int, ...], eps: float, moments: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        self.axes = axes
        sums, squares = moments_of(x, axes) if moments is None else moments
        n = math.prod(x.shape[i] for i in axes)
        self.scale = 1 / np.sqrt(squares / n + eps)
        blocks, kernels = _in_blocks(x, axes)
        if kernels:
            out = kernels.standardize(blocks, (sums / n).reshape(-1), self.scale.reshape(-1)).reshape(x.shape)
        else:
            out = ((x.astype(np.float64) - sums / n) * self.scale).astype(x.dtype)
        self.save(out)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        (out,) = self.saved
        blocks, kernels = _in_blocks(grad, self.axes)
        if kernels and out.dtype == np.float32:
            y = np.ascontiguousarray(out).reshape(blocks.shape)
            return kernels.standardize_backward(blocks, y, self.scale.reshape(-1)).reshape(grad.shape)
        wide = grad.astype(np.float64)
        return (wide - _mean(wide, self.axes) - out * _mean(wide * out, self.axes)) * self.scale


def moments_of(x: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Σ x and Σ (x − mean)² over `axes`, in float64; the axes stay, with size 1."""
    blocks, kernels = _in_blocks(x, axes)
    if kernels:
        left = [1 if i in axes or i - x.ndim in axes else n for i, n in enumerate(x.shape)]
        sums, squares = kernels.moments(blocks)
        return sums.reshape(left), squares.reshape(left)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        sums = total(wide, axes, keepdims=True)
        centred = wide - sums / math.prod(x.shape[i] for i in axes)
        return sums, total(centred * centred, axes, keepdims=True)


def _in_blocks(x: np.ndarray, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """X as (before, channels, after) and the kernels for it, if its runs are worth it."""
    blocks = by_channel(x.shape, axes) if x.dtype == np.float32 else None
    kernels = compiled("sums", x.size) if blocks is not None and blocks[2] >= LONG_RUN else None
    return (np.ascontiguousarray(x).reshape(blocks), kernels) if kernels else (x, None)


class StandardizeBy(Function):
    """y = (x − mean) / √(var + ε), mean and variance given."""

    floats_only = True

    def forward(self, x: np.ndarray, statistics: tuple[np.ndarray, np.ndarray], eps: float) -> np.ndarray:
        mean, var = (a.astype(np.float64) for a in statistics)
        self.scale = 1 / np.sqrt(var + eps)
        return ((x - mean) * self.scale).astype(x.dtype)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad * self.scale


class RMSNorm(Function):
    """y = n w, n = x / √(mean(x²) + ε) over the last axes, those of w; w may be left out.

    With h = g w: dL/dx = (h − n mean(h n)) / √(mean(x²) + ε); dL/dw = Σ g n over the other axes.
    """

    floats_only = True

    def forward(
        self, x: np.ndarray, weight: np.ndarray | None = None, *, axes: tuple[int, ...], eps: float | None
    ) -> np.ndarray:
        self.axes, eps = axes, float(np.finfo(x.dtype).eps) if eps is None else eps
        rows, kernels = _in_blocks(x, axes)
        if kernels:
            out, scale = kernels.rms_norm(rows[0], eps)  # (1, R, N) -> (R, N), (R,)
            out, self.scale = out.reshape(x.shape), scale.reshape(*x.shape[: -len(axes)], *(1 for _ in axes))
        else:
            wide = x.astype(np.float64)
            self.scale = 1 / np.sqrt(_mean(wide * wide, axes) + eps)
            out = (wide * self.scale).astype(x.dtype)
        self.save(out, weight)
        return out if weight is None else out * weight

    def backward(self, grad: np.ndarray) -> np.ndarray | tuple[np.ndarray | None, ...]:
        out, weight = self.saved
        if weight is None:
            return self._by_x(grad, out)
        by_weight = unbroadcast(grad * out, weight.shape) if self.needs_grad[1] else None
        return self._by_x(grad * weight, out) if self.needs_grad[0] else None, by_weight

    def _by_x(self, grad: np.ndarray, out: np.ndarray) -> np.ndarray:
        rows, kernels = _in_blocks(grad, self.axes)
        if kernels and out.dtype == np.float32:
            y = out.reshape(rows[0].shape)
            return kernels.rms_norm_backward(rows[0], y, self.scale.reshape(-1)).reshape(grad.shape)
        wide = grad.astype(np.float64)
        return (wide - out * _mean(wide * out, self.axes)) * self.scale


def _mean(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return total(x, axes, keepdims=True) / math.prod(x.shape[i] for i in axes)


def _affine(x: Tensor, weight: TensorLike | None, bias: TensorLike | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


# ---- as functions ------------------------------------------------------------------------------------------


def batch_norm(
    input: TensorLike,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x − mean) / √(var + ε) · weight + bias, each channel for itself.

    In training, mean and variance are the batch's (the variance divided by n), and the running ones, if given, move
    towards them in place: running ← (1 − momentum) running + momentum batch, with the variance divided by n − 1.
    Otherwise the running ones are used.

    Args:
        input: (N, C) or (N, C, …), float32 or float64.
        running_mean: (C,) or None.
        running_var: (C,) or None.
        weight: (C,) or None.
        bias: (C,) or None.
        training: use the batch's statistics.
        momentum: the batch's share in the running statistics.
        eps: ε.

    Returns:
        As input.

    Raises:
        ValueError: shapes that do not fit; one value a channel in training; no running statistics outside it.
        TypeError: integers.

    Source: Ioffe and Szegedy 2015, algorithm 1; torch.nn.functional.batch_norm, torch 2.13.
    """
    shape = np.shape(input)
    _check_batch_norm(shape, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    axes = (0, *range(2, len(shape)))
    if training:
        _check_several(shape)
        x = as_tensor(input)
        moments = moments_of(x.data, axes) if is_float(x.dtype) else None
        out = Standardize.apply(x, axes=axes, eps=eps, moments=moments)
        if moments is not None:
            _update(x.data, moments, running_mean, running_var, momentum)
    elif running_mean is None or running_var is None:
        raise ValueError("batch_norm: running_mean and running_var are needed outside training: pass both")
    else:
        statistics = (_per_channel(t.detach(), shape).data for t in (running_mean, running_var))
        out = StandardizeBy.apply(input, statistics=tuple(statistics), eps=eps)
    return _affine(out, *(None if t is None else _per_channel(t, shape) for t in (weight, bias)))


def _per_channel(values: TensorLike, shape: tuple[int, ...]) -> Tensor:
    """(C,) -> (C, 1, …), which broadcasts against shape (N, C, …)."""
    return reshape(values, (-1, *(1,) * (len(shape) - 2)))


def _check_batch_norm(shape: tuple[int, ...], **given: TensorLike | None) -> None:
    if len(shape) < 2:
        raise ValueError(f"batch_norm: input must be (N, C) or (N, C, …), got shape {shape}")
    for name, values in given.items():
        if values is not None and np.shape(values) != shape[1:2]:
            raise ValueError(
                f"batch_norm: {name} has shape {np.shape(values)}, expected {shape[1:2]}, the channels of input {shape}"
            )


def _check_several(shape: tuple[int, ...]) -> None:
    if math.prod(shape) // (shape[1] or 1) < 2:
        raise ValueError(
            f"batch_norm: training needs more than one value a channel, got input of shape {shape}: "
            "take a larger batch, or eval()"
        )


def _update(
    x: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
) -> None:
    sums, squares = (m.reshape(-1) for m in moments)
    n = x.size // x.shape[1]
    for running, batch in (
        (running_mean, sums.astype(x.dtype) / x.dtype.type(n)),
        (running_var, (squares / (n - 1)).astype(x.dtype)),
    ):
        if running is not None:
            running.copy_((1 - momentum) * running.data + momentum * batch)


def layer_norm(
    input: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x − mean) / √(var + ε) · weight + bias, mean and variance over the last axes.

    Args:
        input: (…, *normalized_shape), float32 or float64.
        normalized_shape: the sizes of the axes that are normalized together.
        weight: of normalized_shape, or None.
        bias: of normalized_shape, or None.
        eps: ε.

    Returns:
        As input.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: integers.

    Source: Ba, Kiros and Hinton 2016, eq. 4; torch.nn.functional.layer_norm, torch 2.13.
    """
    axes = _last_axes("layer_norm", input, normalized_shape, weight=weight, bias=bias)
    return _affine(Standardize.apply(input, axes=axes, eps=eps), weight, bias)


def rms_norm(
    input: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    eps: float | None = None,
) -> Tensor:
    """x·weight / √(mean(x²) + ε), the mean over the last axes.

    Args:
        input: (…, *normalized_shape), float32 or float64.
        normalized_shape: the sizes of the axes that are normalized together.
        weight: of normalized_shape, or None.
        eps: ε; None for the step of input's dtype at 1.

    Returns:
        As input.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: integers.

    Source: Zhang and Sennrich 2019, eq. 4; torch.nn.functional.rms_norm, torch 2.13.
    """
    axes = _last_axes("rms_norm", input, normalized_shape, weight=weight)
    inputs = (input,) if weight is None else (input, weight)
    return RMSNorm.apply(*inputs, axes=axes, eps=eps)


def _last_axes(
    name: str, input: TensorLike, normalized_shape: int | Sequence[int], **given: TensorLike | None
) -> tuple[int, ...]:
    sizes = sizes_of(normalized_shape, name)
    shape = np.shape(input)
    if shape[-len(sizes) :] != sizes:
        raise ValueError(f"{name}: input has shape {shape}, its last axes must be normalized_shape={sizes}")
    for what, values in given.items():
        if values is not None and np.shape(values) != sizes:
            raise ValueError(f"{name}: {what} has shape {np.shape(values)}, expected {sizes} (normalized_shape)")
    return tuple(range(-len(sizes), 0))


def sizes_of(normalized_shape: int | Sequence[int], name: str) -> tuple[int, ...]:
    """normalized_shape as a tuple; ValueError or TypeError unless it holds positive integers."""
    axes = len(normalized_shape) if isinstance(normalized_shape, Sequence) else 1
    return per_axis(normalized_shape, max(axes, 1), 1, f"{name}: normalized_shape")
