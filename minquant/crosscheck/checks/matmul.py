"""The exact integer product, in every backend."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from minquant.kernels import int8_matmul

from ..suite import Check, Inputs

__all__ = ["CHECKS"]


def _operand(rng: np.random.Generator, dtype: str, shape: tuple[int, int], extreme: bool) -> np.ndarray:
    """Any integers, or only the two ends of the type, which make the largest sums."""
    info = np.iinfo(dtype)
    ends = np.array([info.min, info.max], dtype)
    return rng.choice(ends, shape) if extreme else rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def _draw(dtype: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Sizes of no particular multiple, none at all, and large ones; any strides."""
    for i in range(20 if quick else 100):
        largest = 300 if i % 10 == 9 else 40
        m, k, n = (int(size) for size in rng.integers(0 if i % 7 == 0 else 1, largest, 3))
        a = _operand(rng, dtype, (m, k), extreme=i % 3 == 0)
        yield {"a": a, "b": _operand(rng, "int8", (n, k), extreme=i % 3 == 0).T}


def _ours(backend: str, inputs: Inputs) -> np.ndarray:
    return int8_matmul(inputs["a"], inputs["b"], backend)


def _int_mm(inputs: Inputs) -> np.ndarray:
    import torch

    # In torch 2.13 a (1, N) operand with strides (1, 1), a transposed column, gives wrong numbers; a copy does not.
    b = torch.from_numpy(inputs["b"]).clone(memory_format=torch.contiguous_format)
    return torch._int_mm(torch.from_numpy(inputs["a"]), b).numpy()


def _wide(inputs: Inputs) -> np.ndarray:
    import torch

    a, b = (torch.from_numpy(inputs[name].astype(np.int32)) for name in ("a", "b"))
    return (a @ b).numpy()


CHECKS = tuple(
    Check(f"int8_matmul/{dtype} {backend}", oracle, partial(_draw, dtype), partial(_ours, backend), theirs)
    for dtype, oracle, theirs in (("int8", "torch._int_mm", _int_mm), ("uint8", "torch.matmul in int32", _wide))
    for backend in ("numpy", "numba")
)
