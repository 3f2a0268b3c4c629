"""Embedding and EmbeddingBag as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.functional.embedding import padding_row
from minquant.functional.embedding_bag import MODES
from minquant.nn import init
from minquant.nn.module import Module, Parameter
from minquant.tensor import Tensor, no_grad

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class Embedding(Module):
    """A row of a table for each integer: (…) -> (…, embedding_dim).

    Args:
        num_embeddings: rows.
        embedding_dim: features of a row.
        padding_idx: a row that starts at 0 and is not trained; negative: counted from the end.

    Initial values, standard normal, are within 2e-6 of torch's after the same `manual_seed`.

    Raises:
        IndexError: an index outside the rows.
        ValueError: sizes below 1, a padding_idx outside the rows.
        TypeError: an input that is not of integers.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(f"Embedding: sizes must be positive, got {num_embeddings=}, {embedding_dim=}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_row(padding_idx, num_embeddings, "Embedding")
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), np.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        normal_table(self.weight, self.padding_idx)

    def forward(self, input: TensorLike) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class EmbeddingBag(Module):
    """The sum or mean of rows of a table, for each bag of integers: (B, L) -> (B, embedding_dim).

    Args:
        num_embeddings: rows.
        embedding_dim: features of a row.
        mode: "sum" or "mean".
        include_last_offset: offsets (B + 1,) end with the end of the last bag.
        padding_idx: a row that starts at 0, is left out of every bag and is not trained; negative: from the end.

    Initial values, standard normal, are within 2e-6 of torch's after the same `manual_seed`.

    Raises:
        IndexError: an index outside the rows.
        ValueError: sizes below 1, an unknown mode, a padding_idx outside the rows; offsets that do not fit.
        TypeError: an input that is not of integers.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(f"EmbeddingBag: sizes must be positive, got {num_embeddings=}, {embedding_dim=}")
        if mode not in MODES:
            raise ValueError(f'EmbeddingBag: mode must be "sum" or "mean", got {mode!r}')
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.mode, self.include_last_offset = mode, include_last_offset
        self.padding_idx = None if padding_idx is None else padding_row(padding_idx, num_embeddings, "EmbeddingBag")
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), np.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        normal_table(self.weight, self.padding_idx)

    def forward(
        self, input: TensorLike, offsets: TensorLike | None = None, per_sample_weights: TensorLike | None = None
    ) -> Tensor:
        """(B, L) integers, or (n,) with offsets (B,) -> (B, embedding_dim); see `functional.embedding_bag`."""
        options = self.mode, per_sample_weights, self.include_last_offset, self.padding_idx
        return F.embedding_bag(input, self.weight, offsets, *options)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}{padding}"


def normal_table(weight: Parameter, padding_idx: int | None) -> None:
    """Standard normal values, and a row of zeros."""
    init.normal_(weight)
    if padding_idx is not None:
        with no_grad():
            weight[padding_idx] = 0
