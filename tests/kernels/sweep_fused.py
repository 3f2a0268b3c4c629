"""Products with their epilogues, of matrices and of images, with every array flush against a guard page.

    python -m tests.kernels.sweep_fused [--seconds N] [--emulate ISA]    # random shapes, layouts and convolutions

Compared bit for bit with the epilogue of the specification's sums.
"""

from __future__ import annotations

import time

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.kernels import conv, fused, pack_weight, reference
from minquant.kernels.isa import chosen
from minquant.quant import QParams, QSpec
from minquant.quant.dialects import get_dialect
from tests.kernels.sweep import Guarded, main, operand

ENGINES = ("reference", "fbgemm", "qnnpack", "onednn", "onnx")
OUTPUT = QParams(np.float32(0.5), np.int32(120), QSpec(signed=False))


def epilogue_of(rng: np.random.Generator, N: int):
    """Some dialect's, to real values or to codes, with one scale or one a channel."""
    dialect, relu = get_dialect(str(rng.choice(ENGINES))), bool(rng.integers(2))
    w_scale = rng.uniform(0.001, 0.01, N).astype(np.float32) if rng.integers(2) else np.asarray(np.float32(0.003))
    bias = rng.standard_normal(N).astype(np.float32)
    if rng.integers(2):
        return dialect.to_real(np.asarray(np.float32(0.02)), w_scale, bias, relu)
    return dialect.to_codes(np.asarray(np.float32(0.02)), w_scale, bias, OUTPUT, relu)


def sums(a: np.ndarray, zero_point: int, b: np.ndarray) -> np.ndarray:
    return reference.matmul(a, b) - np.int32(zero_point) * b.sum(axis=0, dtype=np.int32)


def linear(rng: np.random.Generator, guarded: Guarded, dtype: str) -> None:
    """Few rows and many: with one block and with several."""
    M, K, N = int(rng.choice([rng.integers(0, 20), rng.integers(90, 260)])), *rng.integers(0, 90, 2)
    a, b = operand(guarded, rng, dtype, (M, K)), operand(guarded, rng, "int8", (K, N))
    zero_point, epilogue = int(rng.integers(0, 128)), epilogue_of(rng, N)
    with guarded.allocating():
        got = fused.product(a, zero_point, pack_weight(b), epilogue)
    assert np.array_equal(got, epilogue(sums(a, zero_point, b))), (M, K, N, dtype)


def convolution(rng: np.random.Generator, guarded: Guarded, dtype: str) -> None:
    """One axis or two, any stride, padding, dilation and number of groups, depthwise among them."""
    axes, groups = int(rng.integers(1, 3)), int(rng.choice([1, 1, 2, 5]))
    kernel, stride, dilation, padding = (tuple(map(int, rng.integers(low, 4, axes))) for low in (1, 1, 1, 0))
    size = tuple(int(d * (k - 1) + rng.integers(1, 12)) for k, d in zip(kernel, dilation, strict=True))
    per_group, filters = (
        (1, groups) if rng.integers(3) == 0 else (int(rng.integers(1, 6)), groups * int(rng.integers(1, 9)))
    )
    geometry = Geometry.of("sweep", kernel, stride, padding, dilation, groups)
    N, C = int(rng.integers(0, 4)), groups * per_group
    taps = per_group * int(np.prod(kernel))
    x = operand(guarded, rng, dtype, (N * C, int(np.prod(size)))).reshape(N, C, *size)
    w = operand(guarded, rng, "int8", (filters, taps)).reshape(filters, per_group, *kernel)
    zero_point, epilogue = int(rng.integers(0, 128)), epilogue_of(rng, filters)
    with guarded.allocating():
        got = conv.product_conv(x, zero_point, w, geometry, chosen(), epilogue)
    columns, rows = geometry.columns(x, zero_point), geometry.filters(w)
    parts = [sums(c, zero_point, f.T) for c, f in zip(columns, rows, strict=True)]
    assert np.array_equal(got, epilogue(np.concatenate(parts, axis=1))), (x.shape, w.shape, geometry)


def sweep(seconds: float, seed: int = 0) -> int:
    """How many products were compared; raises AssertionError where one is wrong."""
    for kind in (linear, convolution):  # compiles, before NumPy's allocators are replaced
        for i in range(200):
            kind(np.random.default_rng(i), Plain(), ("uint8", "int8")[i % 2])
    rng, guarded, until, done = np.random.default_rng(seed), Guarded(), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        guarded.flush_with_the_end = bool(done % 4)
        for kind in (linear, convolution):
            kind(rng, guarded, ("uint8", "int8")[done // 2 % 2])
        done += 1
    return 2 * done


class Plain(Guarded):
    """NumPy's own arrays, where compilers may allocate, too."""

    def array(self, shape, dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def allocating(self):
        from contextlib import nullcontext

        return nullcontext()


if __name__ == "__main__":
    main(lambda arguments: sweep(arguments.seconds))
