"""Right operands as kernels take them. Importing this needs no compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minquant.kernels.isa import Isa

__all__ = ["GroupedWeight", "Packed"]


@dataclass(frozen=True)
class Packed:
    """A right operand (K, N), packed once and used often.

    Attributes:
        isa: the instruction that it was packed for.
        shape: (K, N).
        panels: int8 (P, K / group, columns, group).
        sums: ``Σ_k b[k, n]``, int32 (P · columns,).
    """

    isa: Isa
    shape: tuple[int, int]
    panels: np.ndarray
    sums: np.ndarray

    @cached_property
    def zeros(self) -> np.ndarray:
        """What sums begin at where no zero point is taken out."""
        return np.zeros_like(self.sums)


@dataclass(frozen=True)
class GroupedWeight:
    """Integers (N, K), with a scale and a zero point for each group of K in every row.

    Attributes:
        storage: the array that they are made of: what kernels keep of a read-only one lives as long as it.
        integers: makes them, (N, K) int8 or uint8; asked for where nothing is kept yet.
        scale: float32 (N, G).
        zero_point: int32 (N, G).
        size: of a group, K / G.
        bits: 2 to 8.
        signed: whether they begin at ``-2^(bits - 1)``; otherwise at 0.
    """

    storage: np.ndarray
    integers: Callable[[], np.ndarray]
    scale: np.ndarray
    zero_point: np.ndarray
    size: int
    bits: int
    signed: bool

    @property
    def stored_bits(self) -> int:
        """Of a code in the packed weight: 2, 4 or 8."""
        return 2 if self.bits == 2 else 4 if self.bits <= 4 else 8

    @property
    def shift(self) -> int:
        """``code - integer``. Codes begin at 0, those of 8 bits at -128."""
        return (1 << (self.bits - 1) if self.signed else 0) - (128 if self.stored_bits == 8 else 0)
