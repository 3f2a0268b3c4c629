"""Bags of embeddings: rows of a table summed or averaged, without the rows ever being a tensor of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function
from minquant.functional.embedding import checked_indices, padding_row
from minquant.tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

MODES = ("sum", "mean")


class EmbeddingBag(Function):
    """``y[b] = Σ w[i] · weight[index[i]]`` over the i of bag b, divided by their number for the mean.

    Products and sums in float64, in the order of i, rounded once at the end.
    """

    floats_only = True

    def forward(
        self,
        weight: np.ndarray,
        *sample_weights: np.ndarray,
        index: np.ndarray,
        bag: np.ndarray,
        bags: int,
        padding_idx: int | None,
        mode: str,
    ) -> np.ndarray:
        kept = index != padding_idx
        self.kept, self.index, self.bag, self.rows = kept, index[kept], bag[kept], len(weight)
        counts = np.bincount(self.bag, minlength=bags) if mode == "mean" else np.ones(bags)
        self.divisor = np.maximum(counts, 1)[:, np.newaxis]  # an empty bag is 0
        taken = weight[self.index].astype(np.float64)
        self.save(*sample_weights, *((weight,) if sample_weights else ()))
        for w in sample_weights:
            taken *= w[kept][:, np.newaxis]
        out = np.zeros((bags, weight.shape[1]))
        np.add.at(out, self.bag, taken)
        return (out / self.divisor).astype(weight.dtype)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, ...]:
        arriving = (grad / self.divisor)[self.bag]  # (kept, features), float64
        of_weight = np.zeros((self.rows, grad.shape[1]))
        if not self.saved:
            np.add.at(of_weight, self.index, arriving)
            return (of_weight,)
        sample_weights, weight = self.saved
        np.add.at(of_weight, self.index, arriving * sample_weights[self.kept][:, np.newaxis])
        of_samples = np.zeros(sample_weights.shape)
        of_samples[self.kept] = (arriving * weight[self.index]).sum(axis=1)
        return of_weight, of_samples


def embedding_bag(
    input: TensorLike,
    weight: TensorLike,
    offsets: TensorLike | None = None,
    mode: str = "mean",
    per_sample_weights: TensorLike | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums or means of rows of a table, one for each bag of indices; an empty bag gives zeros.

    Args:
        input: (B, L) integers, a bag in each row, or (n,) with `offsets`.
        weight: (rows, features), float32 or float64.
        offsets: (B,) integers, where in `input` each bag begins: 0 first, ascending.
        mode: "sum" or "mean".
        per_sample_weights: a factor for each index, of the shape of `input`; for sums only.
        include_last_offset: `offsets` (B + 1,) ends with the end of the last bag.
        padding_idx: a row that is left out of every bag, and not trained. Negative: counted from the end.

    Returns:
        (B, features), summed in float64 and rounded once.

    Raises:
        IndexError: an index outside the rows.
        ValueError: shapes, offsets or options that do not fit.
        TypeError: indices or offsets that are not integers, a weight that is not of floats.

    Source: torch.nn.functional.embedding_bag, torch 2.13.
    """
    index, rows = checked_indices(input, np.shape(weight), "embedding_bag")
    if mode not in MODES:
        raise ValueError(f'embedding_bag: mode must be "sum" or "mean", got {mode!r}')
    bag, bags = bags_of(index, offsets, include_last_offset)
    row = None if padding_idx is None else padding_row(padding_idx, rows, "embedding_bag")
    inputs = (weight, *_sample_weights(per_sample_weights, index, mode))
    return EmbeddingBag.apply(*inputs, index=index.reshape(-1), bag=bag, bags=bags, padding_idx=row, mode=mode)


def _sample_weights(per_sample_weights: TensorLike | None, index: np.ndarray, mode: str) -> tuple[Tensor, ...]:
    if per_sample_weights is None:
        return ()
    if mode != "sum":
        raise ValueError(f'embedding_bag: per_sample_weights go with mode "sum" alone, got mode {mode!r}')
    factors = as_tensor(per_sample_weights)
    if factors.shape != index.shape:
        raise ValueError(
            f"embedding_bag: per_sample_weights must have the input's shape {index.shape}, got {factors.shape}"
        )
    return (factors.reshape(-1),)


def bags_of(index: np.ndarray, offsets: TensorLike | None, include_last_offset: bool) -> tuple[np.ndarray, int]:
    """The number of the bag of each index, flat, and how many bags there are.

    Raises:
        ValueError: an input or offsets of other shapes; offsets that do not begin at 0, descend, or lead past the end.
        TypeError: offsets that are not integers.
    """
    if index.ndim == 2 and offsets is None:
        return np.repeat(np.arange(len(index)), index.shape[1]), len(index)
    if index.ndim != 1 or offsets is None:
        given = "without" if offsets is None else "with"
        raise ValueError(
            f"embedding_bag: input must be (bags, indices) without offsets or (indices,) with them, got shape "
            f"{index.shape} {given} offsets"
        )
    starts = as_tensor(offsets).data
    if starts.dtype.kind not in "iu":
        raise TypeError(f"embedding_bag: offsets must be integers, got {starts.dtype}")
    ends = starts[1:] if include_last_offset else np.append(starts[1:], len(index))
    fits = starts.ndim == 1 and len(starts) > 0 and starts[0] == 0 and (np.diff(starts) >= 0).all()
    if not fits or starts[-1] > len(index) or (include_last_offset and starts[-1] != len(index)):
        last = "and end at" if include_last_offset else "and stay within"
        raise ValueError(
            f"embedding_bag: offsets must begin at 0, ascend {last} the {len(index)} indices, got {starts.tolist()}"
        )
    lengths = ends - starts[: len(ends)]
    return np.repeat(np.arange(len(lengths)), lengths), len(lengths)
