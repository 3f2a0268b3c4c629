"""A right operand in the order in which the processor reads it. Importing this needs no compiler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minquant.kernels.isa import Isa

__all__ = ["Packed"]


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
