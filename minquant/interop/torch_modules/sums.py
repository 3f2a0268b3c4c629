"""The exact sums of a quantized convolution, and of a Linear with groups of scales, on tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.functional.geometry import Geometry
from minquant.kernels import cuda, tensors

from .quantized import Weight

__all__ = ["added", "conv_sums", "grouped_real", "images", "in_triton", "windows"]

SIZES = (32, 64, 128, 256)
"""Of groups that a Triton kernel multiplies at once."""


def windows(x: Tensor, geometry: Geometry, fill: int) -> Tensor:
    """(N, C, *size) -> (G, R, K), padded with `fill`: `Geometry.columns` of a tensor."""
    pads = [n for before, after in reversed(geometry.padding) for n in (before, after)]
    seen = torch.nn.functional.pad(x, pads, value=fill)
    for i, (k, stride, dilation) in enumerate(zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)):
        seen = seen.unfold(2 + i, dilation * (k - 1) + 1, stride)[..., ::dilation]  # one axis more: the taps
    seen = seen.movedim(1, x.ndim - 1)  # (N, *places, C, *kernel)
    rows, size = math.prod(seen.shape[: x.ndim - 1]), x.shape[1] * math.prod(geometry.kernel) // geometry.groups
    return seen.reshape(rows, geometry.groups, size).transpose(0, 1)


def conv_sums(q: Tensor, zx: int, weight: Weight, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    """``Σ (qx - zx)(qw - zw)`` over each window, (R, M) int32, and what is to be taken from it: see `cuda.sums`.

    Where every channel is a group of its own, a product of matrices would be one of rows: it is done by element.
    """
    rows, groups = windows(q, geometry, zx), geometry.groups
    by_group = weight.signed()[1].expand(weight.shape[0]).reshape(groups, -1)  # (G, M/G)
    if by_group.shape[1] == 1 and groups > 1:
        filters = weight.signed()[0].reshape(groups, 1, -1)  # (G, 1, K)
        return ((rows.int() - zx) * (filters.int() - by_group[:, :, None])).sum(-1, dtype=torch.int32).T, None
    of_groups = zip(rows, weight.columns(groups), by_group, strict=True)
    parts = [cuda.sums(r, zx, c, zw if weight.has_zero_points else 0) for r, c, zw in of_groups]
    shifts = [shift for _, shift in parts if shift is not None]
    return torch.cat([acc for acc, _ in parts], 1), torch.cat(shifts) if shifts else None


def images(rows: Tensor, x_shape: Any, geometry: Geometry) -> Tensor:
    """(R, M) -> (N, M, *places): `Geometry.images` of a tensor."""
    out = rows.reshape(x_shape[0], *geometry.places(x_shape[2:]), rows.shape[-1])
    return out.movedim(-1, 1).contiguous()


def added(acc: Any, total: Any, x_scale: Any, w_scale: Any) -> Any:
    """``f(total + f(f(acc) · f(sx·sw)))``, of numbers or arrays alike."""
    return total + np.float32(acc) * (x_scale * w_scale)


def grouped_real(qx: Tensor, zx: Tensor | int, weight: Weight, x_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The reference dialect's Linear with groups: ``y = f(y + f(f(acc_g) · f(sx·sw_g)))``, ascending, then the bias.

    Args:
        qx: (R, K) int8 or uint8.
        zx: zero point of x: one number, or int32 (R, 1).
        weight: (N, K).
        x_scale: one number, or (R, 1).
        bias: (N,).
    """
    size = weight.spec.granularity.group_size  # type: ignore[union-attr]
    if qx.is_cuda and tensors.has_triton() and is_in_triton(weight, size):
        y = in_triton(qx, zx, weight, x_scale)
    else:
        y = one_by_one(qx, zx, weight, x_scale, size)
    return y if bias is None else y + bias


def one_by_one(qx: Tensor, zx: Tensor | int, weight: Weight, x_scale: Tensor, size: int) -> Tensor:
    """A product for each group."""
    integers, zero_points = weight.signed()
    y = torch.zeros(len(qx), weight.shape[0], device=qx.device)
    operands = zip(cuda.grouped(qx, size), cuda.grouped(integers, size), strict=True)
    for g, (rows, filters) in enumerate(operands):
        zw = zero_points[:, g] if weight.has_zero_points else 0
        acc, shift = cuda.sums(rows, zx, cuda.columns_of(filters.T), zw)
        y = tensors.apply(added, acc, (y, x_scale, weight.scale[:, g]), torch.float32, shift=shift)
    return y


def is_in_triton(weight: Weight, size: int) -> bool:
    """Whether the kernel for all groups at once has such: symmetric, and in sizes that tensor cores divide."""
    return weight.spec.signed and not weight.has_zero_points and weight.spec.bits in (2, 4, 8) and size in SIZES


def in_triton(qx: Tensor, zx: Tensor | int, weight: Weight, x_scale: Tensor) -> Tensor:
    """All groups in one kernel."""
    from minquant.kernels.triton_grouped import grouped_product

    zero_point = zx if isinstance(zx, Tensor) else torch.full((), zx, dtype=torch.int32, device=qx.device)
    if qx.dtype == torch.uint8:
        qx, zero_point = cuda.lowered(qx), zero_point - 128
    bits = weight.spec.bits
    return grouped_product(qx, zero_point, weight.integers, bits, weight.group_sums(), x_scale, weight.scale)
