"""A Linear with a scale for each group of K, on a GPU in one Triton kernel: packed weights are read as they are stored.

    for each tile of the result          its sums live in registers
        for each group, ascending        integers unpacked, multiplied by tensor cores, rescaled, added in float32

``y = f(y + f(f(acc_g) · f(sx·sw_g)))`` with ``acc_g = Σ qx·qw - zx·Σ qw`` exact in int32: the reference dialect's
order, each operation rounded by itself (``enable_fp_fusion=False``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["grouped_product"]

ROWS, COLUMNS = 16, 64
"""Of a tile: the fewest rows that there are, and enough columns to read the input seldom."""


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    qx, packed, zx, group_sums, x_scale, w_scale, y, M, N, K, x_row, z_row,
    GROUPS, BITS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = (m < M)[:, None], (n < N)[None, :]
    s = tl.load(x_scale + m * x_row, mask=m < M)[:, None]
    z = tl.load(zx + m * z_row, mask=m < M)[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for g in range(GROUPS):
        k = g * SIZE + tl.arange(0, SIZE)
        a = tl.load(qx + m[:, None] * K + k[None, :], mask=row, other=0)
        bit = (n[None, :] * K + k[:, None]) * BITS
        code = tl.load(packed + bit // 8, mask=column, other=0).to(tl.int32) >> (bit % 8).to(tl.int32)
        half = 1 << (BITS - 1)
        b = (((code & (2 * half - 1)) ^ half) - half).to(tl.int8)  # two's complement of so many bits
        acc = tl.dot(a, b, out_dtype=tl.int32)
        acc -= z * tl.load(group_sums + n * GROUPS + g, mask=n < N)[None, :]
        total += acc.to(tl.float32) * (s * tl.load(w_scale + n * GROUPS + g, mask=n < N)[None, :])
    tl.store(y + m[:, None] * N + n[None, :], total, mask=row & column)


def grouped_product(
    qx: Tensor, zx: Tensor, packed: Tensor, bits: int, group_sums: Tensor, x_scale: Tensor, w_scale: Tensor
) -> Tensor:
    """The real result (M, N), without a bias.

    Args:
        qx: (M, K) int8.
        zx: zero point of x, int32: one number, or (M, 1).
        packed: a signed weight (N, K) whose zero point is 0, as `minquant.quant.qtensor.pack_bits` packs it; at 8 bits,
            int8 as it is.
        bits: of each of its integers: 2, 4 or 8.
        group_sums: ``Σ qw`` of each group, int32 (N, G).
        x_scale: float32: one number, or (M, 1).
        w_scale: float32 (N, G), where K / G is 32, 64, 128 or 256.
    """
    (M, K), (N, G) = qx.shape, w_scale.shape
    y = torch.empty(M, N, device=qx.device)
    if not y.numel():
        return y
    x_row, z_row = (v.stride(0) if v.ndim else 0 for v in (x_scale, zx))
    operands = (qx.contiguous(), packed.contiguous(), zx, group_sums.contiguous(), x_scale, w_scale.contiguous(), y)
    grid = -(-M // ROWS), -(-N // COLUMNS)
    with torch.cuda.device_of(qx):
        _kernel[grid](*operands, M, N, K, x_row, z_row, G, bits, K // G, ROWS, COLUMNS, enable_fp_fusion=False)
    return y
