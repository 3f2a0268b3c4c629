"""Packed integers taken back to real values in one pass: the same bits as in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import minquant.kernels.cpu  # noqa: F401 (from here on numba is loaded, and small work is compiled, too)
from minquant.kernels import threads
from minquant.quant import PerChannel, PerGroup, PerTensor, QParams, QSpec, QTensor
from minquant.quant.grid import to_real

GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(16), PerGroup(1)]  # the last: no whole bytes


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dequantize(bits, signed, granularity, monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    rng = np.random.default_rng(bits)
    spec, shape = QSpec(bits, signed, granularity=granularity), (6, 48)
    few = granularity.qparams_shape(shape)
    zero_points = rng.integers(spec.qmin, spec.qmax + 1, few).astype(np.int32)
    grid = QParams((rng.random(few) + 0.1).astype(np.float32), zero_points, spec)
    weight = QTensor(rng.integers(spec.qmin, spec.qmax + 1, shape), grid)
    np.testing.assert_array_equal(weight.dequantize(), to_real(weight.int_repr(), grid), strict=True)


def test_nothing_is_nothing():
    grid = QParams(np.ones(0, np.float32), np.zeros(0, np.int32), QSpec(4, granularity=PerChannel(0)))
    assert QTensor(np.zeros((0, 4), np.int8), grid).dequantize().shape == (0, 4)
