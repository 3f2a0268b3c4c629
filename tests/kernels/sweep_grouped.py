"""Weights in groups through their kernel, with every array flush against a guard page (see `tests.kernels.sweep`).

    python -m tests.kernels.sweep_grouped [--seconds N] [--emulate ISA]    # every two sizes 0…40, the others at random

Compared bit for bit with the same arithmetic in NumPy, whose integers are int64.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from minquant.kernels.grouped import grouped_linear
from minquant.kernels.packed import GroupedWeight
from minquant.quant.dialects.reference import scaled
from tests.kernels.sweep import Guarded, main, operand

LARGEST = 40


def exact(qx, x_scale, zx, weight: GroupedWeight, bias) -> np.ndarray:
    """Group by group, in ascending order."""
    y = np.zeros((len(qx), len(weight.scale)), np.float32)
    x, qw = qx.astype(np.int64) - zx, weight.integers().astype(np.int64)
    for g in range(weight.scale.shape[1]):
        k = slice(g * weight.size, (g + 1) * weight.size)
        acc = x[:, k] @ (qw[:, k] - weight.zero_point[:, g, None]).T
        y = y + acc.astype(np.int32).astype(np.float32) * (x_scale * weight.scale[:, g])
    return y + bias


def product(rng: np.random.Generator, shape, bits: int, guarded: Guarded):
    """Operands of `grouped_linear`: random integers to the ends of their types, in any layout."""
    M, N, groups, size = shape
    signed, affine, per_token = (bool(choice) for choice in rng.integers(0, 2, 3))
    lowest = -(1 << (bits - 1)) if signed else 0
    qw = operand(guarded, rng, "int8" if signed else "uint8", (N, groups * size))
    np.clip(qw, lowest, lowest + (1 << bits) - 1, out=qw)
    zero_point = rng.integers(lowest, lowest + (1 << bits), (N, groups) if affine else (1, 1)).astype(np.int32)
    scale = guarded.array((N, groups), np.float32)
    scale[...] = rng.uniform(0.01, 1, (N, groups))
    zeros = np.broadcast_to(zero_point, (N, groups))
    weight = GroupedWeight(qw, lambda: qw, scale, zeros, size, bits, signed)
    dtype = str(rng.choice(["int8", "uint8"]))
    info = np.iinfo(dtype)
    of_x = (M, 1) if per_token else ()
    zx = rng.integers(info.min, info.max, of_x, np.int32, endpoint=True)
    x_scale = rng.uniform(0.01, 1, of_x).astype(np.float32)
    qx = operand(guarded, rng, dtype, (M, groups * size))
    return qx, x_scale, zx, weight, rng.standard_normal(N).astype(np.float32)


def shapes(rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """All of 0…40 in each two of rows, columns, groups and their size (from 1), the others at random; for ever."""
    while True:
        for i, j in itertools.product(range(LARGEST + 1), repeat=2):
            for a, b in itertools.combinations(range(4), 2):
                shape = [int(size) for size in rng.integers(0, (LARGEST + 1, LARGEST + 1, 6, LARGEST + 1))]
                shape[a], shape[b] = i, j
                yield *shape[:3], max(1, shape[3])


def sweep(seconds: float, bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8), seed: int = 0) -> int:
    """How many products were compared; raises AssertionError where one is wrong."""
    rng, guarded, until = np.random.default_rng(seed), Guarded(), time.monotonic() + seconds
    done = 0
    for shape in shapes(rng):
        if time.monotonic() > until:
            break
        guarded.flush_with_the_end = bool(done % 4)
        arguments = product(rng, shape, bits[done % len(bits)], guarded)
        expected = exact(*arguments)
        before = time.monotonic()
        grouped_linear(*arguments, scaled)  # compiles what is not yet, which does not count
        until += time.monotonic() - before
        with guarded.allocating():
            got = grouped_linear(*arguments, scaled)
        assert got.shape == expected.shape and np.array_equal(got, expected), (shape, replace(arguments[3]))
        done += 1
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    main(lambda options: sweep(options.seconds, tuple(options.bits)), parser)
