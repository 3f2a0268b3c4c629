"""Axes by number, as arguments name them: from the front, or negative from the back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minquant.tensor import Dims


def axis_of(dim: int, shape: Sequence[int]) -> int:
    """The axis, counted from the front; ValueError if the shape has no such axis."""
    n = len(shape)
    if not -n <= dim < n:
        raise ValueError(f"dim {dim} is outside shape {tuple(shape)}" + f": expected {-n} to {n - 1}" * bool(n))
    return dim % n


def axes_of(dim: Dims, shape: Sequence[int]) -> tuple[int, ...]:
    """One axis, several, or all (None), from the front; ValueError if one is missing or named twice."""
    if dim is None:
        return tuple(range(len(shape)))
    axes = tuple(axis_of(d, shape) for d in ((dim,) if isinstance(dim, int) else dim))
    if len(set(axes)) < len(axes):
        raise ValueError(f"dim {dim} names an axis of shape {tuple(shape)} twice")
    return axes
