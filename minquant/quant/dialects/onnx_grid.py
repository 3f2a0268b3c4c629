"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, as the ONNX operator specification has them.

Three rules set this grammar apart from PyTorch's: x is *divided* by the scale, never multiplied by its reciprocal; the
zero point is added after the rounding; and a scale chosen at run time has no smallest value.

A scale is one number, one for each index along `axis`, or one for each block of `block_size` along `axis`. Integers of
2 and 4 bits are kept one a byte, as int8 or uint8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..grid import check_finite, refuse_nan

__all__ = ["RANGES", "dequantize_linear", "dynamic_quantize_linear", "quantize_linear"]

F32 = np.float32
RANGES = {
    f"{'' if signed else 'u'}int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    for bits in (2, 4, 8, 16)
    for signed in (True, False)
}
"""Smallest and largest integer of each type that QuantizeLinear can write, but for the floating ones."""


def quantize_linear(
    x: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: str | None = None,
) -> np.ndarray:
    """``y = saturate(rint(f(x / y_scale)) + y_zero_point)``.

    Args:
        x: float32, any shape (D0, …, Dn).
        y_scale: float32; ``()``, ``(Di,)`` for axis i, or (D0, …, ⌈Di/B⌉, …, Dn) for blocks of B.
        y_zero_point: integers of the shape of `y_scale`; None is 0.
        axis: which axis has a scale for each index, or blocks.
        block_size: B, or 0 for no blocks.
        output_dtype: "int2" to "uint16"; None is the type of `y_zero_point`, or uint8.

    Returns:
        Integers of the shape of `x`. Infinities saturate.

    Raises:
        TypeError: x that is not float32; a zero point of another type than the output.
        ValueError: NaN; a type that there is not; scales that are not positive, or of a shape that does not fit.

    The attribute `saturate` concerns 8-bit floating types alone, which minquant does not have.
    Source: ONNX operator QuantizeLinear, version 21.
    """
    if np.asarray(x).dtype != F32:
        raise TypeError(f"QuantizeLinear: x must be float32, got {np.asarray(x).dtype}; convert with .astype")
    refuse_nan(x)
    name = output_dtype or ("uint8" if y_zero_point is None else str(np.asarray(y_zero_point).dtype))
    if name not in RANGES:
        raise ValueError(f"QuantizeLinear: output_dtype must be one of {', '.join(RANGES)}; got {name!r}")
    kept = kept_as(name)
    scale = expanded(positive(y_scale, "y_scale"), x.shape, axis, block_size, "y_scale")
    zero_point = _zero_point(y_zero_point, y_scale, kept, x.shape, axis, block_size, "y_zero_point")
    return np.clip(to_codes(x, scale, zero_point), *RANGES[name]).astype(kept)


def dequantize_linear(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
) -> np.ndarray:
    """``y = f(f(x - x_zero_point) · x_scale)``.

    Args:
        x: integers of 8 or 16 bits, or int32 (the type of a bias), which has no zero point.
        x_scale: as `quantize_linear` takes it.
        x_zero_point: of the type of `x` and the shape of `x_scale`; None is 0.
        axis: as in `quantize_linear`.
        block_size: likewise.

    Returns:
        float32 of the shape of `x`.

    Raises:
        TypeError: x of another type; a zero point of another type than x.
        ValueError: scales that are not positive, or of a shape that does not fit; a zero point of int32 that is not 0.

    Source: ONNX operator DequantizeLinear, version 21.
    """
    if str(x.dtype) not in ("int8", "uint8", "int16", "uint16", "int32"):
        raise TypeError(f"DequantizeLinear: x must be integers of 8 or 16 bits, or int32; got {x.dtype}")
    if x.dtype == np.int32 and x_zero_point is not None and np.any(x_zero_point):
        raise ValueError("DequantizeLinear: int32 has no zero point, leave x_zero_point out")
    scale = expanded(positive(x_scale, "x_scale"), x.shape, axis, block_size, "x_scale")
    zero_point = _zero_point(x_zero_point, x_scale, x.dtype, x.shape, axis, block_size, "x_zero_point")
    with np.errstate(over="ignore"):
        return (x - zero_point).astype(F32) * scale


