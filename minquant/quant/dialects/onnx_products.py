"""MatMulInteger, QLinearMatMul, ConvInteger and QLinearConv, as the ONNX operator specification has them.

The sums are integers, exact in int32. How QLinearMatMul and QLinearConv scale them is left open by the specification,
which says ``y = saturate(rint(real / y_scale) + y_zero_point)`` and not in which precision. Two answers, with
``m = f(f(x_scale · w_scale) / y_scale)``:

===========  ===========================  =============================================================================
`in_double`  ``rint(acc · m + z)``        onnx's reference implementation, in float64: at a tie the parity of z decides
`in_single`  ``rint(f(f(acc) · m)) + z``  onnxruntime, in float32: acc itself is rounded where ``|acc| > 2²⁴``
===========  ===========================  =============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from minquant.functional.geometry import Geometry, check_groups
from minquant.functional.windows import per_axis

from ..integer import accumulate, accumulate_conv
from .onnx_grid import positive

__all__ = ["conv_integer", "in_double", "in_single", "matmul_integer", "multiplier", "qlinear_conv", "qlinear_matmul"]

F32 = np.float32
Rounding: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""int32 accumulator, multiplier and zero point -> whole numbers before saturation."""


def in_double(acc: Any, multiplier: Any, zero_point: Any) -> Any:
    """``rint(acc · m + z)`` in float64: the order of onnx.reference."""
    return np.rint(np.float64(acc) * multiplier + zero_point)


def in_single(acc: Any, multiplier: Any, zero_point: Any) -> Any:
    """``rint(f(f(acc) · m)) + z``: the order of onnxruntime (MlasRequantizeOutput)."""
    return np.float64(np.rint(F32(acc) * multiplier)) + zero_point


