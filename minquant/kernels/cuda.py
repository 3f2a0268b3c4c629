"""The integer product on a GPU, through torch: ``torch._int_mm``, which hands it to cuBLASLt's tensor-core kernels.

cuBLASLt multiplies int8 by int8 and is particular about it:

- the left operand by rows, the right one by columns; other orders fail, or are slow;
- K and N multiples of 8, and more than 16 rows: torch refuses others. Its own tests have multiples of 16 and, in the
  version after, 32 rows, and so has this; operands begin at multiples of 16 bytes;
- no uint8: ``a - 128`` is int8, and ``Σ a·b = Σ (a - 128)·b + 128·Σ b``, the last sum a number for each column.

What is missing to a shape is filled with zeros, which add nothing, and cut off the result again. So every result is
exact, bit-equal to ``reference.py``.

The functions on tensors take those of any device: what they do on a GPU they do on the CPU, where it can be tested.
Source: _int_mm_out_cuda in aten/src/ATen/native/cuda/Blas.cpp, torch 2.13; cublasLtMatmul in NVIDIA's cuBLAS manual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Columns", "columns_of", "cuda_torch", "grouped", "lowered", "matmul", "product", "sums", "unpack_bits"]

LEAST_ROWS, MULTIPLE = 32, 16


def cuda_torch(who: str, instead: str) -> Any:
    """The torch package, if it can compute on a GPU.

    Args:
        who: asks.
        instead: how they ask for the CPU.

    Raises:
        RuntimeError: it is not installed, or there is no CUDA device; never a run on the CPU instead.
    """
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f"{who} on CUDA needs torch: pip install 'minquant[torch]', built for CUDA") from error
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        raise RuntimeError(
            f"{who}: no CUDA device (torch {torch.__version__} is built for {built}). Run it on a machine with an "
            f"NVIDIA GPU, its driver and a torch built for CUDA (pytorch.org), or ask for the CPU: {instead}"
        )
    return torch


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``acc[m, n] = Σ_k a[m, k] · b[k, n]`` in int32, of arrays that ``int8_matmul`` has checked, by way of the GPU.

    Raises:
        RuntimeError: no CUDA device.
    """
    torch = cuda_torch("int8_matmul", "backend='numba', and no MINQUANT_BACKEND=cuda")
    left = torch.tensor(np.ascontiguousarray(a), device="cuda")
    right = torch.tensor(np.ascontiguousarray(b.T), device="cuda").T
    return product(left, columns_of(right)).cpu().numpy()


# ---- on tensors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """A right operand (K, N) as cuBLASLt reads it: laid out once, used often.

    Attributes:
        shape: (K, N).
        values: int8, contiguous, a row for each column of the operand, filled with zeros to multiples of 16.
        sums: ``Σ_k b[k, n]``, int32 (N,).
    """

    shape: tuple[int, int]
    values: Tensor
    sums: Tensor


def columns_of(b: Tensor) -> Columns:
    """An int8 tensor (K, N), any strides; that of a weight (N, K) is its transpose, and is not copied if it fits."""
    import torch

    K, N = b.shape
    values = _filled(b.T, _multiple(N), _multiple(K))
    return Columns((K, N), values, b.sum(0, dtype=torch.int32))


def product(a: Tensor, b: Columns) -> Tensor:
    """``acc[m, n] = Σ_k a[m, k] · b[k, n]``, exact in int32.

    Args:
        a: (M, K) int8 or uint8, any strides.
        b: on the same device.

    Returns:
        (M, N) int32, contiguous. Sizes of zero are allowed. K is as of `minquant.kernels.max_k`, unchecked.

    Raises:
        ValueError: the inner sizes differ.
    """
    import torch

    if a.shape[1] != b.shape[0]:
        raise ValueError(f"product: inner sizes differ: a {tuple(a.shape)}, b {b.shape}")
    if a.dtype == torch.uint8:
        return product(lowered(a), b) + 128 * b.sums
    rows = _filled(a, max(len(a), LEAST_ROWS), b.values.shape[1])
    return torch._int_mm(rows, b.values.T)[: len(a), : b.shape[1]].contiguous()


def lowered(a: Tensor) -> Tensor:
    """``a - 128`` of uint8 as int8: the highest bit turned over."""
    import torch

    return a.view(torch.int8) ^ -128


def _multiple(size: int) -> int:
    """The smallest multiple of 16 that holds it, at least one."""
    return max(1, -(-size // MULTIPLE)) * MULTIPLE


def _filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """By rows, without gaps, zeros where it ends, and well aligned; x itself if it is so already."""
    if x.shape == (rows, columns):
        x = x.contiguous()
        return x.clone() if x.data_ptr() % MULTIPLE else x
    filled = x.new_zeros(rows, columns)
    filled[: x.shape[0], : x.shape[1]] = x
    return filled


# ---- sums of a quantized layer ---------------------------------------------------------------------------------------


def sums(qx: Tensor, zx: Tensor | int, weight: Columns, zw: Tensor | int) -> tuple[Tensor, Tensor | None]:
    """``Σ_k (qx[m, k] - zx)(qw[k, n] - zw)`` as a product and what is still to be taken from it, if anything is.

    The latter is a number for each column, ``zx·Σ_k qw``, and costs nothing if what follows takes it in passing. See
    `minquant.quant.integer` for the algebra.

    Args:
        qx: (M, K) int8 or uint8.
        zx: zero point of x: one number, or int32 (M, 1).
        weight: (K, N).
        zw: zero point of w: one number, or int32 (N,).

    Returns:
        int32 (M, N), and int32 (N,) or None; their difference is exact, modulo 2³² and so altogether.
    """
    import torch

    if qx.dtype == torch.uint8:  # the same numbers, 128 lower: nothing to be taken back
        qx, zx = lowered(qx), zx - 128
    acc = product(qx, weight)
    if isinstance(zw, torch.Tensor) or zw:
        acc -= zw * (qx.sum(1, dtype=torch.int32, keepdim=True) - qx.shape[1] * zx)
    if isinstance(zx, torch.Tensor):
        return acc - zx * weight.sums, None
    return acc, zx * weight.sums if zx else None


def grouped(x: Tensor, size: int) -> Tensor:
    """(R, K) -> (K / size, R, size), contiguous: what shares a scale side by side."""
    return x.reshape(len(x), x.shape[1] // size, size).transpose(0, 1).contiguous()


def unpack_bits(packed: Tensor, bits: int, signed: bool, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `minquant.quant.qtensor.pack_bits`, on the device: bytes -> int8 (`signed`) or uint8.

    Args:
        packed: uint8, `bits` bits of each integer, lowest bit first.
        bits: 2 to 4.
        signed: whether they are in two's complement.
        shape: of the result.
    """
    import torch

    count = int(np.prod(shape))
    step = 1 if 8 % bits else bits  # 3 bits lie across bytes: those are taken one by one
    places = torch.arange(0, 8, step, dtype=torch.uint8, device=packed.device)
    parts = ((packed[:, None] >> places) & ((1 << step) - 1)).reshape(-1)[: count * bits // step]
    weights = torch.arange(0, bits, step, dtype=torch.uint8, device=packed.device)
    codes = (parts.reshape(count, bits // step) << weights).sum(1, dtype=torch.uint8)
    if signed:  # the highest bit counts negatively
        half = 1 << (bits - 1)
        codes = (codes ^ half).view(torch.int8) - half
    return codes.reshape(shape)
