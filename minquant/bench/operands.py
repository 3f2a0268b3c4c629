"""The integers that everybody multiplies, and the right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from minquant.bench.shapes import Shape

__all__ = ["Job", "Operands", "WrongResultError", "checked", "ends", "operands"]

SAFE = 64
"""Largest |b|. Processors without VNNI add products in pairs in int16, and many libraries let that saturate; 2·255·64
does not, so that all of them are right on every processor, and their time does not depend on the values."""


class WrongResultError(ValueError):
    """What was to be timed does not compute the product."""


@dataclass(frozen=True)
class Operands:
    """``(M, K)`` int8 or uint8 and ``(K, N)`` int8."""

    a: np.ndarray
    b: np.ndarray

    @cached_property
    def product(self) -> np.ndarray:
        """``a @ b`` in float64, which is exact: no sum reaches 2⁵³. The reference's int32, at the speed of a BLAS."""
        return self.a.astype(np.float64) @ self.b.astype(np.float64)

    @cached_property
    def columns(self) -> np.ndarray:
        """``max|a| · Σ_k |b[k, n]|``, which bounds every sum of column n. float64 (N,)."""
        return np.abs(self.a.astype(np.float64)).max() * np.abs(self.b.astype(np.float64)).sum(axis=0)


@dataclass(frozen=True)
class Job:
    """One contestant on one case.

    Args:
        call: computes the product, and is what is timed.
        values: NumPy's array of what `call` returns.
        expected: what these should be.
        bound: how far from it they may be; shapes broadcast. 0: equal.
    """

    call: Callable[[], object]
    values: Callable[[object], np.ndarray]
    expected: np.ndarray
    bound: np.ndarray | float = 0.0


@lru_cache(maxsize=2)
def operands(shape: Shape, left: str) -> Operands:
    """Seeded random operands; of a uint8 and an int8 left operand the bytes are the same.

    One is 255, so that a layer which chooses its step from the range 0 … 255 chooses 1.
    """
    M, K, N = shape
    rng = np.random.default_rng([M, K, N])
    a = rng.integers(0, 256, (M, K), np.uint8)
    a[0, 0] = 255
    return Operands(a.view(left), rng.integers(-SAFE, SAFE, (K, N), np.int8, endpoint=True))


def ends(left: str) -> Operands:
    """The largest values of both dtypes side by side, where sums of pairs in int16 would saturate."""
    a = np.full((16, 64), np.iinfo(left).max, left)
    return Operands(a, np.full((64, 32), 127, np.int8))


def checked(name: str, job: Job) -> None:
    """Calls once, which is the warm-up too.

    Raises:
        WrongResultError: the values are not what they should be.
    """
    values = job.values(job.call())
    if values.shape != job.expected.shape:
        raise WrongResultError(f"{name}: the result must be of shape {job.expected.shape}, got {values.shape}")
    wrong = ~(np.abs(values.astype(np.float64) - job.expected) <= job.bound)
    if wrong.any():
        raise WrongResultError(
            f"{name}: {np.count_nonzero(wrong):,} of {wrong.size:,} values are wrong; none was timed"
        )
