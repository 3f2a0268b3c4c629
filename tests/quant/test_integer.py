"""The zero-point algebra: exact against 64-bit sums of (qx - zx)(qw - zw)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant.quant.integer import accumulate


def direct(qx, zx, qw, zw):
    """Σₖ (qx - zx)(qw - zw) as it stands, in int64."""
    zw = np.reshape(zw, (-1, 1)) if np.ndim(zw) else zw
    return (qx.astype(np.int64) - zx) @ (qw.astype(np.int64) - zw).T


@given(m=st.integers(0, 5), n=st.integers(1, 5), k=st.integers(1, 40), x_type=st.sampled_from(["int8", "uint8"]),
       w_type=st.sampled_from(["int8", "uint8"]), per_row=st.booleans(), per_channel=st.booleans(),
       symmetric=st.booleans(), extreme=st.booleans(), seed=st.integers(0, 999))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_exact(m, n, k, x_type, w_type, per_row, per_channel, symmetric, extreme, seed):
    rng = np.random.default_rng(seed)

    def draw(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        info = np.iinfo(dtype)
        choice = rng.choice([info.min, info.max], shape) if extreme else rng.integers(info.min, info.max + 1, shape)
        return choice.astype(dtype)

    qx, qw = draw(x_type, (m, k)), draw(w_type, (n, k))
    zx = draw(x_type, (m, 1) if per_row else ()).astype(np.int32)
    zw = np.int32(0) if symmetric else draw(w_type, (n,) if per_channel else ()).astype(np.int32)
    acc = accumulate(qx, zx, qw, zw)
    assert acc.dtype == np.int32 and acc.shape == (m, n)
    assert np.array_equal(acc, direct(qx, zx, qw, zw))


def test_terms_may_wrap_where_their_sum_does_not():
    qx, qw = np.full((1, 33000), 255, np.uint8), np.full((2, 33000), 127, np.int8)
    qw[1] = -128
    zx, zw = np.int32(127), np.array([-128, 127], np.int32)
    expected = direct(qx, zx, qw, zw)
    assert np.abs(expected).max() > 2**30 and 33000 * 127 * 128 * 255 > 2**31
    assert np.array_equal(accumulate(qx, zx, qw, zw), expected)


def test_sums_beyond_24_bits_keep_their_last_bit():
    qx, qw = np.full((1, 1001), 255, np.uint8), np.full((1, 1001), 127, np.int8)
    expected = 1001 * 255 * 127  # odd, and above 2²⁴: no float32
    assert expected > 2**24 and expected % 2 == 1
    assert accumulate(qx, np.int32(0), qw, np.int32(0)).tolist() == [[expected]]


def test_the_last_safe_k_and_the_first_that_is_not():
    # |qx - zx| ≤ 255 and |qw - zw| ≤ 128: K ≤ (2³¹ - 1) / 32640 = 65793
    qx, qw = np.full((1, 65793), 255, np.uint8), np.full((1, 65793), -128, np.int8)
    assert accumulate(qx, np.int32(0), qw, np.int32(0)) == -255 * 128 * 65793
    with pytest.raises(
        ValueError, match=r"could overflow: K = 65794.*at most K = 65793 is safe; split the layer along K"
    ):
        accumulate(np.zeros((1, 65794), np.uint8), np.int32(0), np.zeros((1, 65794), np.int8), np.int32(0))
    # a zero point at the end of the weight's grid doubles its reach: 255 · 255
    with pytest.raises(ValueError, match="products reach 65025, so at most K = 33025 is safe"):
        accumulate(np.zeros((1, 33026), np.uint8), np.int32(0), np.zeros((1, 33026), np.int8), np.int32(127))


def test_empty_batch():
    empty = np.zeros((0, 3), np.uint8)
    assert accumulate(empty, np.zeros((0, 1), np.int32), np.ones((2, 3), np.int8), np.int32(0)).shape == (0, 2)
