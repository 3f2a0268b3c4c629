"""How the kernel of a convolution slides: which elements each output sees, laid out as rows (im2col)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minquant.functional.windows import Sizes, add_windows, check_fits, offsets, pad, per_axis, places, unpad, windows
from minquant.kernels.choice import compiled

__all__ = ["Geometry", "check_groups"]


@dataclass(frozen=True)
class Geometry:
    """A convolution without its numbers, over one spatial axis or several; the comments show two.

    C channels in, M out, G groups, R = N·Ho·Wo places, and K = C/G · kh · kw, the size of a window in its group.

    Args:
        kernel: (kh, kw).
        stride: elements from one window to the next, for each axis.
        padding: elements (before, after) each axis.
        dilation: elements from one tap of the kernel to the next, for each axis.
        groups: G.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls, name: str, kernel: Sequence[int], stride: Sizes, padding: Sizes | str, dilation: Sizes, groups: int
    ) -> Geometry:
        """From the arguments that torch's convolutions take.

        Raises:
            ValueError: options that do not fit; the message begins with `name`.
        """
        axes = len(kernel)
        strides = per_axis(stride, axes, 1, f"{name}: stride")
        dilations = per_axis(dilation, axes, 1, f"{name}: dilation")
        pads = _padding_of(padding, kernel, strides, dilations, name)
        return cls(tuple(kernel), strides, pads, dilations, groups)

    def check_fits(self, size: Sequence[int], name: str) -> None:
        """ValueError if the kernel spans more than the padded input."""
        check_fits(self.padded(size), self.kernel, self.dilation, name)

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """(H, W) with the padding."""
        return tuple(n + sum(p) for n, p in zip(size, self.padding, strict=True))

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """(H, W) -> (Ho, Wo)."""
        return places(self.padded(size), self.kernel, self.stride, self.dilation)

    def columns(self, x: np.ndarray, fill: int = 0) -> np.ndarray:
        """(N, C, H, W) -> (G, R, K), padded with `fill`."""
        padded = pad(x, self.padding, fill)
        kernels = compiled("windows", x.size)
        if kernels:
            size = math.prod(padded.shape[1:]) // self.groups
            images = np.ascontiguousarray(padded).reshape(len(x), self.groups, size)
            return kernels.columns(images, *self._offsets(padded.shape))
        seen = windows(padded, self.kernel, self.stride, self.dilation)  # (N, C, Ho, Wo, kh, kw)
        seen = np.moveaxis(seen, 1, x.ndim - 1)  # (N, Ho, Wo, C, kh, kw)
        rows = math.prod(seen.shape[: x.ndim - 1])
        size = x.shape[1] * math.prod(self.kernel) // self.groups
        return seen.reshape(rows, self.groups, size).swapaxes(0, 1)

    def filters(self, weight: np.ndarray) -> np.ndarray:
        """(M, C/G, kh, kw) -> (G, M/G, K)."""
        return weight.reshape(self.groups, len(weight) // self.groups, math.prod(weight.shape[1:]))

    def images(self, rows: np.ndarray, x_shape: Sequence[int]) -> np.ndarray:
        """(R, M) -> (N, M, Ho, Wo), the outputs of an input of that shape, C-contiguous."""
        return np.ascontiguousarray(self.channels_last(rows, x_shape))

    def channels_last(self, rows: np.ndarray, x_shape: Sequence[int]) -> np.ndarray:
        """The same, as they lie in `rows`: the channels of a place are neighbours in memory."""
        out = rows.reshape(x_shape[0], *self.places(x_shape[2:]), rows.shape[-1])
        return np.moveaxis(out, -1, 1)

    def scatter(self, columns: np.ndarray, x_shape: Sequence[int]) -> np.ndarray:
        """The transpose of `columns`: (G, R, K) -> (N, C, H, W), each element the sum of what saw it."""
        counts, size = self.places(x_shape[2:]), self.padded(x_shape[2:])
        kernels = compiled("windows", columns.size)
        if kernels and columns.dtype == np.float32:
            shape = (*x_shape[:2], *size)
            starts, taps = self._offsets(shape)
            images = kernels.add_columns(
                np.ascontiguousarray(columns), starts, taps, math.prod(shape[1:]) // self.groups
            )
            return unpad(images.reshape(shape), self.padding)
        seen = columns.swapaxes(0, 1).reshape(x_shape[0], *counts, x_shape[1], *self.kernel)  # (N, Ho, Wo, C, kh, kw)
        seen = np.moveaxis(seen, len(counts) + 1, 1)  # (N, C, Ho, Wo, kh, kw)
        whole = add_windows(seen, size, self.kernel, self.stride, self.dilation)
        return unpad(whole, self.padding)

    @lru_cache(maxsize=1024)  # noqa: B019 (a geometry is a few numbers)
    def _offsets(self, padded: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Places (P,) and taps (K,) in the memory of the channels of one group of a padded (N, C, H, W)."""
        starts, taps = offsets(padded[2:], self.kernel, self.stride, self.dilation)
        channels = np.arange(padded[1] // self.groups) * math.prod(padded[2:])
        return starts, (channels[:, None] + taps).reshape(-1)


def _padding_of(
    padding: Sizes | str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], name: str
) -> tuple[tuple[int, int], ...]:
    """Elements (before, after) each axis."""
    if not isinstance(padding, str):
        return tuple((n, n) for n in per_axis(padding, len(kernel), 0, f"{name}: padding"))
    if padding not in ("valid", "same"):
        raise ValueError(f'{name}: padding must be "valid", "same" or integers, got {padding!r}')
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if max(stride) > 1:
        raise ValueError(f'{name}: padding="same" needs stride 1, got {tuple(stride)}: give the padding as integers')
    missing = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((n // 2, n - n // 2) for n in missing)


def check_groups(name: str, groups: int, **channels: int) -> None:
    """ValueError unless groups divides the channels."""
    if groups < 1 or any(n % groups for n in channels.values()):
        told = " and ".join(f"{what}={n}" for what, n in channels.items())
        raise ValueError(f"{name}: groups={groups} must be 1 or more and divide {told}")
