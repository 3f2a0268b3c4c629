"""Convolution's sums where products are added in pairs in int16: which two products make a pair decides the result."""

from __future__ import annotations

from functools import partial

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels import int8_matmul
from minquant.kernels.saturating import saturating_matmul

from ..integer import accumulate

__all__ = ["taps_in_pairs", "windows_in_pairs"]

saturating_accumulate = partial(accumulate, matmul=saturating_matmul)


def windows_in_pairs(qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, zw: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The order of fbgemm: neighbours in the window as it lies in memory, channels last, the padding's zx included.

    Args:
        qx: (N, C, *size) uint8.
        zx: zero point of x: ``()``.
        qw: (M, C/groups, *kernel) int8.
        zw: zero point of w: ``()``, or ``(M,)``.
        geometry: how the kernel slides.

    Returns:
        (R, M) int32.

    Source: PackAWithIm2Col, the depthwise and the groupwise kernels of FBGEMM, as torch 2.13 has them: all pair alike.
    """
    columns = _channels_last(geometry.columns(qx, int(zx)), qw.shape[1])  # (G, R, K)
    filters = _channels_last(geometry.filters(qw), qw.shape[1])  # (G, M/G, K)
    per_group = np.broadcast_to(zw, len(qw)).reshape(geometry.groups, -1)
    parts = [saturating_accumulate(c, zx, f, z) for c, f, z in zip(columns, filters, per_group, strict=True)]
    return np.concatenate(parts, axis=1)


def taps_in_pairs(qx: np.ndarray, zx: np.ndarray, qw: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The order of oneDNN: neighbouring channels within one tap, and no product where the tap lies in the padding.

    Args and returns as for `windows_in_pairs`, with a weight whose zero point is 0.

    Source: jit_uni_x8s8s32x_convolution (AVX2) of oneDNN 3.12.
    """
    rows = geometry.columns(qx), geometry.columns(np.ones_like(qx)), geometry.filters(qw)
    columns, inside, filters = (_with_even_channels(_channels_last(a, qw.shape[1]), qw.shape[1]) for a in rows)
    products = zip(columns, inside, filters, strict=True)
    return np.concatenate([saturating_matmul(c, f.T) - zx * int8_matmul(i, f.T) for c, i, f in products], axis=1)


def _channels_last(rows: np.ndarray, channels: int) -> np.ndarray:
    """(G, R, K) with K = (channel, tap) -> K = (tap, channel)."""
    by_channel = rows.reshape(*rows.shape[:2], channels, rows.shape[2] // channels)
    return by_channel.swapaxes(2, 3).reshape(rows.shape)


def _with_even_channels(rows: np.ndarray, channels: int) -> np.ndarray:
    """(G, R, K) with K = (tap, channel): an odd channel gets a neighbour of zeros."""
    taps = rows.shape[2] // channels
    padded = np.pad(rows.reshape(*rows.shape[:2], taps, channels), ((0, 0),) * 3 + ((0, channels % 2),))
    return padded.reshape(*rows.shape[:2], taps * padded.shape[-1])
