"""torch's quantized embeddings, in all its engines: each row has a grid of its own, whose zero point is a real number.

====================  ==================================================================================
scale                 ``s = f((max - min) / (2ᵇ - 1))`` of the row; 1 where that is at most 2⁻²³
zero point            ``z = f(-min / s)``, not rounded: real 0 need not lie on the grid, nor in the range
quantize              ``q = clip(rint(f(f(x · f(1/s)) + z)), 0, 2ᵇ - 1)``
lookup                ``fma(s, q, c)`` with ``c = -f(z · s)``; at 4 bits s and c are kept in float16
bag                   ``y = fma(f(s · w), q, f(y + f(c · w)))`` in the order of the indices, y = 0 at first
====================  ==================================================================================

The minquant dialect, `minquant.quant.embedding`, has integer zero points here as everywhere.

Source: torch.ao.quantization.float_qparams_weight_only_qconfig and its 4-bit sister; embedding_byte, embedding_4bit,
embedding_bag_byte and embedding_bag_4bit of torch.ops.quantized, torch 2.13.
"""

from __future__ import annotations

import numpy as np

from minquant.functional.embedding import checked_indices
from minquant.functional.embedding_bag import bags_of
from minquant.kernels.fma import fma

from ..grid import EPS, check_finite, float_array
from ..qtensor import pack_bits, unpack_bits

__all__ = ["FloatQParamsTable", "float_qparams", "quantize_rows"]

F32 = np.float32


def float_qparams(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and real zero point of each row of (rows, features), both float32 (rows,)."""
    low, high = weight.min(axis=1), weight.max(axis=1)
    with np.errstate(over="ignore"):  # a range wider than float32 gives an infinite scale, which the table refuses
        scale = (high - low) / F32(2**bits - 1)
    scale = np.where(scale > EPS, scale, F32(1))
    return scale, -low / scale


class FloatQParamsTable:
    """Integers (rows, features) of 8 or 4 bits, and for each row a scale and a real zero point.

    Args:
        integers: 0 … 2ᵇ - 1.
        scale: float32 (rows,), positive and finite.
        zero_point: float32 (rows,).
        bits: 8 or 4.

    Attributes:
        storage: the integers as they are kept, two a byte at 4 bits.

    Raises:
        ValueError: other bits; shapes that do not fit; an odd number of features at 4 bits; integers off the grid; a
            scale that is none.
    """

    def __init__(self, integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: int = 8) -> None:
        if bits not in (4, 8):
            raise ValueError(f'torch\'s embeddings have 8 or 4 bits, got {bits}; the dialect "reference" has 2 to 8')
        rows = (len(integers),)
        if integers.ndim != 2 or scale.shape != rows or zero_point.shape != rows:
            raise ValueError(
                f"FloatQParamsTable: expected integers (rows, features) and a scale and zero point for each row, got "
                f"shapes {integers.shape}, {scale.shape} and {zero_point.shape}"
            )
        if bits == 4 and integers.shape[1] % 2:
            raise ValueError(f"torch keeps two 4-bit integers a byte: features must be even, got {integers.shape[1]}")
        if integers.size and not 0 <= integers.min() <= integers.max() < 2**bits:
            raise ValueError(f"FloatQParamsTable: integers must lie in 0…{2**bits - 1}")
        if not (np.isfinite(scale).all() and (scale > 0).all() and np.isfinite(zero_point).all()):
            raise ValueError("FloatQParamsTable: scales must be positive and finite, zero points finite")
        self.shape, self.bits = integers.shape, bits
        self.scale, self.zero_point = scale.astype(F32), zero_point.astype(F32)
        self.storage = pack_bits(integers, bits) if bits == 4 else integers.astype(np.uint8)

    def int_repr(self) -> np.ndarray:
        """The integers, uint8 (rows, features)."""
        return self.storage if self.bits == 8 else unpack_bits(self.storage, 4, False, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that torch keeps: the integers and two numbers a row, float32 at 8 bits and float16 at 4."""
        return self.storage.nbytes + self.shape[0] * self.bits

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows, features = self.shape
        return f"FloatQParamsTable({rows} rows of {features}, uint{self.bits}, a real zero point each)"

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale s and constant c of each row, in real values ``s·q + c``."""
        constant = -(self.zero_point * self.scale)
        if self.bits == 8:
            return self.scale, constant
        with np.errstate(over="ignore"):  # an overflow of float16 is torch's infinity
            return self.scale.astype(np.float16).astype(F32), constant.astype(np.float16).astype(F32)

    def lookup(self, input: np.ndarray) -> np.ndarray:
        """Indices (…) -> float32 (…, features).

        Raises:
            IndexError, TypeError: see `minquant.functional.embedding`.
        """
        index, _ = checked_indices(input, self.shape, "embedding")
        scale, constant = self.coefficients()
        return fma(scale[index][..., np.newaxis], self.int_repr()[index], constant[index][..., np.newaxis])

    def bags(
        self,
        input: np.ndarray,
        offsets: np.ndarray | None,
        per_sample_weights: np.ndarray | None = None,
        include_last_offset: bool = False,
    ) -> np.ndarray:
        """Sums of rows, float32 (bags, features); arguments as of `minquant.functional.embedding_bag`."""
        index, _ = checked_indices(input, self.shape, "embedding_bag")
        bag, count = bags_of(index, offsets, include_last_offset)
        rows, (scale, constant) = index.reshape(-1), self.coefficients()
        scale, constant = scale[rows], constant[rows]  # of each index
        if per_sample_weights is not None:
            scale, constant = scale * per_sample_weights.reshape(-1), constant * per_sample_weights.reshape(-1)
        total, integers = np.zeros((count, self.shape[1]), F32), self.int_repr()
        place = np.arange(len(bag)) - np.searchsorted(bag, bag)  # of each index in its bag
        for k in range(place.max(initial=-1) + 1):  # the k-th index of every bag that has one
            now = np.flatnonzero(place == k)
            moved = total[bag[now]] + constant[now][:, np.newaxis]
            total[bag[now]] = fma(scale[now][:, np.newaxis], integers[rows[now]], moved)
        return total


def quantize_rows(weight: np.ndarray, bits: int = 8) -> FloatQParamsTable:
    """A float table (rows, features) on torch's grids.

    Raises:
        ValueError: NaN or infinity; a range wider than float32; other bits; an odd number of features at 4 bits.
        TypeError: a table that is not of floats.

    Source: torch.ao.nn.quantized.Embedding.from_float, torch 2.13.
    """
    real = float_array(weight, "quantize_rows")
    check_finite(real, "the table of an Embedding", "Did training diverge, or is the file damaged?")
    scale, zero_point = float_qparams(real, bits)
    codes = np.rint(real * (F32(1) / scale)[:, np.newaxis] + zero_point[:, np.newaxis])
    return FloatQParamsTable(np.clip(codes, 0, 2**bits - 1).astype(np.uint8), scale, zero_point, bits)
