"""The exact integer product, in every backend."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from minquant.kernels import int8_matmul

from ..suite import Case, Check

__all__ = ["CHECKS"]


def _operand(rng: np.random.Generator, dtype: str, shape: tuple[int, int], extreme: bool) -> np.ndarray:
    """Any integers, or only the two ends of the type, which make the largest sums."""
    info = np.iinfo(dtype)
    ends = np.array([info.min, info.max], dtype)
    return rng.choice(ends, shape) if extreme else rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def _matmul(dtype: str, backend: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Sizes of no particular multiple, none at all, and large ones; any strides."""
    theirs = _int_mm if dtype == "int8" else _wide
    for i in range(20 if quick else 100):
        largest = 300 if i % 10 == 0 else 40
        m, k, n = (int(size) for size in rng.integers(0 if i % 7 == 0 else 1, largest, 3))
        a = _operand(rng, dtype, (m, k), extreme=i % 3 == 0)
        b = _operand(rng, "int8", (n, k), extreme=i % 3 == 0).T
        yield {"a": a, "b": b}, int8_matmul(a, b, backend), theirs(a, b)


def _int_mm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch

    # In torch 2.13 a (1, N) operand with strides (1, 1), a transposed column, gives wrong numbers; a copy does not.
    copy = torch.from_numpy(b).clone(memory_format=torch.contiguous_format)
    return torch._int_mm(torch.from_numpy(a), copy).numpy()


def _wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch

    return (torch.from_numpy(a.astype(np.int32)) @ torch.from_numpy(b.astype(np.int32))).numpy()


CHECKS = tuple(
    Check(f"int8_matmul/{dtype} {backend}", oracle, partial(_matmul, dtype, backend))
    for dtype, oracle in (("int8", "torch._int_mm"), ("uint8", "torch.matmul in int32"))
    for backend in ("numpy", "numba")
)
