"""The integer heart of a quantized Linear or Conv: ``acc = Σₖ (qx - zx)(qw - zw)``, exact in int32.

A matmul instruction multiplies the integers as they are, so the zero points are taken out by algebra
(Jacob et al. 2018, arXiv:1712.05877, equation 7):

    ``Σ (qx - zx)(qw - zw) = Σ qx·qw - zx·Σ qw - zw·Σ qx + K·zx·zw``

The second and fourth terms do not depend on x; a symmetric weight (``zw = 0``) drops the last two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels import Packed, column_sums, instruction, int8_matmul, pack_weight
from minquant.kernels.epilogue import Epilogue

__all__ = ["accumulate", "accumulate_conv", "check_room", "finish", "product", "product_conv"]

INT32_MAX = 2**31 - 1
ALWAYS_SAFE = INT32_MAX // (255 * 255)
"""Values of K that leave room for the largest differences that 8 bits have."""
ENDS = {np.dtype(np.int8): (-128, 127), np.dtype(np.uint8): (0, 255)}


def accumulate(
    qx: np.ndarray,
    zx: np.ndarray,
    qw: np.ndarray,
    zw: np.ndarray,
    matmul: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """``acc[m, n] = Σₖ (qx[m, k] - zx)(qw[n, k] - zw)``.

    Args:
        qx: (M, K) int8 or uint8.
        zx: zero point of x: ``()``, or ``(M, 1)`` for one a row.
        qw: (N, K) int8 or uint8.
        zw: zero point of w: ``()``, or ``(N,)`` for one a channel.
        matmul: multiplies the raw integers, (M, K) by int8 (K, N), to int32 (M, N); `int8_matmul` if left out.

    Returns:
        (M, N) int32, as exact as `matmul`: the corrections are exact.

    Raises:
        ValueError: K so large that the sum could leave int32.
    """
    if qw.dtype == np.uint8:  # the kernels take a signed weight: shift the integers and their zero point alike
        qw, zw = (qw.astype(np.int16) - 128).astype(np.int8), zw - 128
    check_room(qx.shape[1], qx.dtype, zx, qw.dtype, zw)
    right = qw.T if matmul else pack_weight(qw.T)
    multiply: Callable[..., np.ndarray] = matmul or int8_matmul
    acc = multiply(qx, right)  # (M, K) @ (K, N) -> (M, N)
    # Each term alone may wrap around int32; their sum does not, and arithmetic modulo 2^32 is exact for it.
    acc -= zx * column_sums(right)
    if np.any(zw):
        acc -= zw * (qx.sum(axis=1, dtype=np.int32, keepdims=True) - qx.shape[1] * zx)
    return acc


def product(qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray, epilogue: Epilogue) -> np.ndarray:
    """The epilogue of `accumulate`, (M, N): where there is a kernel for both, in one go."""
    if instruction() is None or qw.dtype != np.int8 or np.ndim(zx) or zw.any():
        return finish(accumulate(qx, zx, qw, zw), epilogue)
    from minquant.kernels import fused

    check_room(qx.shape[1], qx.dtype, zx, qw.dtype, zw)
    return fused.product(qx, int(zx), cast(Packed, pack_weight(qw.T)), epilogue)


def finish(acc: np.ndarray, epilogue: Epilogue) -> np.ndarray:
    """``epilogue(acc)`` of int32 sums (M, N): compiled, where kernels are."""
    if instruction() is None:
        return epilogue(acc)
    from minquant.kernels import fused

    return fused.finish(acc, epilogue)


def accumulate_conv(
    qx: np.ndarray,
    zx: np.ndarray,
    qw: np.ndarray,
    zw: np.ndarray,
    geometry: Geometry,
) -> np.ndarray:
    """The sum of `accumulate` over what each output of a convolution sees.

    The padding holds the integer zx, which is real 0, so that it contributes nothing.

    Args:
        qx: (N, C, *size) int8 or uint8.
        zx: zero point of x: ``()``.
        qw: (M, C/groups, *kernel) int8 or uint8.
        zw: zero point of w: ``()``, or ``(M,)`` for one a channel.
        geometry: how the kernel slides.

    Returns:
        (R, M) int32, exact: a row for each place (see `Geometry.images`).

    Raises:
        ValueError: a window so large that the sum could leave int32.
    """
    columns, filters = geometry.columns(qx, int(zx)), geometry.filters(qw)  # (G, R, K), (G, M/G, K)
    per_group = np.broadcast_to(zw, len(qw)).reshape(geometry.groups, -1)  # (G, M/G)
    parts = [accumulate(c, zx, f, z) for c, f, z in zip(columns, filters, per_group, strict=True)]
    return np.concatenate(parts, axis=1)


def product_conv(
    qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray, geometry: Geometry, epilogue: Epilogue
) -> np.ndarray:
    """The epilogue of `accumulate_conv`, (R, M): where there is a kernel for both, in one go."""
    isa = instruction()
    if isa is None or qw.dtype != np.int8 or qx.ndim > 4 or zw.any():
        return finish(accumulate_conv(qx, zx, qw, zw, geometry), epilogue)
    from minquant.kernels import conv

    check_room(math.prod(qw.shape[1:]), qx.dtype, zx, qw.dtype, zw)
    return conv.product_conv(qx, int(zx), qw, geometry, isa, epilogue)


def check_room(K: int, x_dtype: np.dtype, zx: np.ndarray, w_dtype: np.dtype, zw: np.ndarray) -> None:
    """Refuses sums of K products that could leave int32.

    Raises:
        ValueError: see above.
    """
    if K <= ALWAYS_SAFE:
        return
    largest = _largest(x_dtype, zx) * _largest(w_dtype, zw)
    if K * largest > INT32_MAX:
        raise ValueError(
            f"the int32 accumulator could overflow: K = {K}, and products reach {largest}, so at most "
            f"K = {INT32_MAX // largest} is safe; split the layer along K"
        )


def _largest(dtype: np.dtype, zero_point: np.ndarray) -> int:
    if not np.size(zero_point):
        return 1
    lowest, highest = ENDS[dtype]
    least, most = (zero_point, zero_point) if np.ndim(zero_point) == 0 else (zero_point.min(), zero_point.max())
    return max(highest - int(least), int(most) - lowest)
