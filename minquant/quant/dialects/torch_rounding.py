"""How torch's CPU kernels turn real values into integers: four rules, and which element of a tensor gets which.

The element-wise kernels have two bodies: one for whole vectors, two registers at a time, and one for the elements that
are left over at the end. They dequantize and round differently, so that an integer depends on its place:

==============  =======================================  ====================================
                whole vectors                            left over
==============  =======================================  ====================================
dequantize      ``fma(s, q, f(s · -z))``                 ``f(s · (q - z))``
quantize        ``rint(f(x · f(1/s))) + z``              ``rint(f(f(x · f(1/s)) + z))``
==============  =======================================  ====================================

Source: aten/src/ATen/cpu/vec/vec256/vec256_qint.h, aten/src/ATen/native/cpu/Loops.h, torch 2.13, one thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minquant.kernels.fma import fma

from ..qtensor import QTensor
from ..spec import QParams

__all__ = [
    "dequantized_as_left_over",
    "dequantized_in_vectors",
    "in_vectors",
    "inner_run",
    "on_grid",
    "quantized_as_left_over",
    "quantized_in_vectors",
    "requantized",
    "whole_channels",
]


def dequantized_in_vectors(x: QTensor) -> np.ndarray:
    """``fma(s, q, f(s · -z))``, not always what `QTensor.dequantize` gives."""
    scale, zero_point = x.qparams.scale, x.qparams.zero_point
    return fma(scale, x.int_repr(), scale * -zero_point.astype(np.float32))


def dequantized_as_left_over(x: QTensor) -> np.ndarray:
    """``f(s · (q - z))``."""
    return x.dequantize()


def quantized_in_vectors(x: np.ndarray, output: QParams) -> np.ndarray:
    """``rint(f(x · f(1/s))) + z`` on the grid."""
    with np.errstate(over="ignore"):
        return on_grid(np.rint(x * (np.float32(1) / output.scale)) + output.zero_point, output)


def quantized_as_left_over(x: np.ndarray, output: QParams) -> np.ndarray:
    """``rint(f(f(x · f(1/s)) + z))`` on the grid."""
    with np.errstate(over="ignore"):
        steps = x * (np.float32(1) / output.scale)
        return on_grid(np.rint(steps + output.zero_point.astype(np.float32)), output)


def requantized(acc: np.ndarray, multiplier: np.ndarray, output: QParams, in_vectors: np.ndarray) -> np.ndarray:
    """``rint(f(f(acc) · multiplier)) + z`` on the grid.

    A whole vector's steps beyond int32 become -2³¹, and so the lowest integer; those left over are clipped as they are.
    """
    with np.errstate(over="ignore"):
        steps = np.rint(acc.astype(np.float32) * multiplier)
    too_large = in_vectors & (np.abs(steps) >= 2.0**31)
    return on_grid(np.where(too_large, np.float32(-(2.0**31)), steps) + output.zero_point, output)


def on_grid(codes: np.ndarray, output: QParams) -> np.ndarray:
    """Codes clipped to the grid's integers."""
    return np.clip(codes, output.spec.qmin, output.spec.qmax).astype(output.spec.dtype)


# ---- places in a tensor ----------------------------------------------------------------------------------------------


def in_vectors(shapes: Sequence[tuple[int, ...]], lanes: int, channels_last: bool) -> np.ndarray:
    """Which elements of an element-wise result a kernel computes in whole vectors.

    Args:
        shapes: of the operands, which broadcast.
        lanes: bytes of a vector register, and so 8-bit integers in it; the kernels take two registers at a time.
        channels_last: whether (N, C, H, W) lies in memory as (N, H, W, C).

    Returns:
        Boolean array of the result's shape.
    """
    shape = np.broadcast_shapes(*shapes)
    order = (0, 2, 3, 1) if channels_last and len(shape) == 4 else tuple(range(len(shape)))
    full = [(1,) * (len(shape) - len(s)) + s for s in shapes]
    run = inner_run([tuple(s[axis] for axis in order) for s in full])
    place = np.arange(math.prod(shape)) % max(run, 1)
    in_memory = (place < run // (2 * lanes) * (2 * lanes)).reshape([shape[axis] for axis in order])
    return in_memory.transpose(np.argsort(order))


def inner_run(shapes: Sequence[tuple[int, ...]]) -> int:
    """How many elements a kernel walks through in one go: the last axes, as long as the same operands are broadcast."""
    shape = np.broadcast_shapes(*shapes)
    run, pattern = 1, None
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            continue
        broadcast = [s[axis] == 1 for s in shapes]
        if pattern is not None and broadcast != pattern:
            break
        run, pattern = run * shape[axis], broadcast
    return run


def whole_channels(shape: tuple[int, ...], lanes: int) -> np.ndarray:
    """Which channels of images (…, C, H, W) a channels_last kernel takes in whole vectors of ``lanes/4`` channels."""
    channels, width = shape[-3], lanes // 4
    return np.broadcast_to((np.arange(channels) < channels // width * width)[:, np.newaxis, np.newaxis], shape)
