"""Convolution of images on integers: a block of windows is gathered, multiplied and finished while in the cache.

    for each block of places             so few that their windows fit the second-level cache
        the window of each place, as a row (im2col), in the dtype and order of the dot-product instruction
        the integer product with the filters, as for a Linear
        the epilogue                     ``fused.py``

Images lie channels last, so that a window is a few runs of neighbours in memory. A convolution with a filter of its
own for each channel (depthwise) has too few products in each sum for the instruction: plain loops over the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from minquant.functional.geometry import Geometry
from minquant.kernels import cpu, fused
from minquant.kernels.epilogue import Epilogue
from minquant.kernels.isa import Isa
from minquant.kernels.kept import kept
from minquant.kernels.packed import Packed
from minquant.kernels.packing import pack, room
from minquant.kernels.threads import in_parts

__all__ = ["product_conv"]

WINDOWS, SUMS = 400_000, 65_536
"""Bytes of the windows of a block at most, and the number of its sums."""

FEWEST_PLACES = 24


@dataclass(frozen=True)
class Images:
    """Padded images, channels last, and where windows lie in them.

    Attributes:
        values: (N, H, W·C).
        places: (Ho, Wo).
        steps: rows, and elements of a row, from one place to the next.
        rows: rows of a window, and rows from one of its rows to the next.
        runs: runs of neighbours in a row of the window, and elements from one to the next.
        length: elements of a run.
    """

    values: np.ndarray
    places: tuple[int, int]
    steps: tuple[int, int]
    rows: tuple[int, int]
    runs: tuple[int, int]
    length: int

    @property
    def count(self) -> int:
        """How many places there are in all images."""
        return len(self.values) * self.places[0] * self.places[1]


def product_conv(
    qx: np.ndarray, zero_point: int, qw: np.ndarray, geometry: Geometry, isa: Isa, epilogue: Epilogue
) -> np.ndarray:
    """``epilogue(Σ (qx - zero_point) · qw)`` over each window; the padding holds the zero point.

    Args:
        qx: (N, C, *size) int8 or uint8, one spatial axis or two.
        zero_point: of qx.
        qw: (M, C/groups, *kernel) int8, whose zero point is 0.
        geometry: how the kernel slides.
        isa: the instruction.
        epilogue: what becomes of the sums.

    Returns:
        (R, M), of the epilogue's dtype: a row for each place.
    """
    images, depthwise = images_of(qx, zero_point, geometry), is_depthwise(qw, geometry)
    out = np.empty((images.count, len(qw)), fused.dtype_of(epilogue))
    sums_of = (_depthwise if depthwise else _multiplied)(images, qx.shape[1], zero_point, qw, geometry, isa)
    row_bytes = 1 if depthwise else qw[0].size * isa.operand_dtype.itemsize
    most = max(FEWEST_PLACES, min(WINDOWS // max(1, row_bytes), SUMS // max(1, len(qw))))
    ends = fused.blocks(len(out), most, isa.rows)

    def work(first: int, last: int) -> None:
        for i in range(first, last):
            fused.finish_rows(sums_of(ends[i], ends[i + 1]), epilogue, 0, out[ends[i] : ends[i + 1]])

    in_parts(work, len(ends) - 1, operations=2 * out.size * qw[0].size)
    return out


def images_of(qx: np.ndarray, zero_point: int, geometry: Geometry) -> Images:
    """The images channels last, padded; one spatial axis becomes the second of two."""
    if qx.ndim == 3:
        return images_of(qx[:, :, None], zero_point, _with_a_first_axis(geometry))
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    (top, _), (left, _) = geometry.padding
    N, C, H, W = qx.shape
    Hp, Wp = geometry.padded((H, W))
    if (Hp, Wp) == (H, W):
        values = np.ascontiguousarray(np.moveaxis(qx, 1, -1))
    else:
        values = np.full((N, Hp, Wp, C), zero_point, qx.dtype)
        values[:, top : top + H, left : left + W] = np.moveaxis(qx, 1, -1)
    joined = dw == 1 and geometry.groups == 1  # the runs of a row touch each other
    runs, length = ((1, 0), kw * C) if joined else ((kw, dw * C), C // geometry.groups)
    Ho, Wo = geometry.places((H, W))
    return Images(values.reshape(N, Hp, Wp * C), (Ho, Wo), (sh, sw * C), (kh, dh), runs, length)


def _with_a_first_axis(geometry: Geometry) -> Geometry:
    return Geometry(
        (1, *geometry.kernel),
        (1, *geometry.stride),
        ((0, 0), *geometry.padding),
        (1, *geometry.dilation),
        geometry.groups,
    )


# ---- with the dot-product instruction --------------------------------------------------------------------------------


def _multiplied(
    images: Images, channels: int, zero_point: int, qw: np.ndarray, geometry: Geometry, isa: Isa
) -> Callable[[int, int], np.ndarray]:
    """What computes the sums of some places, (places, M)."""
    K, per_group = qw[0].size, channels // geometry.groups
    filters = kept(qw, ("filters", geometry.groups, isa.name), lambda: _packed_filters(qw, geometry.groups, isa))
    shift = isa.shift(images.values.dtype)

    def sums_of(first: int, last: int) -> np.ndarray:
        windows = room(last - first + isa.rows, K, isa)
        groups = []
        for group, packed in enumerate(filters):
            _gather(images, group * per_group, first, last, shift, windows)
            groups.append(cpu.room_for_sums(last - first, packed))
            cpu.multiply(windows, packed, shift + zero_point, last - first, groups[-1])
        if len(groups) == 1:
            return groups[0]
        return np.concatenate([sums[: last - first, : packed.shape[1]] for sums in groups], axis=1)

    return sums_of


def _packed_filters(qw: np.ndarray, groups: int, isa: Isa) -> list[Packed]:
    """For each group (K, M/G), with K in the order in which windows are gathered: channels last."""
    rows = np.moveaxis(qw, 1, -1).reshape(groups, len(qw) // groups, -1)
    return [pack(filters.T, isa) for filters in rows]


def _gather(images: Images, channel: int, first: int, last: int, shift: int, out: np.ndarray) -> None:
    """The windows of places first … last, shifted, as rows of `out`; from that channel on."""
    _gather_rows(
        images.values,
        images.places,
        images.steps,
        images.rows,
        images.runs,
        images.length,
        channel,
        (first, last),
        shift,
        out,
    )


@njit(cache=True, nogil=True)
def _gather_rows(
    values: np.ndarray,
    places: tuple[int, int],
    steps: tuple[int, int],
    rows: tuple[int, int],
    runs: tuple[int, int],
    length: int,
    channel: int,
    some: tuple[int, int],
    shift: int,
    out: np.ndarray,
) -> None:
    for place in range(some[0], some[1]):
        image, rest = divmod(place, places[0] * places[1])
        y, x = divmod(rest, places[1])
        row, k = out[place - some[0]], 0
        for i in range(rows[0]):
            line = values[image, y * steps[0] + i * rows[1]]
            for j in range(runs[0]):
                start = x * steps[1] + j * runs[1] + channel
                run, to = line[start : start + length], row[k : k + length]
                for c in range(length):
                    to[c] = np.int16(run[c]) + np.int16(shift)
                k += length


# ---- depthwise -------------------------------------------------------------------------------------------------------


def is_depthwise(qw: np.ndarray, geometry: Geometry) -> bool:
    """Whether each channel has one filter, which sees nothing else."""
    return qw.shape[1] == 1 and len(qw) == geometry.groups > 1


def _depthwise(
    images: Images, channels: int, zero_point: int, qw: np.ndarray, geometry: Geometry, isa: Isa
) -> Callable[[int, int], np.ndarray]:
    """What computes the sums of some places, (places, M)."""
    taps = np.ascontiguousarray(qw.reshape(channels, -1).T, np.int16)  # (taps, C)
    start = -np.int32(zero_point) * taps.sum(axis=0, dtype=np.int32)

    def sums_of(first: int, last: int) -> np.ndarray:
        sums = np.empty((last - first, channels), np.int32)
        _add_taps(
            images.values, images.places, images.steps, images.rows, images.runs, (first, last), taps, start, sums
        )
        return sums

    return sums_of


@njit(cache=True, nogil=True)
def _add_taps(
    values: np.ndarray,
    places: tuple[int, int],
    steps: tuple[int, int],
    rows: tuple[int, int],
    runs: tuple[int, int],
    some: tuple[int, int],
    taps: np.ndarray,
    start: np.ndarray,
    sums: np.ndarray,
) -> None:
    channels = taps.shape[1]
    for place in range(some[0], some[1]):
        image, rest = divmod(place, places[0] * places[1])
        y, x = divmod(rest, places[1])
        total = sums[place - some[0]]
        total[:] = start
        for i in range(rows[0]):
            line = values[image, y * steps[0] + i * rows[1]]
            for j in range(runs[0]):
                first = x * steps[1] + j * runs[1]
                seen, tap = line[first : first + channels], taps[i * runs[0] + j]
                for c in range(channels):
                    total[c] += np.int32(seen[c]) * np.int32(tap[c])