def dynamic_quantize_linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 integers on the grid of x's own range, with 0 in it.

    ``s = f(f(hi - lo) / 255)``, ``z = rint(clip(f(0 - f(lo / s)), 0, 255))``, ``y = clip(rint(f(x / s)) + z, 0, 255)``
    with ``lo = min(min x, 0)`` and ``hi = max(max x, 0)``. Where all values are 0, or there are none, the specification
    has no scale; it is 1/255 here and in onnx's reference implementation, 1 in onnxruntime.

    Args:
        x: float32.

    Returns:
        y (uint8, of the shape of `x`), y_scale (float32) and y_zero_point (uint8), 0-d.

    Raises:
        ValueError: NaN or infinity; a range that is wider than float32, or so narrow that the scale would be 0.

    Source: ONNX operator DynamicQuantizeLinear, version 11.
    """
    check_finite(x, "DynamicQuantizeLinear: x", "Mend the data or the layers before it")
    low, high = np.minimum(x.min(initial=0), F32(0)), np.maximum(x.max(initial=0), F32(0))
    with np.errstate(over="ignore"):
        scale = np.asarray((F32(1) if low == high else high - low) / F32(255))
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(
            f"DynamicQuantizeLinear: the range {low} … {high} makes the scale {scale}, by which nothing can be "
            "divided; rescale the data"
        )
    zero_point = np.rint(np.clip(F32(0) - low / scale, 0, 255)).astype(np.uint8)
    y = np.clip(to_codes(x, scale, np.int64(zero_point)), 0, 255).astype(np.uint8)
    return y, scale, np.asarray(zero_point)


def to_codes(x: np.ndarray, scale: np.ndarray, zero_point: Any) -> np.ndarray:
    """``rint(f(x / s)) + z`` before saturation, int64; what lies beyond ±2³² is brought there."""
    with np.errstate(over="ignore"):
        steps = np.rint(x / scale)
    return np.clip(steps, -(2.0**32), 2.0**32).astype(np.int64) + zero_point


def kept_as(name: str) -> np.dtype:
    """The NumPy type of integers that are called so: of 2 and 4 bits, one a byte."""
    return np.dtype(name if name[-1] in "68" else name[:-1] + "8")


def positive(scale: Any, name: str) -> np.ndarray:
    """The scale as float32.

    Raises:
        ValueError: one that is not a positive finite number.
    """
    scale = np.asarray(scale, F32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"{name} must be positive and finite, got {scale.reshape(-1)[:8]}")
    return scale


def expanded(values: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int, name: str) -> np.ndarray:
    """Values of a tensor, an axis or blocks, shaped to broadcast against `shape`.

    Raises:
        ValueError: they do not fit the shape.
    """
    if values.size == 1 and not block_size:
        return values.reshape(())
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name}: axis must be one of the {len(shape)} axes of x, got {axis}")
    size = shape[axis]
    blocks = list(shape)
    blocks[axis] = -(-size // block_size) if block_size else size
    wanted = tuple(blocks) if block_size else (size,)
    if values.shape != wanted:
        raise ValueError(f"{name}: x of shape {shape} needs shape {wanted} for axis {axis}, got {values.shape}")
    if block_size:
        return np.take(np.repeat(values, block_size, axis), range(size), axis)
    return values.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _zero_point(
    zero_point: Any, scale: Any, dtype: np.dtype, shape: tuple[int, ...], axis: int, block_size: int, name: str
) -> np.ndarray:
    """As int64, so that no sum with it overflows."""
    if zero_point is None:
        return np.zeros((), np.int64)
    zero_point = np.asarray(zero_point)
    if zero_point.dtype != dtype:
        raise TypeError(f"{name} must be of the integers' type, {dtype}; got {zero_point.dtype}")
    if zero_point.shape != np.shape(scale):
        raise ValueError(f"{name} must have the scale's shape {np.shape(scale)}, got {zero_point.shape}")
    return expanded(zero_point.astype(np.int64), shape, axis, block_size, name)
