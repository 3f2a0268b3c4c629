"""The error-optimal scale: against every choice of integers, against many scales, and what it refuses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QSpec, choose_qparams, fake_quantize
from minquant.quant.optimal_scale import optimal_qparams

weights = st.lists(st.floats(-4, 4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3), min_size=1, max_size=4)


PER_TENSOR = PerTensor()


def spec(bits: int, granularity=PER_TENSOR) -> QSpec:
    return QSpec(bits, symmetric=True, granularity=granularity)


def error(w: np.ndarray, scale: float, of: QSpec) -> float:
    w = w.astype(np.float64)
    return float(np.square(w - scale * np.clip(np.rint(w / scale), of.qmin, of.qmax)).sum())


def least_of_all_integers(w: np.ndarray, of: QSpec) -> float:
    """The least error that any integers at their own best scale have, by trying all of them."""
    w = w.astype(np.float64)
    q = np.array(list(product(range(of.qmin, of.qmax + 1), repeat=len(w))), np.float64)
    a, b = q @ w, np.square(q).sum(axis=1)
    gain = np.where((a > 0) & (b > 0), a * a / np.maximum(b, 1), 0)  # a < 0: the scale would be negative
    return float(np.square(w).sum() - gain.max())


@given(weights, st.sampled_from([2, 3]))
def test_no_integers_at_any_scale_lose_less(values, bits):
    w, of = np.array(values, np.float32), spec(bits)
    found, least = error(w, float(optimal_qparams(w, of).scale), of), least_of_all_integers(w, of)
    # The scale is rounded to float32, by at most 2^-24 of itself: see the function's text. What is left is float64's.
    bound = np.square(w.astype(np.float64)).sum() * (2.0**-48 + 2.0**-49)
    assert least - bound <= found <= least + bound


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_scale_of_many_loses_less(bits):
    w, of = np.random.default_rng(bits).standard_normal(200).astype(np.float32), spec(bits)
    best = float(optimal_qparams(w, of).scale)
    tried = min(error(w, scale, of) for scale in best * np.geomspace(0.2, 5, 4000))
    assert error(w, best, of) <= tried * (1 + 2.0**-48)
    observed = choose_qparams(w.min(), w.max(), of)
    assert error(w, best, of) < error(w, float(observed.scale), of)


def test_each_channel_and_group_has_its_own():
    w = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32) * np.float32([[1], [10], [0]])
    channels = optimal_qparams(w, spec(4, PerChannel(0)))
    assert channels.scale.tolist() == [float(optimal_qparams(row, spec(4)).scale) for row in w]
    assert channels.scale[2] == np.float32(2.0**-23)  # all zeros
    groups = optimal_qparams(w, spec(4, PerGroup(4)))
    assert groups.scale[1, 1] == optimal_qparams(w[1, 4:], spec(4)).scale and groups.scale.shape == (3, 2)
    assert np.array_equal(fake_quantize(w[2], optimal_qparams(w[2], spec(4))), np.zeros(8))


def test_both_ends_are_used():
    w = np.array([-0.75, -0.375, 0.375], np.float32)
    assert optimal_qparams(w, spec(2)).scale == np.float32(0.375)  # -2, -1, 1
    assert optimal_qparams(-w, spec(2)).scale == np.float32(0.5)  # 1, 1, -1: (0.75 + 0.375 + 0.375) / 3


def test_what_is_refused():
    w = np.ones((2, 4), np.float32)
    for of, words in (
        (QSpec(4), "symmetric signed grid, got int4 affine"),
        (QSpec(4, signed=False, symmetric=True), "symmetric signed grid"),
        (spec(4, PerChannel(1)), "PerChannel"),
        (spec(4, PerToken()), "PerToken"),
    ):
        with pytest.raises(ValueError, match=words):
            optimal_qparams(w, of)
    with pytest.raises(ValueError, match="1 NaN and 0 infinite"):
        optimal_qparams(np.array([1, np.nan], np.float32), spec(4))
    with pytest.raises(TypeError, match="float"):
        optimal_qparams(np.ones(2, np.int32), spec(4))
