"""Embedding: integers name rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function
from minquant.kernels.choice import compiled
from minquant.tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Embedding(Function):
    """y = weight[index]; a row gets the sum of the gradients where it was taken, the padding row none."""

    floats_only = True

    def forward(self, weight: np.ndarray, index: np.ndarray, padding_idx: int | None) -> np.ndarray:
        self.shape, self.index, self.padding_idx = weight.shape, index.copy(), padding_idx
        return weight[index]

    def backward(self, grad: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape, grad.dtype)
        kernels = compiled("rows", grad.size)
        if kernels and grad.size:
            kernels.add_rows(out, self.index.reshape(-1), np.ascontiguousarray(grad).reshape(-1, grad.shape[-1]))
        else:
            np.add.at(out, self.index, grad)
        if self.padding_idx is not None:
            out[self.padding_idx] = 0
        return out


def embedding(input: TensorLike, weight: TensorLike, padding_idx: int | None = None) -> Tensor:
    """weight[input].

    Args:
        input: (…) integers from 0 to rows − 1.
        weight: (rows, features), float32 or float64.
        padding_idx: a row that is not trained: its gradient is 0. Negative: counted from the end.

    Returns:
        (…, features).

    Raises:
        IndexError: an index, which is named, outside the rows.
        ValueError: a weight that is not a table, a padding_idx outside its rows.
        TypeError: indices that are not integers, a weight that is not of floats.
    """
    index, rows = checked_indices(input, np.shape(weight), "embedding")
    row = None if padding_idx is None else padding_row(padding_idx, rows, "embedding")
    return Embedding.apply(weight, index=index, padding_idx=row)


def checked_indices(input: TensorLike, shape: tuple[int, ...], name: str) -> tuple[np.ndarray, int]:
    """The indices as an array, and how many rows a table of that shape has.

    Raises:
        IndexError: an index outside the rows.
        ValueError: a weight that is not a table.
        TypeError: indices that are not integers.
    """
    index = as_tensor(input).data
    if index.dtype.kind not in "iu":
        raise TypeError(f"{name}: input must hold indices (integers), got {index.dtype}")
    if len(shape) != 2:
        raise ValueError(f"{name}: weight must be (rows, features), got shape {shape}")
    wrong = (index < 0) | (index >= shape[0])
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"{name}: index {index[where]} at {where} is outside the rows 0 to {shape[0] - 1}")
    return index, shape[0]


def padding_row(padding_idx: int, rows: int, name: str) -> int:
    """padding_idx counted from the front; ValueError if there is no such row."""
    if not -rows <= padding_idx < rows:
        raise ValueError(f"{name}: padding_idx {padding_idx} is outside the {rows} rows")
    return padding_idx % rows
