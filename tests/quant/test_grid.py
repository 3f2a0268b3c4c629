"""The arithmetic of the grid: closed forms, the error bound, and adversarial values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minquant import Tensor, nn
from minquant.quant import (
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    QSpec,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)

F32 = np.float32
EPS = F32(2.0**-23)
INT8, UINT8 = QSpec(), QSpec(signed=False)
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(-1), PerGroup(2), PerToken()]


def grid_of(x: np.ndarray, spec: QSpec) -> QParams:
    return choose_qparams(*spec.granularity.min_max(x), spec)


# ---- choosing a grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "spec", "scale", "zero_point"),
    [
        (0, 255, UINT8, 1, 0),
        (-255, 0, UINT8, 1, 255),
        (-1, 254, UINT8, 1, 1),
        (-128, 127, INT8, 1, 0),
        (2, 255, UINT8, 1, 0),  # the range is stretched to real 0
        (-255, -2, INT8, 1, 127),
        (-0.5, 254.5, UINT8, 1, 0),  # rint(-0.5) is 0: half to even
        (-1.5, 253.5, UINT8, 1, 2),
        (0, 3, QSpec(2, signed=False), 1, 0),
        (-5, 10, QSpec(4, signed=False), 1, 5),
        (0, 65535, QSpec(16, signed=False), 1, 0),
        (-10, 10, QSpec(qmin=-10, qmax=10), 1, 0),
        (-127.5, 100, QSpec(symmetric=True), 1, 0),
        (-1, 127.5, QSpec(symmetric=True), 1, 0),
        (3, 7.5, QSpec(4, symmetric=True), 1, 0),
        (0, 1.5, QSpec(2, symmetric=True), 1, 0),
        (-127.5, 0, QSpec(signed=False, symmetric=True), 1, 128),
        (0, 0, UINT8, EPS, 0),
        (0, 0, INT8, EPS, -128),
        (1e-40, 1e-40, QSpec(symmetric=True), EPS, 0),
    ],
)
def test_closed_forms(low, high, spec, scale, zero_point):
    qparams = choose_qparams(low, high, spec)
    assert (qparams.scale, qparams.zero_point, qparams.spec) == (F32(scale), zero_point, spec)
    assert qparams.scale.dtype == F32 and qparams.zero_point.dtype == np.int32


END = st.floats(-(2.0**100), 2.0**100, width=32)


@given(ends=st.tuples(END, END), signed=st.booleans(), bits=st.sampled_from([2, 3, 4, 8, 16]))
@settings(max_examples=100, deadline=None)
def test_scale_is_the_rounded_quotient(ends, signed, bits):
    low, high = sorted(ends)
    spec = QSpec(bits, signed)
    lo, hi = min(Fraction(low), Fraction(0)), max(Fraction(high), Fraction(0))
    width = Fraction(float(F32(float(hi) - float(lo))))  # float64 holds the difference of two float32 well enough
    expected = max(F32(float(width / (2**bits - 1))), EPS)
    qparams = choose_qparams(low, high, spec)
    assert qparams.scale == expected
    exact = spec.qmin - float(lo) / float(expected)
    assert abs(np.clip(exact, spec.qmin, spec.qmax) - qparams.zero_point) <= 0.5 + 2.0 ** (bits - 23)


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.inf), (-np.inf, np.inf), (np.nan, np.nan)])
def test_ranges_must_be_finite(low, high):
    with pytest.raises(ValueError, match="choose_qparams: a range must be finite, got"):
        choose_qparams(low, high, INT8)


def test_ranges_must_be_in_order():
    with pytest.raises(ValueError, match="x_min must not exceed x_max, got 1.0 … 0.5"):
        choose_qparams(1, 0.5, INT8)


def test_a_range_wider_than_float32():
    with pytest.raises(ValueError, match="a scale must be positive, finite.*got inf"):
        choose_qparams(-3e38, 3e38, INT8)
    assert np.isfinite(choose_qparams(-3e38, 3e38, QSpec(symmetric=True)).scale)


# ---- the error bound -------------------------------------------------------------------------------------------------


def values(max_side: int = 6) -> st.SearchStrategy[np.ndarray]:
    """Matrices with an even number of columns: ordinary, tiny, denormal and huge values, ±0, one sign or both."""
    shapes = st.tuples(st.integers(1, max_side), st.integers(1, max_side // 2).map(lambda k: 2 * k))
    ordinary = st.floats(-100, 100, width=32)
    any_size = st.floats(-(2.0**120), 2.0**120, width=32)
    special = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, 2.0**-130, -(2.0**-149), 127.5, 2.0**120])
    elements = st.one_of(ordinary, any_size, special)
    signs = st.sampled_from([lambda x: x, np.abs, lambda x: -np.abs(x), lambda x: np.full_like(x, x.flat[0])])
    return st.builds(lambda x, f: f(x), hnp.arrays(F32, shapes, elements=elements), signs)


SPECS = st.builds(
    lambda bits, signed, symmetric, granularity: QSpec(bits, signed, symmetric, granularity),
    st.sampled_from([2, 3, 4, 5, 8, 16]), st.booleans(), st.booleans(), st.sampled_from(GRANULARITIES),
)  # fmt: skip


@given(x=values(), spec=SPECS)
@settings(max_examples=150, deadline=None)
def test_every_value_is_at_most_half_a_step_away(x, spec):
    qparams = grid_of(x, spec)
    q = quantize(x, qparams)
    scale, zero_point = (np.broadcast_to(a, x.shape).astype(np.float64) for a in qparams.expand(x.shape))
    error = np.abs(x.astype(np.float64) - dequantize(q))
    # f(x·f(1/s)) is off by 2·2⁻²⁴ of itself, at most 2^bits; the scale and x̂ itself are rounded once.
    bound = scale * (0.5 + 2.0 ** (spec.bits - 22)) + 2.0**-23 * np.abs(x)
    assert (error <= bound).all()
    # real 0 is exact
    assert (dequantize(quantize(np.zeros_like(x), qparams)) == 0).all()
    assert q.int_repr().min() >= spec.qmin and q.int_repr().max() <= spec.qmax
    assert ((spec.qmin <= zero_point) & (zero_point <= spec.qmax)).all()


@given(x=values(), spec=SPECS)
@settings(max_examples=100, deadline=None)
def test_quantizing_again_changes_nothing(x, spec):
    qparams = grid_of(x, spec)
    q = quantize(x, qparams)
    assert np.array_equal(quantize(dequantize(q), qparams).int_repr(), q.int_repr())
    assert np.array_equal(fake_quantize(x, qparams), dequantize(q))


@given(x=values(), spec=SPECS)
@settings(max_examples=60, deadline=None)
def test_neighbours_of_a_value_keep_their_order(x, spec):
    qparams = grid_of(x, QSpec(spec.bits, spec.signed, spec.symmetric))
    ordered = np.sort(x.reshape(-1))
    assert (np.diff(quantize(ordered, qparams).int_repr().astype(np.int64)) >= 0).all()


# ---- quantize --------------------------------------------------------------------------------------------------------


def test_ties_go_to_even_before_the_zero_point_is_added():
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], F32)
    for zero_point in (0, 1, 7):
        q = quantize(x, QParams(1.0, zero_point, INT8)).int_repr()
        assert (q - zero_point).tolist() == [-2, -2, 0, 0, 2, 2]


def test_special_values():
    x = np.array([0.0, -0.0, 1e-45, -1e-40, 1e38, -3e38, np.inf, -np.inf], F32)
    q = quantize(x, QParams(0.1, 3, UINT8)).int_repr()
    assert q.tolist() == [3, 3, 3, 3, 255, 0, 255, 0] and q.dtype == np.uint8
    tiny = QParams(np.finfo(F32).tiny, 0, INT8)  # the reciprocal is near the largest float32
    assert quantize(np.array([1e-38, 3e38, -3e38, 0], F32), tiny).int_repr().tolist() == [1, 127, -128, 0]


def test_constants_survive():
    for c in (2.0, -2.0, 1e-3, -7e5):
        x = np.full((3, 4), c, F32)
        for spec in (UINT8, INT8, QSpec(2), QSpec(symmetric=True)):
            scale = grid_of(x, spec).scale
            worst = np.abs(dequantize(quantize(x, grid_of(x, spec))) - x).max()
            assert worst <= (scale / 2 * 1.0001 if spec.symmetric else abs(c) * 2.0**-22)


def test_each_channel_has_its_own_scale():
    x = np.array([[1, -2, 0.5], [100, 50, -25], [0, 0, 0.001]], F32)
    spec = QSpec(symmetric=True, granularity=PerChannel())
    qparams = grid_of(x, spec)
    assert qparams.scale.tolist() == [F32(a) / F32(127.5) for a in (2, 100, F32(0.001))]
    assert grid_of(x.T, QSpec(symmetric=True, granularity=PerChannel(1))).scale.tolist() == qparams.scale.tolist()
    error = np.abs(dequantize(quantize(x, qparams)) - x).max(axis=1)
    assert (error <= np.array([2, 100, 0.001]) / 127.5 * 0.5001).all()
    groups = grid_of(x.reshape(1, 9), QSpec(symmetric=True, granularity=PerGroup(3)))
    assert groups.scale.tolist() == [qparams.scale.tolist()]
    assert grid_of(x, QSpec(symmetric=True, granularity=PerToken())).scale.tolist() == qparams.scale.tolist()


def test_nan_is_refused_with_a_count():
    x = np.array([1, np.nan, np.nan, np.inf], F32)
    for function in (quantize, fake_quantize):
        with pytest.raises(ValueError, match="quantize: 2 of 4 values are NaN.*find where they come from"):
            function(x, QParams(1.0, 0, INT8))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_empty_tensors(granularity, shape):
    scale = np.ones(granularity.qparams_shape(shape), F32)
    qparams = QParams(scale, np.zeros(scale.shape, int), QSpec(granularity=granularity))
    q = quantize(np.ones(shape, F32), qparams)
    assert q.shape == dequantize(q).shape == fake_quantize(np.ones(shape, F32), qparams).shape == shape


@pytest.mark.parametrize("dtype", [np.int8, np.int64, bool, object])
def test_floats_only(dtype):
    with pytest.raises(TypeError, match=r"quantize: expected floating point values.*\.astype\(np.float32\)"):
        quantize(np.ones(3, dtype), QParams(1.0, 0, INT8))
    with pytest.raises(TypeError, match="fake_quantize: expected floating point values"):
        fake_quantize(np.ones(3, dtype), QParams(1.0, 0, INT8))
    if dtype is not object:
        with pytest.raises(TypeError, match="fake_quantize: expected floating point values"):
            fake_quantize(Tensor(np.ones(3, dtype)), QParams(1.0, 0, INT8))


def test_any_strides_and_float64():
    x = np.random.default_rng(0).standard_normal((6, 8))
    qparams = grid_of(x.astype(F32), INT8)
    expected = quantize(x.astype(F32), qparams).int_repr()
    assert np.array_equal(quantize(x, qparams).int_repr(), expected)
    assert np.array_equal(quantize(x.T, qparams).int_repr(), expected.T)
    assert np.array_equal(quantize(x[::-2, ::3], qparams).int_repr(), expected[::-2, ::3])
    assert np.array_equal(quantize(Tensor(x.astype(F32)), qparams).int_repr(), expected)


def test_shape_must_fit():
    per_channel = QParams(np.ones(3), 0, QSpec(granularity=PerChannel()))
    with pytest.raises(ValueError, match=r"a tensor of shape \(2, 3\).*needs scales of shape \(2,\), got \(3,\)"):
        quantize(np.ones((2, 3), F32), per_channel)
    with pytest.raises(ValueError, match="group size must divide the last axis, which has 5 values"):
        quantize(np.ones((2, 5), F32), QParams(np.ones((2, 1)), 0, QSpec(granularity=PerGroup(4))))
    with pytest.raises(ValueError, match="has axes 0 to 1"):
        quantize(np.ones((2, 5), F32), QParams(np.ones(2), 0, QSpec(granularity=PerChannel(2))))


# ---- the straight-through gradient -----------------------------------------------------------------------------------


def mask(x: np.ndarray, qparams: QParams, *range_: object) -> list[float]:
    """The gradient of Σ fake_quantize(x)."""
    tensor = Tensor(np.asarray(x, F32), requires_grad=True)
    out = fake_quantize(tensor, qparams, *range_)
    assert out.qparams is qparams
    assert np.array_equal(out.data, fake_quantize(tensor.data, qparams))
    out.sum().backward()
    return tensor.grad.data.tolist()


def beyond(x: float) -> np.ndarray:
    """The next float32 away from 0."""
    return np.nextafter(F32(x), F32(np.inf if x > 0 else -np.inf))


def test_symmetric_gradient_passes_up_to_amax_and_not_one_ulp_more():
    amax = F32(0.7)
    qparams = choose_qparams(-0.3, amax, QSpec(symmetric=True))
    assert quantize(np.array([amax]), qparams).int_repr() == 127  # clipped: rint(127.5) is 128
    x = np.array([amax, beyond(0.7), -amax, beyond(-0.7), 0, -0.0])
    assert mask(x, qparams, F32(-0.3), amax) == [1, 0, 1, 0, 1, 1]
    # torch's rule, without a range, freezes the largest value
    assert mask(x[[0, 2]], qparams) == [0, 1]


def test_affine_gradient_passes_on_the_observed_range_with_zero():
    low, high = F32(-0.25), F32(1.3)
    qparams = choose_qparams(low, high, UINT8)
    x = np.array([low, beyond(low), high, beyond(high), 0])
    assert mask(x, qparams, low, high) == [1, 0, 1, 0, 1]
    positive = choose_qparams(0.5, 1.3, UINT8)  # the range is stretched to 0
    assert mask([0, -1e-30, 0.2, 1.3], positive, F32(0.5), high) == [1, 0, 1, 1]


def test_gradient_without_a_range_passes_where_nothing_is_clipped():
    qparams = QParams(1.0, 10, UINT8)
    assert mask([-10.5, -10.6, -10, 245, 245.4, 245.6], qparams) == [1, 0, 1, 1, 1, 0]


def test_gradient_per_channel_and_per_group():
    x = np.array([[1, -2, 3, -4], [10, 20, -30, 40]], F32)
    for granularity in (PerChannel(0), PerGroup(2), PerToken()):
        spec = QSpec(4, symmetric=True, granularity=granularity)
        range_ = granularity.min_max(x)
        qparams = choose_qparams(*range_, spec)
        assert mask(x, qparams, *range_) == [[1] * 4] * 2
        amax = np.broadcast_to(granularity.expand(np.maximum(-range_[0], range_[1]), x.shape), x.shape)
        expected = (np.abs(x * F32(1.5)) <= amax).astype(float).tolist()
        assert mask(x * F32(1.5), qparams, *range_) == expected


def test_gradients_are_scaled_by_what_comes_in():
    p = nn.Parameter(np.array([0.3, 5.0], F32))
    (fake_quantize(p, QParams(0.1, 0, QSpec(4)), F32(-1), F32(1)) * np.array([3.0, 7.0], F32)).sum().backward()
    assert p.grad.data.tolist() == [3, 0]
