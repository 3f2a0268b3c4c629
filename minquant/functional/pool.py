"""Pooling: the largest element, or the mean, of each window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from minquant.autograd import Function, total
from minquant.functional.windows import (
    Sizes,
    add_windows,
    check_axes,
    check_fits,
    offsets,
    pad,
    per_axis,
    places,
    unpad,
    windows,
)
from minquant.kernels.choice import compiled
from minquant.tensor import Tensor, is_float

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

Pair = tuple[int, int]
AdaptiveSizes: TypeAlias = "int | None | Sequence[int | None]"


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
        kernels = compiled("windows", x.size)
        if kernels and x.dtype == np.float32 and x.size:
            return self._compiled(kernels, padded)
        seen = windows(padded, kernel, stride, dilation)  # (…, Ho, Wo, kh, kw)
        flat = seen.reshape(*seen.shape[:-2], math.prod(kernel))  # (…, Ho, Wo, kh·kw)
        self.index = flat.argmax(-1)[..., None]  # (…, Ho, Wo, 1)
        return np.take_along_axis(flat, self.index, -1)[..., 0]

    def _compiled(self, kernels: Any, padded: np.ndarray) -> np.ndarray:
        starts, taps = offsets(self.padded, self.kernel, self.stride, self.dilation)
        out, index = kernels.largest(np.ascontiguousarray(padded).reshape(-1, math.prod(self.padded)), starts, taps)
        shape = *padded.shape[:-2], *places(self.padded, self.kernel, self.stride, self.dilation)
        self.index = index.reshape(*shape, 1)
        return out.reshape(shape)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        kernels = compiled("windows", grad.size)
        if kernels and grad.dtype == np.float32 and grad.size:
            starts, taps = offsets(self.padded, self.kernel, self.stride, self.dilation)
            rows = [np.ascontiguousarray(a).reshape(-1, len(starts)) for a in (grad, self.index)]
            whole = kernels.add_largest(*rows, starts, taps, math.prod(self.padded))
            return unpad(whole.reshape(*grad.shape[:-2], *self.padded), self.padding)
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


class AdaptiveAvgPool2d(Function):
    """The mean of each of Ho × Wo regions, which cover the input and overlap where its size is no multiple."""

    floats_only = True

    def forward(self, x: np.ndarray, size: Pair) -> np.ndarray:
        self.shape, self.size = x.shape, size
        out = np.empty((*x.shape[:-2], *size), x.dtype)
        for place, region, count in regions(x.shape[-2:], size):
            out[place] = total(x[region], (-2, -1)) / x.dtype.type(count)
        return out

    def backward(self, grad: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape, grad.dtype)
        for place, region, count in regions(self.shape[-2:], self.size):
            out[region] += (grad[place] / grad.dtype.type(count))[..., None, None]
        return out


def regions(image: Sequence[int], size: Pair) -> Iterator[tuple[Any, Any, int]]:
    """For each place (i, j) of the output: its index, that of its region ⌊i·H/Ho⌋ … ⌈(i + 1)·H/Ho⌉, elements there."""
    for place in np.ndindex(*size):
        spans = [(i * n // m, -(-(i + 1) * n // m)) for i, n, m in zip(place, image, size, strict=True)]
        count = math.prod(end - start for start, end in spans)
        yield (..., *place), (..., *itertools.starmap(slice, spans)), count


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


def adaptive_avg_pool2d(input: TensorLike, output_size: AdaptiveSizes) -> Tensor:
    """The mean of each of Ho × Wo regions: row i covers the elements ⌊i·H/Ho⌋ to ⌈(i + 1)·H/Ho⌉ − 1, columns alike.

    Args:
        input: (N, C, H, W) or (C, H, W), float32 or float64, H and W at least 1.
        output_size: Ho and Wo, or one integer for both; None keeps the input's size.

    Returns:
        (N, C, Ho, Wo) or (C, Ho, Wo).

    Raises:
        ValueError: a shape or size that does not fit.
        TypeError: integers; sizes that are no integers.

    Source: torch.nn.functional.adaptive_avg_pool2d, torch 2.13.
    """
    shape = np.shape(input)
    check_axes(shape, 2, "adaptive_avg_pool2d")
    if 0 in shape[-2:]:
        raise ValueError(f"adaptive_avg_pool2d: input needs a height and width of at least 1, got shape {shape}")
    sizes = adaptive_sizes(output_size, "adaptive_avg_pool2d")
    height, width = (n if m is None else m for m, n in zip(sizes, shape[-2:], strict=True))
    return AdaptiveAvgPool2d.apply(input, size=(height, width))


def adaptive_sizes(output_size: AdaptiveSizes, name: str) -> tuple[int | None, int | None]:
    """Two sizes of which either may be None.

    Raises:
        TypeError: neither integers nor None.
        ValueError: another number of them; one below 1.
    """
    sizes = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    what = f"{name}: output_size must be an integer or None, or two of these"
    if not all(n is None or isinstance(n, int | np.integer) for n in sizes):
        raise TypeError(f"{what}, got {output_size!r}")
    if len(sizes) != 2 or any(n is not None and n < 1 for n in sizes):
        raise ValueError(f"{what}, none below 1, got {output_size!r}")
    return sizes


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
