"""Embeddings on integers: lookups by hand, training equal to inference bit for bit, and errors that say what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minquant import Tensor, nn
from minquant.quant import (
    PerChannel,
    PerChannelMinMaxObserver,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    QSpec,
    QTensor,
    choose_qparams,
    quantize,
)
from minquant.quant.dialects.float_qparams import FloatQParamsTable, float_qparams, quantize_rows
from minquant.quant.embedding import QATEmbedding, QATEmbeddingBag, QuantizedEmbedding, QuantizedEmbeddingBag
from minquant.quant.fake_quant import WeightFakeQuantize
from minquant.quant.observers import MinMaxObserver

F32 = np.float32
RNG = np.random.default_rng(0)
ROWS = QSpec(symmetric=True, granularity=PerChannel())
TABLE = QTensor(
    np.array([[2, -4], [10, 20], [0, 127]], np.int8), QParams(np.array([0.5, 2, 1], F32), np.zeros(3, int), ROWS)
)
OFFSETS = np.array([0, 2, 2])


def table(rows: int, features: int, spec: QSpec) -> QTensor:
    weight = RNG.standard_normal((rows, features)).astype(F32)
    return quantize(weight, choose_qparams(*spec.granularity.min_max(weight), spec))


# ---- minquant's own rule ---------------------------------------------------------------------------------------------


def test_a_row_is_its_integers_times_its_scale() -> None:
    layer = QuantizedEmbedding(TABLE)
    assert layer(np.array([[0, 1], [2, 0]])).tolist() == [[[1, -2], [20, 40]], [[0, 127], [1, -2]]]
    assert layer(np.zeros((2, 0), int)).shape == (2, 0, 2)
    assert repr(layer) == "QuantizedEmbedding(3, 2, weight=int8 symmetric per channel)"


def test_bags_are_sums_and_means_of_such_rows() -> None:
    index = np.array([0, 1, 2])
    assert QuantizedEmbeddingBag(TABLE, "sum")(index, OFFSETS).tolist() == [[21, 38], [0, 0], [0, 127]]
    assert QuantizedEmbeddingBag(TABLE)(index, OFFSETS).tolist() == [[10.5, 19], [0, 0], [0, 127]]
    assert QuantizedEmbeddingBag(TABLE, include_last_offset=True)(index, np.array([0, 3])).tolist() == [[7, 55]]
    assert QuantizedEmbeddingBag(TABLE, padding_idx=-3)(index, np.array([0])).tolist() == [[10, 83.5]]
    assert QuantizedEmbeddingBag(TABLE, padding_idx=0)(np.array([1, 2]), np.array([0])).tolist() == [[10, 83.5]]
    factors = np.array([2, 0.5, 1], F32)
    assert QuantizedEmbeddingBag(TABLE, "sum")(index, np.array([0]), factors).tolist() == [[12, 143]]
    assert repr(QuantizedEmbeddingBag(TABLE, padding_idx=-3)).endswith("mode='mean', padding_idx=0)")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor(), PerGroup(4)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_grid_gives_the_rows_of_the_decoded_table(bits: int, granularity: Any, symmetric: bool) -> None:
    weight = table(9, 8, QSpec(bits, symmetric, symmetric, granularity))
    index = RNG.integers(0, 9, (4, 3))
    np.testing.assert_array_equal(QuantizedEmbedding(weight)(index).data, weight.dequantize()[index])


# ---- training --------------------------------------------------------------------------------------------------------


def fake_quantizer(bits: int = 8, per_row: bool = True) -> WeightFakeQuantize:
    observer = PerChannelMinMaxObserver if per_row else MinMaxObserver
    half = 1 << (bits - 1)
    scheme = "per_channel_symmetric" if per_row else "per_tensor_symmetric"
    return WeightFakeQuantize(observer, -half, half - 1, dtype="qint8", qscheme=scheme)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_row", [False, True])
def test_training_computes_what_the_converted_layer_computes(bits: int, per_row: bool) -> None:
    index = RNG.integers(0, 12, (6, 5))
    for trial in range(10):
        padding_idx = None if trial % 2 else 3
        layer = nn.Embedding(12, 7, padding_idx)
        trained = QATEmbedding(layer, fake_quantizer(bits, per_row), "reference").eval()
        integers = quantize(layer.weight, trained.weight_fake_quant.weight_qparams(layer.weight))
        np.testing.assert_array_equal(trained(index).data, QuantizedEmbedding(integers)(index).data)
        for mode in ("sum", "mean"):
            bag = nn.EmbeddingBag(12, 7, mode, padding_idx=padding_idx)
            trained_bag = QATEmbeddingBag(bag, fake_quantizer(bits, per_row), "reference").eval()
            integers = quantize(bag.weight, trained_bag.weight_fake_quant.weight_qparams(bag.weight))
            converted = QuantizedEmbeddingBag(integers, mode, padding_idx=padding_idx)
            factors = RNG.standard_normal(index.shape).astype(F32) if mode == "sum" else None
            ours, theirs = (m(index, per_sample_weights=factors).data for m in (trained_bag, converted))
            np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_goes_straight_through_to_the_shared_table() -> None:
    layer = nn.Embedding(4, 3, padding_idx=1)
    trained = QATEmbedding(layer, fake_quantizer(), "reference")
    trained(np.array([2, 2, 1])).sum().backward()
    assert layer.weight.grad.tolist() == [[0] * 3, [0] * 3, [2] * 3, [0] * 3]
    bag = nn.EmbeddingBag(4, 3, "mean")
    QATEmbeddingBag(bag, fake_quantizer(), "reference")(np.array([[2, 0]])).sum().backward()
    assert bag.weight.grad.tolist() == [[0.5] * 3, [0] * 3, [0.5] * 3, [0] * 3]
    assert repr(trained).startswith("QATEmbedding(\n  4, 3, padding_idx=1, backend='reference'") or "4, 3" in repr(
        trained
    )


# ---- torch's rule ----------------------------------------------------------------------------------------------------


def test_a_real_zero_point() -> None:
    weight = np.array([[1.0, 3.0, 6.1], [2.0, 2.0, 2.0], [-1.0, 0.0, 254.0]], F32)
    scale, zero_point = float_qparams(weight, 8)
    assert scale.tolist() == [F32(F32(5.1) / F32(255)), 1, 1]
    assert zero_point.tolist() == [F32(-1 / scale[0]), -2, 1]
    rows = quantize_rows(weight)
    assert rows.int_repr().tolist() == [[0, 100, 255], [0, 0, 0], [0, 1, 255]]
    assert rows.lookup(np.array([2, 1])).tolist() == [[-1, 0, 254], [2, 2, 2]]
    assert QuantizedEmbedding(rows)(np.array([2])).tolist() == [[-1, 0, 254]]
    assert (rows.nbytes, len(rows), rows.shape) == (9 + 3 * 8, 3, (3, 3))


def test_a_zero_point_between_two_integers() -> None:
    rows = quantize_rows(np.array([[-0.5, 0.25, 254.5]], F32))  # scale 1, zero point 0.5: 0.25 is at 0.75
    assert rows.zero_point.tolist() == [0.5] and rows.int_repr().tolist() == [[0, 1, 255]]
    assert rows.lookup(np.array([0])).tolist() == [[-0.5, 0.5, 254.5]]


def test_four_bits_are_kept_in_half_a_byte_and_float16() -> None:
    rows = quantize_rows(np.array([[0.0, 1.5, 0.1, 0.7]], F32), 4)  # scale 0.1, in float16 0.0999755859375
    assert rows.int_repr().tolist() == [[0, 15, 1, 7]]
    assert rows.storage.tolist() == [0xF0, 0x71]
    assert rows.nbytes == 2 + 4
    assert rows.lookup(np.array([0])).tolist() == [[0, 1.4996337890625, 0.0999755859375, 0.6998291015625]]


def test_bags_of_torchs_table() -> None:
    rows = FloatQParamsTable(np.array([[1, 2], [3, 4]], np.uint8), np.array([0.5, 2], F32), np.array([1.5, 0], F32))
    bag = QuantizedEmbeddingBag(rows, "sum")  # rows -0.25, 0.25 and 6, 8
    assert bag(np.array([0, 1, 0]), OFFSETS).tolist() == [[5.75, 8.25], [0, 0], [-0.25, 0.25]]
    assert bag(np.array([[0, 1]]), None, np.array([[2, -1]], F32)).tolist() == [[-6.5, -7.5]]


# ---- errors ----------------------------------------------------------------------------------------------------------


def with_path(layer: Any) -> Any:
    layer.path = "encoder.words"
    return layer


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: QuantizedEmbedding(np.zeros((2, 2))), TypeError, ["QTensor", "ndarray", "quantize_rows"]),
        (lambda: QuantizedEmbedding(table(2, 2, QSpec(granularity=PerChannel(1)))), ValueError,
         ["one a row", "axis=1"]),
        (lambda: QuantizedEmbedding(table(2, 2, QSpec(granularity=PerToken()))), ValueError, ["one a row", "PerToken"]),
        (lambda: QuantizedEmbedding(table(2, 2, QSpec(16))), ValueError, ["2 to 8 bits", "int16"]),
        (lambda: QuantizedEmbedding(quantize(np.ones(3, F32), choose_qparams(0, 1, QSpec()))), ValueError, ["(3,)"]),
        (lambda: with_path(QuantizedEmbedding(TABLE))(np.array([3])), IndexError, ["'encoder.words'", "index 3"]),
        (lambda: with_path(QuantizedEmbedding(TABLE))(np.array([0.5])), TypeError, ["'encoder.words'", "float64"]),
        (lambda: with_path(QuantizedEmbedding(TABLE))(TABLE), TypeError, ["'encoder.words'", "QTensor", "behind"]),
        (lambda: QuantizedEmbeddingBag(TABLE, "max"), ValueError, ["mode", "'max'"]),
        (lambda: QuantizedEmbeddingBag(TABLE, padding_idx=3), ValueError, ["padding_idx 3", "3 rows"]),
        (lambda: with_path(QuantizedEmbeddingBag(TABLE))(np.array([0])), ValueError, ["'encoder.words'", "offsets"]),
        (lambda: QuantizedEmbeddingBag(quantize_rows(np.eye(2, dtype=F32))), ValueError,
         ["mode='mean'", "no padding_idx"]),
        (lambda: quantize_rows(np.full((1, 2), np.nan, F32)), ValueError, ["NaN", "diverge"]),
        (lambda: quantize_rows(np.array([[3e38, -3e38]], F32)), ValueError, ["scales must be positive and finite"]),
        (lambda: quantize_rows(np.eye(2, dtype=int)), TypeError, ["int64", "float32"]),
        (lambda: quantize_rows(np.eye(3, dtype=F32), 4), ValueError, ["must be even", "3"]),
        (lambda: quantize_rows(np.eye(2, dtype=F32), 3), ValueError, ["8 or 4 bits", "3"]),
        (lambda: FloatQParamsTable(np.full((1, 1), 256), np.ones(1, F32), np.ones(1, F32)), ValueError, ["0…255"]),
        (lambda: FloatQParamsTable(np.eye(2, dtype=int), np.ones(3, F32), np.ones(2, F32)), ValueError, ["(3,)"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def test_a_diverged_table_is_named_in_training() -> None:
    layer = nn.Embedding(2, 2)
    layer.weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"QATEmbedding 'words'.*1 NaN.*diverge"):
        trained = QATEmbedding(layer, fake_quantizer(), "reference")
        trained.path = "words"
        trained(Tensor(np.array([0])))
