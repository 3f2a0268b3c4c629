"""Weights that cannot change are packed once, and the packing is kept for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

__all__ = ["kept"]

T = TypeVar("T")

_KEPT: dict[int, dict[tuple[Any, ...], Any]] = {}
"""By the id of the array that owns the memory; then by the view of it, and how it was packed."""


def kept(b: np.ndarray, how: Hashable, pack: Callable[[], T]) -> T:
    """``pack()``, or what it returned the last time for this b and `how`, if b is a read-only view of read-only memory.

    Who makes such an array writeable again and changes it must not multiply with it.
    """
    owner = _owner(b)
    if owner is None:
        return pack()
    whole = b.flags.forc and b.nbytes == owner.nbytes
    place = 0 if whole else b.__array_interface__["data"][0]
    view = (place, b.shape, b.strides, how)
    table = _KEPT.get(id(owner))
    if table is None:
        table = _KEPT[id(owner)] = {}
        weakref.finalize(owner, _KEPT.pop, id(owner), None)
    if view not in table:
        table[view] = pack()
    return table[view]


def _owner(b: np.ndarray) -> np.ndarray | None:
    """The array whose memory b shows; None if it could change under our feet."""
    while not b.flags.writeable:
        if b.base is None:
            return b
        if not isinstance(b.base, np.ndarray):
            return None
        b = b.base
    return None
