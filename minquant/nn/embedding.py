"""Embedding as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.functional.embedding import padding_row
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
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0

    def forward(self, input: TensorLike) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
