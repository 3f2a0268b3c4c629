"""The integers that everybody multiplies, and the right answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from minquant.bench.operation import Shape

__all__ = ["SAFE", "Operands", "ends", "operands"]

SAFE = 64
"""Largest |b|. Processors without VNNI add products in pairs in int16, and many libraries let that saturate; 2·255·64
does not, so that all of them are right on every processor, and their time does not depend on the values."""


@dataclass(frozen=True)
class Operands:
    """``(M, K)`` int8 or uint8 and ``(K, N)`` int8."""

    a: np.ndarray
    b: np.ndarray

    def left(self, dtype: str) -> Operands:
        """With a left operand of that dtype, of the same bytes."""
        return self if self.a.dtype == dtype else self._other

    @cached_property
    def _other(self) -> Operands:
        return Operands(self.a.view("int8" if self.a.dtype == "uint8" else "uint8"), self.b)

    @cached_property
    def product(self) -> np.ndarray:
        """``a @ b`` in float64, which is exact: no sum reaches 2⁵³. The reference's int32, at the speed of a BLAS."""
        return self.a.astype(np.float64) @ self.b.astype(np.float64)

    @cached_property
    def columns(self) -> np.ndarray:
        """``max|a| · Σ_k |b[k, n]|``, which bounds every sum of column n. float64 (N,)."""
        return np.abs(self.a.astype(np.float64)).max() * np.abs(self.b.astype(np.float64)).sum(axis=0)


@lru_cache(maxsize=1)
def operands(shape: Shape) -> Operands:
    """Seeded random operands, the left one uint8.

    One is 255, so that a layer which chooses its step from the range 0 … 255 chooses 1.
    """
    M, K, N = shape
    rng = np.random.default_rng(shape)
    a = rng.integers(0, 256, (M, K), np.uint8)
    a[0, 0] = 255
    return Operands(a, rng.integers(-SAFE, SAFE, (K, N), np.int8, endpoint=True))


def ends(left: str) -> Operands:
    """The largest values of both dtypes side by side, where sums of pairs in int16 would saturate."""
    a = np.full((16, 64), np.iinfo(left).max, left)
    return Operands(a, np.full((64, 32), 127, np.int8))
