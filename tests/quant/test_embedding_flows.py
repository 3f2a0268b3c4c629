"""Embeddings in the flows: tables of integers in dynamic, static and trained models, saved, and reported."""

from __future__ import annotations

import numpy as np
import pytest

import minquant
from minquant import nn
from minquant.quant import (
    QATEmbedding,
    QATEmbeddingBag,
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
    report,
)
from minquant.quant.dialects.float_qparams import FloatQParamsTable

TOKENS = np.random.default_rng(0).integers(0, 20, (6, 5))


def model(bag: bool = False) -> nn.Sequential:
    minquant.manual_seed(0)
    table = nn.EmbeddingBag(20, 8, mode="sum") if bag else nn.Embedding(20, 8)
    head = nn.Linear(8, 3) if bag else nn.Sequential(nn.Flatten(), nn.Linear(40, 3))
    return nn.Sequential(table, QuantWrapper(head))


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("backend", ["reference", "x86"])
def test_dynamic(bag, backend):
    dynamic = quantize_dynamic(model(bag), default_dynamic_qconfig(backend))
    assert type(dynamic[0]) is (QuantizedEmbeddingBag if bag else QuantizedEmbedding)
    assert isinstance(dynamic[0].weight, FloatQParamsTable) == (backend == "x86")
    expected = model(bag)(TOKENS).data
    assert np.abs(dynamic(TOKENS).data - expected).max() <= 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_prepared_equals_converted(bag, bits):
    prepared = prepare_qat(model(bag), get_default_qat_qconfig(weight_bits=bits))
    assert type(prepared[0]) is (QATEmbeddingBag if bag else QATEmbedding)
    (prepared(TOKENS) ** 2).sum().backward()
    assert prepared[0].weight.grad is not None
    prepared.eval()
    converted = convert(prepared)
    assert isinstance(converted[0], QuantizedEmbedding)
    assert (prepared(TOKENS).data != converted(TOKENS).data).sum() == 0


def test_static():
    prepared = prepare(model(), get_default_qconfig())
    prepared(TOKENS)
    converted = convert(prepared)
    assert np.array_equal(converted[0].weight.qparams.scale.shape, (20,))
    expected = model()(TOKENS).data
    assert np.abs(converted(TOKENS).data - expected).max() <= 0.05 * np.abs(expected).max()


def test_torchs_engines_do_not_train_tables():
    prepared = prepare_qat(model(), get_default_qat_qconfig("x86"))
    assert type(prepared[0]) is nn.Embedding
    note = report(prepared).rows[0]["note"]
    assert note == "stays in float: x86 does not train tables on the grid that it converts them to"


def test_the_report():
    row = report(quantize_dynamic(model())).rows[0]
    assert (row["kind"], row["weight"]) == ("QuantizedEmbedding", "int8 symmetric per channel")
    assert (row["bytes_before"], row["bytes_after"]) == (20 * 8 * 4, 20 * 8 + 20 * 4)
    torchs = report(quantize_dynamic(model(), default_dynamic_qconfig("qnnpack"))).rows[0]
    assert (torchs["weight"], torchs["bytes_after"]) == ("uint8 affine per row, real z", 20 * 8 + 20 * 8)
    planned = report(prepare_qat(model(), get_default_qat_qconfig(weight_bits=4))).rows[0]
    assert planned["bytes_after"] == 20 * 4 + 20 * 4


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("backend", ["reference", "x86", "float"])
def test_saved_and_loaded(tmp_path, bag, backend):
    saved = model(bag).eval() if backend == "float" else quantize_dynamic(model(bag), default_dynamic_qconfig(backend))
    minquant.save(saved, tmp_path / "model")
    loaded = minquant.load(tmp_path / "model")
    assert repr(loaded) == repr(saved)
    assert np.array_equal(loaded(TOKENS).data, saved(TOKENS).data)


def test_a_bag_that_torchs_kernel_would_sum_anyway():
    means = nn.Sequential(nn.EmbeddingBag(20, 8, mode="mean"))
    with pytest.raises(ValueError, match="torch's kernel sums all rows of a bag, got mode='mean'"):
        quantize_dynamic(means, default_dynamic_qconfig("x86"))
    assert isinstance(quantize_dynamic(means)[0], QuantizedEmbeddingBag)
