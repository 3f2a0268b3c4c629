"""torch's float32 sums: the order of additions that its vector code has, so that the last bit agrees.

The order follows torch's loops on one thread (a sum of more than 32,768 values may be split among several) over a
contiguous tensor. Source: aten/src/ATen/native/cpu/SumKernel.cpp, torch 2.13.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from minquant.kernels.choice import compiled

__all__ = ["cascade_sum", "channel_sum"]

LANES, INTERLEAVE, LEVELS = 8, 4, 4


def cascade_sum(x: np.ndarray) -> np.ndarray:
    """Float32 sum over the first axis, as of values that lie side by side in memory.

    The values are read as rows of 4 vectors of 8 lanes, ``(n, …) -> (n / 32, 4, 8, …)``. The rows are summed
    by `cascade`, then the 4 vectors (after those that filled no row), then the 8 lanes (after the values that
    filled no vector). Source: torch.sum on a contiguous float32 tensor, torch 2.13.
    """
    kernels = compiled("learned_step", x.size)
    if kernels and x.ndim == 1 and x.dtype == np.float32:
        return kernels.channel_sums(np.ascontiguousarray(x).reshape(1, 1, -1))[0]
    lanes = LANES if len(x) >= LANES else 1
    vectors = x[: len(x) // lanes * lanes].reshape(-1, lanes, *x.shape[1:])
    in_vectors = interleaved(vectors)
    return running_sum([np.zeros_like(in_vectors[0]), *x[lanes * len(vectors) :], *in_vectors])


def channel_sum(x: np.ndarray, axis: int) -> np.ndarray:
    """Float32 sum over all axes but one, (C,).

    Channels whose values lie side by side are each a `cascade_sum` for every index before the channel axis, added one
    after the other. Where the channel axis is the last one, whole vectors of channels are summed at once (see
    `column_sum`). Source: torch.sum(x, dim=all but axis), torch 2.13.
    """
    axis, channels = axis % x.ndim, x.shape[axis]
    if not x.size:
        return np.zeros(channels, x.dtype)
    blocks = x.reshape(math.prod(x.shape[:axis]), channels, math.prod(x.shape[axis + 1 :]))  # (before, C, after)
    if channels == 1:
        return np.atleast_1d(cascade_sum(blocks.reshape(-1)))
    if blocks.shape[2] == 1:
        return column_sum(blocks[:, :, 0])
    kernels = compiled("learned_step", x.size)
    if kernels and x.dtype == np.float32:
        return kernels.channel_sums(np.ascontiguousarray(blocks))
    return running_sum([np.zeros(channels, x.dtype), *cascade_sum(np.moveaxis(blocks, 2, 0))])


def column_sum(x: np.ndarray) -> np.ndarray:
    """Sum of each column of ``(n, C)``: four vectors of columns at a time, and those left over in four strands."""
    at_once = INTERLEAVE * (LANES if x.shape[1] >= LANES else 1)
    whole = x.shape[1] // at_once * at_once
    return np.concatenate([cascade(x[:, :whole]), interleaved(x[:, whole:])])


def interleaved(x: np.ndarray) -> np.ndarray:
    """Sum over the first axis in four strands, which join after the values that filled no row of four."""
    n = len(x) // INTERLEAVE
    rows = x[: INTERLEAVE * n].reshape(n, INTERLEAVE, *x.shape[1:])
    first, *others = cascade(rows)
    return running_sum([first, *x[INTERLEAVE * n :], *others])


def cascade(rows: np.ndarray) -> np.ndarray:
    """Sum over the first axis by blocks of 16 rows, then 16 blocks, and so on: rounding errors stay small.

    Rows, blocks … that fill no block of the next level are summed by themselves and join at the end.
    """
    step = 1 << max(4, (len(rows) - 1).bit_length() // LEVELS)
    zero = np.zeros_like(rows, shape=rows.shape[1:])
    sums = []
    for _ in range(LEVELS - 1):
        blocks = len(rows) // step
        sums.append(running_sum([zero, *rows[blocks * step :]]))
        in_blocks = rows[: blocks * step].reshape(blocks, step, *zero.shape)
        rows = running_sum(list(in_blocks.swapaxes(0, 1)))
    return running_sum([*sums, running_sum([zero, *rows])])


def running_sum(terms: list[np.ndarray]) -> np.ndarray:
    """``((t₀ + t₁) + t₂) + …``, each addition rounded by itself."""
    return reduce(np.add, terms)