def multiplier(x_scale: np.ndarray, w_scale: np.ndarray, y_scale: np.ndarray) -> np.ndarray:
    """``f(f(x_scale · w_scale) / y_scale)``.

    Raises:
        ValueError: it leaves float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        return positive(x_scale * w_scale / y_scale, "x_scale · w_scale / y_scale")


def saturated(codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Clipped to the ends of an integer type."""
    return np.clip(codes, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


# ---- matrix products -------------------------------------------------------------------------------------------------


def matmul_integer(
    A: np.ndarray, B: np.ndarray, a_zero_point: np.ndarray | None = None, b_zero_point: np.ndarray | None = None
) -> np.ndarray:
    """``Y[…, m, n] = Σₖ (A[…, m, k] - a_zero_point)(B[…, k, n] - b_zero_point)``.

    Args:
        A: (…, M, K) or (K,), int8 or uint8; leading axes broadcast as in numpy.matmul.
        B: (…, K, N) or (K,), int8 or uint8.
        a_zero_point: of the type of A; ``()``, ``(M,)`` or ``(…, M, 1)``. None is 0.
        b_zero_point: of the type of B; ``()``, ``(N,)`` or ``(…, 1, N)``. None is 0.

    Returns:
        (…, M, N) int32, exact.

    Raises:
        TypeError: operands that are not 8-bit integers, zero points of another type.
        ValueError: shapes that do not fit; K so large that the sum could leave int32.

    Source: ONNX operator MatMulInteger, version 10.
    """
    za, zb = _zero_point(A, a_zero_point, "A"), _zero_point(B, b_zero_point, "B")
    rows, columns = A[np.newaxis] if A.ndim == 1 else A, B[:, np.newaxis] if B.ndim == 1 else B
    M, K, N = *rows.shape[-2:], columns.shape[-1]
    if columns.shape[-2] != K:
        raise ValueError(f"matrix product: the inner sizes differ: {A.shape} @ {B.shape}")
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    count, acc = math.prod(batch), np.zeros((math.prod(batch), M, N), np.int32)
    many = (
        np.broadcast_to(rows, (*batch, M, K)).reshape(count, M, K),
        np.broadcast_to(_by_row(za), (*batch, M, 1)).reshape(count, M, 1),
        np.broadcast_to(columns, (*batch, K, N)).reshape(count, K, N),
        np.broadcast_to(zb, (*batch, 1, N)).reshape(count, N),
    )
    for i, (a, z, b, w) in enumerate(zip(*many, strict=True)):
        acc[i] = accumulate(a, z, b.T, w)
    return acc.reshape(batch + (M,) * (A.ndim > 1) + (N,) * (B.ndim > 1))


def qlinear_matmul(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    *,
    rounding: Rounding = in_double,
) -> np.ndarray:
    """The matrix product of two quantized matrices, on a grid of its own.

    Args:
        a: (…, M, K) int8 or uint8; b: (…, K, N), as for `matmul_integer`.
        a_scale: float32 of the shape of `a_zero_point`.
        a_zero_point: as for `matmul_integer`.
        b: see `a`.
        b_scale: float32 of the shape of `b_zero_point`.
        b_zero_point: as for `matmul_integer`.
        y_scale: float32, one number.
        y_zero_point: one number; its type, int8 or uint8, is the output's.
        rounding: `in_double` or `in_single`.

    Returns:
        (…, M, N) integers.

    Raises:
        TypeError: operands that are not 8-bit integers, zero points of another type.
        ValueError: shapes or scales that do not fit; K so large that the sum could leave int32.

    Source: ONNX operator QLinearMatMul, version 21.
    """
    acc = matmul_integer(a, b, a_zero_point, b_zero_point)
    scales = _by_row(positive(a_scale, "a_scale")), positive(b_scale, "b_scale"), positive(y_scale, "y_scale")
    return saturated(rounding(acc, multiplier(*scales), y_zero_point), y_zero_point.dtype)


def _by_row(values: np.ndarray) -> np.ndarray:
    """``(M,)`` -> ``(M, 1)``; one number, and what has its axes already, as it is."""
    return values[:, np.newaxis] if values.ndim == 1 and values.size > 1 else values


# ---- convolutions ----------------------------------------------------------------------------------------------------


def conv_integer(
    x: np.ndarray,
    w: np.ndarray,
    x_zero_point: np.ndarray | None = None,
    w_zero_point: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """The sliding product of ``x - x_zero_point`` with ``w - w_zero_point``; padding is 0 after the subtraction.

    Args:
        x: (N, C, D1, …, Dn), int8 or uint8.
        w: (M, C/group, k1, …, kn), int8 or uint8.
        x_zero_point: of the type of x, one number. None is 0.
        w_zero_point: of the type of w, ``()`` or ``(M,)``. None is 0.
        auto_pad: "NOTSET" (see `pads`), "VALID" (none), "SAME_UPPER" or "SAME_LOWER": as many as give ⌈D/stride⌉
            outputs, an odd one at the end or at the beginning.
        dilations: for each axis; None is 1.
        group: into how many the channels are divided.
        pads: elements before each axis, then elements after each axis; None is 0.
        strides: for each axis; None is 1.

    Returns:
        (N, M, …) int32, exact.

    Raises:
        TypeError: operands that are not 8-bit integers, zero points of another type.
        ValueError: shapes or attributes that do not fit; so large a window that the sum could leave int32.

    Source: ONNX operator ConvInteger, version 10.
    """
    zx, zw = _zero_point(x, x_zero_point, "x"), _zero_point(w, w_zero_point, "w")
    _check_channels(x.shape, w.shape, group)
    geometry = _geometry(x.shape[2:], w.shape[2:], auto_pad, dilations, group, pads, strides)
    rows = accumulate_conv(x, zx.reshape(()), w, zw.reshape(()) if zw.size == 1 else zw, geometry)
    return geometry.images(rows, x.shape)


def qlinear_conv(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray,
    w: np.ndarray,
    w_scale: np.ndarray,
    w_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    B: np.ndarray | None = None,
    *,
    rounding: Rounding = in_double,
    **attributes: Any,
) -> np.ndarray:
    """The convolution of quantized tensors, on a grid of its own.

    Args:
        x: (N, C, D1, …, Dn), int8 or uint8.
        x_scale: float32, one number.
        x_zero_point: as for `conv_integer`, and so are the attributes.
        w: (M, C/group, k1, …, kn), int8 or uint8.
        w_scale: float32, ``()`` or ``(M,)``.
        w_zero_point: as for `conv_integer`.
        y_scale: float32, one number.
        y_zero_point: one number; its type, int8 or uint8, is the output's.
        B: bias (M,), int32 in steps of ``x_scale · w_scale``.
        rounding: `in_double` or `in_single`.
        **attributes: auto_pad, dilations, group, pads, strides, as for `conv_integer`.

    Returns:
        (N, M, …) integers.

    Raises:
        TypeError: operands that are not 8-bit integers, zero points of another type, a bias that is not int32.
        ValueError: shapes, scales or attributes that do not fit; so large a window that the sum could leave int32.

    Source: ONNX operator QLinearConv, version 10.
    """
    acc = conv_integer(x, w, x_zero_point, w_zero_point, **attributes)
    channels = (-1,) + (1,) * (w.ndim - 2)  # (M,) -> (M, 1, …, 1)
    if B is not None:
        if B.dtype != np.int32:
            raise TypeError(f"QLinearConv: B must be int32, in steps of x_scale · w_scale; got {B.dtype}")
        acc = acc + B.reshape(channels)
    by_channel = positive(w_scale, "w_scale").reshape(channels if np.size(w_scale) > 1 else ())
    m = multiplier(positive(x_scale, "x_scale"), by_channel, positive(y_scale, "y_scale"))
    return saturated(rounding(acc, m, y_zero_point), y_zero_point.dtype)


def _zero_point(q: np.ndarray, zero_point: Any, name: str) -> np.ndarray:
    """As int32, in which the algebra of zero points is done."""
    if q.dtype not in (np.int8, np.uint8):
        raise TypeError(f"{name} must be int8 or uint8, got {q.dtype}")
    if zero_point is None:
        return np.zeros((), np.int32)
    if np.asarray(zero_point).dtype != q.dtype:
        raise TypeError(f"the zero point of {name} must be {q.dtype}, as {name} is; got {np.asarray(zero_point).dtype}")
    return np.asarray(zero_point, np.int32)


def _check_channels(x: tuple[int, ...], w: tuple[int, ...], group: int) -> None:
    if len(x) < 3 or len(w) != len(x):
        raise ValueError(f"convolution: x must be (N, C, D1, …) and w (M, C/group, k1, …), got shapes {x} and {w}")
    check_groups("convolution", group, C=x[1], M=w[0])
    if w[1] * group != x[1]:
        raise ValueError(f"convolution: x has {x[1]} channels, w of shape {w} in {group} groups takes {w[1] * group}")


def _geometry(
    size: Sequence[int],
    kernel: Sequence[int],
    auto_pad: str,
    dilations: Sequence[int] | None,
    group: int,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> Geometry:
    axes = len(kernel)
    stride, dilation = per_axis(strides or 1, axes, 1, "strides"), per_axis(dilations or 1, axes, 1, "dilations")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        missing = [max(0, (-(-n // s) - 1) * s + k - n) for n, s, k in zip(size, stride, spans, strict=True)]
        fewer, more = [n // 2 for n in missing], [n - n // 2 for n in missing]
        pads = fewer + more if auto_pad == "SAME_UPPER" else more + fewer
    elif auto_pad == "VALID":
        pads = None
    elif auto_pad != "NOTSET":
        raise ValueError(f"auto_pad must be NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {auto_pad!r}")
    flat = per_axis(pads or 0, 2 * axes, 0, "pads")
    padding = tuple(zip(flat[:axes], flat[axes:], strict=True))
    geometry = Geometry(tuple(kernel), stride, padding, dilation, group)
    geometry.check_fits(size, "convolution")
    return geometry
