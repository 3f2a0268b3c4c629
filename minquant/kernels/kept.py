"""Weights that cannot change are packed once, and the packing is kept for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from minquant.kernels.isa import Isa
from minquant.kernels.packed import Packed

__all__ = ["kept"]

_KEPT: dict[int, dict[tuple[Any, ...], Packed]] = {}
"""By the id of the array that owns the memory, and by the view of it."""


def kept(b: np.ndarray, isa: Isa, pack: Callable[[np.ndarray, Isa], Packed]) -> Packed:
    """``pack(b, isa)``, or what it returned the last time if b is a read-only view of read-only memory.

    Who makes such an array writeable again and changes it must not multiply with it.
    """
    owner = _owner(b)
    if owner is None:
        return pack(b, isa)
    view = (b.__array_interface__["data"][0], b.shape, b.strides, isa.name)
    table = _KEPT.get(id(owner))
    if table is None:
        table = _KEPT[id(owner)] = {}
        weakref.finalize(owner, _KEPT.pop, id(owner), None)
    if view not in table:
        table[view] = pack(b, isa)
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
