"""Pooling: the largest element, or the mean, of each window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function, total
from minquant.functional.windows import Sizes, add_windows, check_axes, check_fits, pad, per_axis, unpad, windows
from minquant.tensor import Tensor, is_float

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

Pair = tuple[int, int]


class MaxPool2d(Function):
    """The largest element of each window; the first of equal ones, row by row, gets the gradient."""

    on_grid = True

    def forward(self, x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> np.ndarray:
        if x.dtype == bool:
            raise TypeError("max_pool2d: expected floats or integers, got bool: convert it first")
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self.padding = [(n, n) for n in padding]
        padded = pad(x, self.padding, -np.inf if is_float(x.dtype) else np.iinfo(x.dtype).min)
        self.padded = padded.shape[-2:]
        seen = windows(padded, kernel, stride, dilation)  # (…, Ho, Wo, kh, kw)
        flat = seen.reshape(*seen.shape[:-2], math.prod(kernel))  # (…, Ho, Wo, kh·kw)
        self.index = flat.argmax(-1)[..., None]  # (…, Ho, Wo, 1)
        return np.take_along_axis(flat, self.index, -1)[..., 0]

    def backward(self, grad: np.ndarray) -> np.ndarray:
        flat = np.zeros((*grad.shape, math.prod(self.kernel)), grad.dtype)  # (…, Ho, Wo, kh·kw)
        np.put_along_axis(flat, self.index, grad[..., None], -1)
        seen = flat.reshape(*grad.shape, *self.kernel)
        return unpad(add_windows(seen, self.padded, self.kernel, self.stride, self.dilation), self.padding)


class AvgPool2d(Function):
    """Σ of each window / (kh · kw), the zeros of the padding counted as elements."""

    floats_only = True

    def forward(self, x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
        self.kernel, self.stride = kernel, stride
        self.padding = [(n, n) for n in padding]
        padded = pad(x, self.padding)
        self.padded = padded.shape[-2:]
        seen = windows(padded, kernel, stride, (1, 1))  # (…, Ho, Wo, kh, kw)
        return total(seen, (-2, -1)) / x.dtype.type(math.prod(kernel))

    def backward(self, grad: np.ndarray) -> np.ndarray:
        share = (grad / grad.dtype.type(math.prod(self.kernel)))[..., None, None]  # (…, Ho, Wo, 1, 1)
        seen = np.broadcast_to(share, (*grad.shape, *self.kernel))
        return unpad(add_windows(seen, self.padded, self.kernel, self.stride, (1, 1)), self.padding)


# ---- as functions ------------------------------------------------------------------------------------------


def max_pool2d(
    input: TensorLike, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1
) -> Tensor:
    """The largest element of each window; where several are equal the first has the gradient.

    Works on integers too, quantized ones included, since the largest integer stands for the largest value.

    Args:
        input: (N, C, H, W) or (C, H, W); not bool.
        kernel_size: height and width of a window, or one integer for both, as in all that follows.
        stride: elements from one window to the next; None for kernel_size.
        padding: elements on each side that are smaller than all others, at most half of what the kernel spans.
        dilation: elements from one tap of a window to the next.

    Returns:
        (N, C, Ho, Wo) or (C, Ho, Wo), where Ho = ⌊(H + 2·padding − dilation·(kh − 1) − 1) / stride⌋ + 1.

    Raises:
        ValueError: shapes or options that do not fit; a window larger than the padded input.
        TypeError: bools.

    A window of nothing but −inf and padding hands its gradient to the first of these, be it padding.
    Source: torch.nn.functional.max_pool2d, torch 2.13 (ceil_mode=False).
    """
    kernel, strides, pads, dilations = _geometry("max_pool2d", input, kernel_size, stride, padding, dilation)
    return MaxPool2d.apply(input, kernel=kernel, stride=strides, padding=pads, dilation=dilations)


def avg_pool2d(input: TensorLike, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Tensor:
    """The mean of each window, the zeros of the padding counted as elements.

    Args:
        input: (N, C, H, W) or (C, H, W), float32 or float64.
        kernel_size: height and width of a window, or one integer for both, as in all that follows.
        stride: elements from one window to the next; None for kernel_size.
        padding: zeros on each side, at most half of kernel_size.

    Returns:
        (N, C, Ho, Wo) or (C, Ho, Wo), where Ho = ⌊(H + 2·padding − kh) / stride⌋ + 1.

    Raises:
        ValueError: shapes or options that do not fit; a window larger than the padded input.
        TypeError: integers.

    Source: torch.nn.functional.avg_pool2d, torch 2.13 (ceil_mode=False, count_include_pad=True).
    """
    kernel, strides, pads, _ = _geometry("avg_pool2d", input, kernel_size, stride, padding, 1)
    return AvgPool2d.apply(input, kernel=kernel, stride=strides, padding=pads)


def _geometry(
    name: str, input: TensorLike, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes
) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride, padding and dilation, each for two axes."""
    check_axes(np.shape(input), 2, name)
    kernel = per_axis(kernel_size, 2, 1, f"{name}: kernel_size")
    strides = kernel if stride is None else per_axis(stride, 2, 1, f"{name}: stride")
    pads = per_axis(padding, 2, 0, f"{name}: padding")
    dilations = per_axis(dilation, 2, 1, f"{name}: dilation")
    if any(p > (d * (k - 1) + 1) // 2 for p, k, d in zip(pads, kernel, dilations, strict=True)):
        raise ValueError(f"{name}: padding must be at most half of what the kernel spans, got {padding=}, {kernel=}")
    check_fits([n + 2 * p for n, p in zip(np.shape(input)[-2:], pads, strict=True)], kernel, dilations, name)
    return kernel, strides, pads, dilations
