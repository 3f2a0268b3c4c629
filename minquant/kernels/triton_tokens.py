"""Rows of real values to int8, each on a symmetric grid of its own, in one Triton kernel: a row is read once.

``s = max(f(max|x| / half), 2⁻²³)`` with half = (qmax - qmin)/2, and ``q = clip(rint(f(x · f(1/s))), qmin, qmax)``: the
rules of `minquant.quant.grid`, where they stand in NumPy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["symmetric_rows"]

EPS = 2.0**-23
WARP = 1024
"""Values for each warp: 32 a thread."""


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x, q, scale, K, qmin, qmax, half, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    v = tl.load(x + row * K + k, mask=k < K, other=0.0)
    size = tl.abs(v)
    bad = tl.max((~(size < float("inf"))).to(tl.int32), 0)  # NaN is not smaller, either
    s = tl.maximum(tl.div_rn(tl.max(size, 0), half), eps)
    steps = v * tl.div_rn(1.0, s)
    near = tl.abs(steps)
    whole = tl.where(near < 8388608.0, (near + 8388608.0) - 8388608.0, near)  # to even: see `triton_elements`
    code = tl.minimum(tl.maximum(tl.where(steps < 0, -whole, whole), qmin), qmax)
    tl.store(q + row * K + k, code.to(tl.int8), mask=k < K)
    tl.store(scale + row, tl.where(bad > 0, float("nan"), s))


def symmetric_rows(x: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Integers and scales of rows.

    Args:
        x: float32 (R, K), K at most 16,384: a row lies in the registers of one block.
        qmin: smallest integer.
        qmax: largest integer.

    Returns:
        int8 (R, K), and float32 (R, 1): NaN, with integers that mean nothing, where a row holds NaN or infinity.
    """
    R, K = x.shape
    q = torch.empty(R, K, dtype=torch.int8, device=x.device)
    scale = torch.full((R, 1), EPS, device=x.device)
    if q.numel():
        block = 1 << (K - 1).bit_length()
        warps = min(16, max(1, block // WARP))
        ends = float(qmin), float(qmax), (qmax - qmin) / 2, EPS
        with torch.cuda.device_of(x):
            _kernel[R,](x.contiguous(), q, scale, K, *ends, block, num_warps=warps, enable_fp_fusion=False)
    return q, scale
