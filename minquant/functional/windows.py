"""Windows: what a kernel sees as it slides over an array, for convolution and pooling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Sizes: TypeAlias = int | Sequence[int]
"""One integer for every axis, or one each."""


def per_axis(value: Sizes, axes: int, least: int, what: str) -> tuple[int, ...]:
    """`value` as one integer an axis.

    Raises:
        TypeError: not integers.
        ValueError: another number of them; one below `least`.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    if not all(isinstance(n, int | np.integer) for n in sizes):
        raise TypeError(f"{what} must be an integer or {axes} of them, got {value!r}")
    if len(sizes) != axes or min(sizes) < least:
        raise ValueError(f"{what} must be {least} or more, one integer or {axes} of them, got {value!r}")
    return tuple(int(n) for n in sizes)


def check_axes(shape: Sequence[int], axes: int, name: str) -> None:
    """ValueError unless the shape is (N, C, *axes) or (C, *axes)."""
    if len(shape) not in (axes + 1, axes + 2):
        sizes = ", ".join("HW" if axes == 2 else "L")
        raise ValueError(f"{name}: input must be (N, C, {sizes}) or (C, {sizes}), got shape {tuple(shape)}")


def check_fits(size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], name: str) -> None:
    """ValueError if the kernel spans more than the padded input."""
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(s > n for s, n in zip(span, size, strict=True)):
        raise ValueError(
            f"{name}: the kernel spans {span} elements, the padded input has only {tuple(size)}: "
            "pad more, or take a smaller kernel or dilation"
        )


def pad(x: np.ndarray, padding: Sequence[tuple[int, int]], value: float = 0) -> np.ndarray:
    """X with (before, after) more elements of `value` on each of its last axes."""
    if not any(map(any, padding)):
        return x
    axes = len(padding)
    sizes = [n + sum(p) for n, p in zip(x.shape[-axes:], padding, strict=True)]
    out = np.full((*x.shape[:-axes], *sizes), value, x.dtype)
    unpad(out, padding)[...] = x
    return out


def unpad(x: np.ndarray, padding: Sequence[tuple[int, int]]) -> np.ndarray:
    """What `pad` was given."""
    sizes = x.shape[-len(padding) :]
    inner: Any = (..., *(slice(before, n - after) for (before, after), n in zip(padding, sizes, strict=True)))
    return x[inner]


def windows(x: np.ndarray, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """All windows of a padded array, as a view: (…, H, W) -> (…, Ho, Wo, kh, kw)."""
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    every = sliding_window_view(x, span, axis=tuple(range(-len(kernel), 0)))  # (…, H', W', span, span)
    taken: Any = (..., *(slice(None, None, step) for step in (*stride, *dilation)))
    return every[taken]


def add_windows(
    seen: np.ndarray, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> np.ndarray:
    """The transpose of `windows`: each element gets the sum of all that saw it, (…, Ho, Wo, kh, kw) -> (…, H, W)."""
    axes = len(kernel)
    counts = seen.shape[-2 * axes : -axes]
    out = np.zeros((*seen.shape[: -2 * axes], *size), seen.dtype)
    for tap in itertools.product(*map(range, kernel)):
        taps: Any = (..., *tap)
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        places: Any = (..., *(slice(at, at + n * s, s) for at, n, s in zip(starts, counts, stride, strict=True)))
        out[places] += seen[taps]  # no element twice, since every stride is 1 or more
    return out


@lru_cache(maxsize=1024)
def offsets(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Where in a padded image (H, W) the windows start, (Ho · Wo,), and where in a window its taps lie, (kh · kw,).

    As places in memory, for `minquant.kernels.windows`, which only reads them: they are kept.
    """
    return _in_memory(size, places(size, kernel, stride, dilation), stride), _in_memory(size, kernel, dilation)


def places(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """How many windows there are along each axis of a padded array: (H, W) -> (Ho, Wo)."""
    each = zip(size, kernel, stride, dilation, strict=True)
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in each)


def _in_memory(size: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    at = np.zeros(1, np.intp)
    for n, count, step in zip(size, counts, steps, strict=True):
        at = (at[:, None] * n + np.arange(count) * step).reshape(-1)
    return at
