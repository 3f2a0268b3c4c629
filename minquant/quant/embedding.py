"""Embedding and EmbeddingBag in their quantized lives: a table of integers, looked up and decoded row by row.

Nothing is multiplied with the table, so nothing has to be integers but what is kept: the output is real. With a
`QTensor`, minquant's own rule, a row is ``f((q - z) · s)``, and bags are sums of such rows in float64, in the order of
the indices, rounded once, as in `minquant.functional.embedding_bag`. With a `FloatQParamsTable` it is torch's rule.

In training the table is fake-quantized, which gives the same rows bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minquant import functional
from minquant.functional.embedding import checked_indices, padding_row
from minquant.nn import Embedding, EmbeddingBag, Module, Parameter
from minquant.tensor import Tensor, as_tensor

from .dialects.float_qparams import FloatQParamsTable
from .fake_quant import FakeQuantize
from .qtensor import QTensor
from .spec import PerChannel, PerToken, QSpec
from .weighted import at, check_integer_spec, check_weight_values

__all__ = ["QATEmbedding", "QATEmbeddingBag", "QuantizedEmbedding", "QuantizedEmbeddingBag"]

Table = QTensor | FloatQParamsTable


# ---- in training -----------------------------------------------------------------------------------------------------


class QATEmbedding(Module):
    """Embedding whose table is fake-quantized at every step.

    Args:
        embedding: the Embedding whose table is trained on; it is shared, not copied.
        weight_fake_quant: fake quantizer of the table.
        backend: the dialect, which has no say here: torch simulates its embeddings like this too, on other grids.

    Raises:
        ValueError: a grid that a table has no rule for; in forward, NaN in the table.
        IndexError, TypeError: in forward, as `minquant.functional.embedding`.

    Source: torch.ao.nn.qat.Embedding, torch 2.13.
    """

    def __init__(self, embedding: Embedding, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__()
        check_table_spec(weight_fake_quant.activation_post_process.spec)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.weight: Parameter = embedding.weight
        self.weight_fake_quant = weight_fake_quant
        self.backend = backend
        self.path = ""

    def forward(self, input: Any) -> Tensor:
        """(…) integers -> (…, embedding_dim)."""
        with named(self, input):
            return functional.embedding(input, self.fake_quantized(), self.padding_idx)

    def fake_quantized(self) -> Tensor:
        """The table on its grid."""
        check_weight_values(self.weight, f"{type(self).__name__}{at(self)}")
        return self.weight_fake_quant(self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}{padding(self.padding_idx)}, backend={self.backend!r}"


class QATEmbeddingBag(QATEmbedding):
    """`QATEmbedding` of bags. Source: torch.ao.nn.qat.EmbeddingBag, torch 2.13."""

    def __init__(self, embedding: EmbeddingBag, weight_fake_quant: FakeQuantize, backend: str) -> None:
        super().__init__(embedding, weight_fake_quant, backend)  # type: ignore[arg-type]
        self.mode, self.include_last_offset = embedding.mode, embedding.include_last_offset

    def forward(self, input: Any, offsets: Any = None, per_sample_weights: Any = None) -> Tensor:
        """As `minquant.nn.EmbeddingBag`."""
        options = self.mode, per_sample_weights, self.include_last_offset, self.padding_idx
        with named(self, input):
            return functional.embedding_bag(input, self.fake_quantized(), offsets, *options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


# ---- on integers -----------------------------------------------------------------------------------------------------


class QuantizedEmbedding(Module):
    """Embedding of a table of integers: (…) integers -> (…, embedding_dim) real values.

    Args:
        weight: (num_embeddings, embedding_dim): a QTensor of 2 to 8 bits, or torch's `FloatQParamsTable`.

    Raises:
        ValueError: a grid that a table has no rule for.
        TypeError: a table that is neither; in forward, an input that is not of integers.
        IndexError: in forward, an index outside the rows.

    Source: torch.ao.nn.quantized.Embedding, torch 2.13.
    """

    def __init__(self, weight: Table) -> None:
        super().__init__()
        if not isinstance(weight, Table):
            raise TypeError(
                f"{type(self).__name__}: expected a QTensor or a FloatQParamsTable, got {type(weight).__name__}; "
                "quantize(table, qparams) makes the one, quantize_rows(table) the other"
            )
        if isinstance(weight, QTensor):
            check_table_spec(weight.qparams.spec)
        if len(weight.shape) != 2:
            raise ValueError(f"{type(self).__name__}: the table must be (rows, features), got shape {weight.shape}")
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = weight
        self.path = ""

    def forward(self, input: Any) -> Tensor:
        """(…) integers -> (…, embedding_dim) float32."""
        with named(self, input):
            if isinstance(self.weight, FloatQParamsTable):
                return Tensor(self.weight.lookup(as_tensor(input).data))
            index, _ = checked_indices(input, self.weight.shape, "embedding")
            return Tensor(decoded_rows(self.weight, index))

    def extra_repr(self) -> str:
        grid = self.weight.qparams.spec if isinstance(self.weight, QTensor) else self.weight
        return f"{self.num_embeddings}, {self.embedding_dim}, weight={grid}"


class QuantizedEmbeddingBag(QuantizedEmbedding):
    """EmbeddingBag of a table of integers: sums or means of real rows.

    Args:
        weight: as of `QuantizedEmbedding`.
        mode: "sum" or "mean".
        include_last_offset: as of `minquant.nn.EmbeddingBag`.
        padding_idx: a row that is left out of every bag.

    Raises:
        ValueError: a mean, or a padding_idx, with torch's table, whose kernel sums every row whatever the module says;
            in forward, and all other errors, as `minquant.functional.embedding_bag`.

    Source: torch.ao.nn.quantized.EmbeddingBag, torch 2.13.
    """

    def __init__(
        self, weight: Table, mode: str = "mean", include_last_offset: bool = False, padding_idx: int | None = None
    ) -> None:
        super().__init__(weight)
        if mode not in ("sum", "mean"):
            raise ValueError(f'QuantizedEmbeddingBag: mode must be "sum" or "mean", got {mode!r}')
        if isinstance(weight, FloatQParamsTable) and (mode != "sum" or padding_idx is not None):
            raise ValueError(
                f"QuantizedEmbeddingBag: torch's kernel sums all rows of a bag, got {mode=}, {padding_idx=}, which it "
                'ignores without a word; use mode="sum" and no padding_idx, or the dialect "reference"'
            )
        self.mode, self.include_last_offset = mode, include_last_offset
        row = None if padding_idx is None else padding_row(padding_idx, self.num_embeddings, "QuantizedEmbeddingBag")
        self.padding_idx = row

    def forward(self, input: Any, offsets: Any = None, per_sample_weights: Any = None) -> Tensor:
        """As `minquant.nn.EmbeddingBag`, float32."""
        with named(self, input):
            if isinstance(self.weight, FloatQParamsTable):
                return Tensor(self._torchs(self.weight, input, offsets, per_sample_weights))
            index, _ = checked_indices(input, self.weight.shape, "embedding_bag")
            used, places = np.unique(index, return_inverse=True)  # only these rows are decoded
            left_out = np.flatnonzero(used == self.padding_idx)
            padding_idx = int(left_out[0]) if left_out.size else None
            table = Tensor(decoded_rows(self.weight, used))
            options = self.mode, per_sample_weights, self.include_last_offset, padding_idx
            return functional.embedding_bag(places.reshape(index.shape), table, offsets, *options)

    def _torchs(self, table: FloatQParamsTable, input: Any, offsets: Any, per_sample_weights: Any) -> np.ndarray:
        factors = None if per_sample_weights is None else as_tensor(per_sample_weights).data
        return table.bags(as_tensor(input).data, offsets, factors, self.include_last_offset)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}{padding(self.padding_idx)}"


def decoded_rows(table: QTensor, index: np.ndarray) -> np.ndarray:
    """Rows as real values, ``f((q - z) · s)``: float32 (…, features)."""
    flat, of = index.reshape(-1), table.qparams.spec.granularity
    q = table.rows(flat)
    terms = (table.qparams.scale, table.qparams.zero_point)
    scale, zero_point = (of.expand(v[flat] if v.ndim else v, q.shape) for v in terms)
    rows = (q.astype(np.int32) - zero_point).astype(np.float32) * scale
    return rows.reshape(*index.shape, table.shape[1])


def check_table_spec(spec: QSpec) -> None:
    """Refuses a grid that the table of an Embedding has no rule for.

    Raises:
        ValueError: more than 8 bits; one scale a token; channels that are not the rows.
    """
    check_integer_spec(spec, "weight")
    of = spec.granularity
    if isinstance(of, PerToken) or (isinstance(of, PerChannel) and of.axis not in (0, -2)):
        raise ValueError(
            f"the table of an Embedding (rows, features) takes one scale in all, one a row, PerChannel(0), or one a "
            f"group, PerGroup(size); got {of}"
        )


@contextmanager
def named(module: Any, input: Any) -> Iterator[None]:
    """Refuses a quantized tensor in place of indices, and gives what else is wrong the layer's path."""
    if isinstance(input, QTensor):
        raise TypeError(
            f"{type(module).__name__}{at(module)}: expected indices (integers), got a QTensor; indices must not be "
            "quantized: put the QuantStub behind the Embedding"
        )
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{type(module).__name__}{at(module)}: {error}") from error


def padding(padding_idx: int | None) -> str:
    """For a repr."""
    return "" if padding_idx is None else f", padding_idx={padding_idx}"
