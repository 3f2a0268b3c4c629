"""Average pooling of quantized images, as torch's native CPU kernels run it: sums of integers, on the input's own grid.

With n elements in a window and ``r = f(1/n)``, the sum of the centred integers becomes

==========================  ==============================================
in (N, C, H, W) memory      ``rint(f(f(Σ(q - z) · r) + z))``
channels_last, whole        ``rint(f(Σ(q - z) · r)) + z``
channels_last, left over    as in (N, C, H, W) memory
==========================  ==============================================

which part ways at half steps if z is odd: a quarter of all 2 × 2 windows. Adaptive pooling has rules of its own.

Source: aten/src/ATen/native/quantized/cpu/AveragePool2d.cpp, AdaptiveAveragePooling.cpp, torch 2.13.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.functional.windows import pad, windows
from minquant.kernels.fma import fma

from ..qtensor import QTensor
from .torch_rounding import on_grid, whole_channels

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_code_in_vectors",
    "avg_pool2d",
    "centred",
    "code_in_vectors",
    "code_left_over",
    "lies_channels_last",
    "planar_reciprocal",
    "regions",
    "window_sums",
]

Pair = tuple[int, int]


def avg_pool2d(x: QTensor, kernel: Pair, stride: Pair, padding: Pair, lanes: int, channels_last: bool) -> QTensor:
    """The mean of each window, the padding's zeros counted as elements."""
    total = window_sums(centred(x), kernel, stride, padding).astype(np.float32)
    terms = np.float32(1 / (kernel[0] * kernel[1])), np.float32(x.qparams.zero_point)
    rest = code_left_over(total, *terms)
    if not lies_channels_last(x.shape, channels_last):
        return QTensor(on_grid(rest, x.qparams), x.qparams)
    whole = code_in_vectors(total, *terms)
    return QTensor(on_grid(np.where(whole_channels(total.shape, lanes), whole, rest), x.qparams), x.qparams)


def code_left_over(total: Any, reciprocal: Any, zero_point: Any) -> Any:
    """``rint(f(f(Σ(q - z) · r) + z))``, of numbers or arrays alike, as are the two that follow."""
    return np.rint(total * reciprocal + zero_point)


def code_in_vectors(total: Any, reciprocal: Any, zero_point: Any) -> Any:
    """``rint(f(Σ(q - z) · r)) + z``."""
    return np.rint(total * reciprocal) + zero_point


def adaptive_code_in_vectors(total: Any, reciprocal: Any, zero_point: Any) -> Any:
    """``rint(fma(Σ(q - z), r, z))``."""
    return np.rint(fma(total, reciprocal, zero_point))


def adaptive_avg_pool2d(x: QTensor, size: Pair, lanes: int, channels_last: bool) -> QTensor:
    """The mean of each of Ho × Wo regions of kh × kw elements.

    In (N, C, H, W) memory ``rint(f(Σq · f(f(1/kh)/kw)))``: the zero point stays in the sum. In channels_last memory
    ``rint(fma(Σ(q - z), r, z))`` in whole vectors, and left over as `avg_pool2d`.
    """
    out = np.zeros((*x.shape[:-2], *size), np.float32)
    last = lies_channels_last(x.shape, channels_last)
    q = centred(x) if last else x.int_repr().astype(np.int32)
    for i, rows in enumerate(regions(x.shape[-2], size[0])):
        for j, columns in enumerate(regions(x.shape[-1], size[1])):
            region = q[..., rows, columns]
            total = region.sum(axis=(-1, -2)).astype(np.float32)
            mean = channels_last_mean if last else planar_mean
            out[..., i, j] = mean(total, region.shape[-2:], x, lanes)
    return QTensor(on_grid(out, x.qparams), x.qparams)


def planar_mean(total: np.ndarray, region: tuple[int, ...], x: QTensor, lanes: int) -> np.ndarray:
    """``rint(f(Σq · f(f(1/kh)/kw)))``."""
    return np.rint(total * planar_reciprocal(region))


def planar_reciprocal(region: tuple[int, ...]) -> np.float32:
    """``f(f(1/kh)/kw)``."""
    height, width = region
    return np.float32(1) / np.float32(height) / np.float32(width)


def channels_last_mean(total: np.ndarray, region: tuple[int, ...], x: QTensor, lanes: int) -> np.ndarray:
    """Means (…, C) of sums of centred integers, whole vectors of channels or left over."""
    terms = np.float32(1 / (region[0] * region[1])), np.float32(x.qparams.zero_point)
    whole, rest = adaptive_code_in_vectors(total, *terms), code_left_over(total, *terms)
    return np.where(whole_channels((*total.shape, 1, 1), lanes)[..., 0, 0], whole, rest)


def regions(elements: int, count: int) -> list[slice]:
    """Region i covers the elements ``⌊i·n/count⌋`` to ``⌈(i + 1)·n/count⌉ - 1``."""
    return [slice(i * elements // count, -((i + 1) * elements // -count)) for i in range(count)]


def window_sums(centred: np.ndarray, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
    """Sums of the windows of centred integers (…, H, W) -> int32 (…, Ho, Wo); the padding is zero."""
    padded = pad(centred, [(p, p) for p in padding])
    return windows(padded, kernel, stride, (1, 1)).sum(axis=(-1, -2), dtype=np.int32)


def lies_channels_last(shape: tuple[int, ...], channels_last: bool) -> bool:
    """Whether torch takes a tensor for channels_last: with one channel or one pixel both memory orders are the same."""
    return len(shape) == 4 and (channels_last or shape[1] == 1 or shape[2:] == (1, 1))


def centred(x: QTensor) -> np.ndarray:
    """``q - z``, int32."""
    return x.int_repr().astype(np.int32) - x.qparams.zero_point
