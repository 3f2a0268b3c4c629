"""Embeddings against torch: the checks, its modules, and what it does in silence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq

from minquant.crosscheck.checks.embedding import CHECKS
from minquant.crosscheck.quiet import one_thread, quiet
from minquant.crosscheck.suite import run_check
from minquant.quant.dialects.float_qparams import quantize_rows
from minquant.quant.embedding import QuantizedEmbedding, QuantizedEmbeddingBag

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((20, 8)).astype(np.float32)
INDEX = RNG.integers(0, 20, 30)
OFFSETS = np.array([0, 4, 4, 17])


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with one_thread(torch), quiet(torch):
        yield


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_checks_are_met(check) -> None:
    result = run_check(check, seed=20, quick=True)
    assert result.ok, (result.error, result.failure)


def quantized_by_torch(kind: str, **options: str) -> torch.nn.Module:
    layer = getattr(torch.nn, kind)(20, 8, **options)
    layer.weight.data[:] = torch.from_numpy(WEIGHT)
    layer.qconfig = tq.float_qparams_weight_only_qconfig
    return getattr(nnq, kind).from_float(layer)


def test_modules_are_torchs_modules() -> None:
    rows = quantize_rows(WEIGHT)
    theirs = quantized_by_torch("Embedding")(torch.from_numpy(INDEX))
    np.testing.assert_array_equal(QuantizedEmbedding(rows)(INDEX).data, theirs.numpy())
    theirs = quantized_by_torch("EmbeddingBag", mode="sum")(torch.from_numpy(INDEX), torch.from_numpy(OFFSETS))
    np.testing.assert_array_equal(QuantizedEmbeddingBag(rows, "sum")(INDEX, OFFSETS).data, theirs.numpy())


def test_torch_2_13_sums_where_a_mean_was_asked_for_and_minquant_refuses() -> None:
    bags = torch.from_numpy(INDEX), torch.from_numpy(OFFSETS)
    mean, total = (quantized_by_torch("EmbeddingBag", mode=mode)(*bags) for mode in ("mean", "sum"))
    np.testing.assert_array_equal(mean.numpy(), total.numpy())
    with pytest.raises(ValueError, match="sums all rows"):
        QuantizedEmbeddingBag(quantize_rows(WEIGHT), "mean")
