"""QSpec, granularities and QParams: what they hold, and every way to get them wrong."""

from __future__ import annotations

import numpy as np
import pytest

from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec

TINY = float(np.finfo(np.float32).tiny)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_full_ranges(bits):
    signed, unsigned = QSpec(bits), QSpec(bits, signed=False)
    assert (signed.qmin, signed.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (unsigned.qmin, unsigned.qmax) == (0, 2**bits - 1)
    assert signed.dtype == np.dtype(f"int{8 if bits <= 8 else 16}")
    assert unsigned.dtype == np.dtype(f"uint{8 if bits <= 8 else 16}")


def test_where_a_symmetric_grid_puts_zero():
    assert QSpec(symmetric=True).symmetric_zero_point == 0
    assert QSpec(signed=False, symmetric=True).symmetric_zero_point == 128
    assert QSpec(4, signed=False, symmetric=True).symmetric_zero_point == 8
    assert QSpec(signed=False, symmetric=True, qmin=0, qmax=100).symmetric_zero_point == 50
    assert QSpec(signed=False, symmetric=True, qmin=3, qmax=100).symmetric_zero_point == 51


def test_specs_are_values():
    assert QSpec(granularity=PerGroup(32)) == QSpec(granularity=PerGroup(32), qmin=-128, qmax=127)
    assert hash(QSpec()) == hash(QSpec(8)) and QSpec() != QSpec(signed=False)


def test_a_spec_says_what_it_is():
    assert str(QSpec(4, symmetric=True, granularity=PerGroup(32))) == "int4 symmetric per group of 32"
    assert str(QSpec(signed=False, qmax=127)) == "uint8 [0…127] affine per tensor"
    assert str(QSpec(16, granularity=PerChannel())) == "int16 affine per channel"
    assert str(QSpec(granularity=PerToken())) == "int8 affine per token"
    assert repr(QParams(0.5, 3, QSpec())) == "QParams(scale=0.5, zero_point=3, int8 affine per tensor)"


# ---- granularities -----------------------------------------------------------------------------------------

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerTensor(), ()),
        (PerChannel(0), (2,)),
        (PerChannel(1), (3,)),
        (PerChannel(-1), (4,)),
        (PerGroup(2), (2, 3, 2)),
        (PerGroup(4), (2, 3, 1)),
        (PerToken(), (2, 3)),
    ],
)
def test_shapes_ranges_and_expansion(granularity, shape):
    assert granularity.qparams_shape(X.shape) == shape
    low, high = granularity.min_max(X)
    assert low.shape == high.shape == shape
    expanded_low = np.broadcast_to(granularity.expand(np.asarray(low), X.shape), X.shape)
    expanded_high = np.broadcast_to(granularity.expand(np.asarray(high), X.shape), X.shape)
    assert (expanded_low <= X).all() and (expanded_high >= X).all()
    # X has no value twice: each range is reached exactly once, in its own channel, group or token
    assert (expanded_low == X).sum() == (expanded_high == X).sum() == low.size


def test_group_size_must_divide():
    message = r"PerGroup\(3\): the group size must divide the last axis, which has 4 values.*choose a divisor"
    with pytest.raises(ValueError, match=message):
        PerGroup(3).qparams_shape((2, 4))
    with pytest.raises(ValueError, match=message):
        PerGroup(3).min_max(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="must divide the last axis, which has no values"):
        PerGroup(3).qparams_shape(())


@pytest.mark.parametrize("size", [0, -1, 2.0, "32", None, True])
def test_group_size_must_be_a_positive_integer(size):
    with pytest.raises(ValueError, match=r"PerGroup: expected a positive integer group_size, got"):
        PerGroup(size)


@pytest.mark.parametrize("axis", [2, -3])
def test_wrong_axis(axis):
    with pytest.raises(
        ValueError, match=rf"PerChannel\(axis={axis}\): a tensor of shape \(2, 4\) has axes 0 to 1; the"
    ):
        PerChannel(axis).qparams_shape((2, 4))
    with pytest.raises(ValueError, match=r"a tensor of shape \(\) has no axes"):
        PerChannel(0).qparams_shape(())
    with pytest.raises(ValueError, match="PerChannel: axis must be an integer, got '0'"):
        PerChannel("0")


def test_per_token_needs_a_row():
    with pytest.raises(ValueError, match=r"PerToken: expected a tensor with at least one axis.*use PerTensor\(\)"):
        PerToken().qparams_shape(())


# ---- QSpec: bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [-8, 0, 1, *range(9, 16), 17, 32, 8.0, 4.5, "8", None, True])
def test_bits(bits):
    with pytest.raises(ValueError, match=r"QSpec: bits must be 2 to 8, or 16; got"):
        QSpec(bits)


@pytest.mark.parametrize(("qmin", "qmax"), [(3, 3), (4, 3), (127, None), (None, -128)])
def test_qmin_must_be_below_qmax(qmin, qmax):
    with pytest.raises(ValueError, match=r"QSpec: qmin must be below qmax, got qmin=.*, qmax="):
        QSpec(qmin=qmin, qmax=qmax)


@pytest.mark.parametrize(("options", "range_"), [
    ({"qmin": -129}, r"-129…127 does not fit 8 signed bits \(-128…127\)"),
    ({"qmax": 128}, r"-128…128 does not fit 8 signed bits"),
    ({"signed": False, "qmin": -1}, r"-1…255 does not fit 8 unsigned bits \(0…255\)"),
    ({"bits": 4, "qmax": 8}, r"-8…8 does not fit 4 signed bits \(-8…7\)"),
])  # fmt: skip
def test_ranges_that_the_bits_cannot_hold(options, range_):
    with pytest.raises(ValueError, match=f"QSpec: {range_}"):
        QSpec(**options)


@pytest.mark.parametrize("value", [1.5, "1", np.float32(2)])
def test_ranges_are_integers(value):
    with pytest.raises(TypeError, match="QSpec: qmin must be an integer, got"):
        QSpec(qmin=value)
    with pytest.raises(TypeError, match="QSpec: qmax must be an integer, got"):
        QSpec(qmax=value)


def test_a_symmetric_grid_needs_zero():
    with pytest.raises(ValueError, match="a symmetric signed grid needs 0 inside 1…10"):
        QSpec(symmetric=True, qmin=1, qmax=10)


@pytest.mark.parametrize("granularity", [PerTensor, "per_tensor", None, 32])
def test_granularity_must_be_one(granularity):
    with pytest.raises(TypeError, match=r"QSpec: granularity must be PerTensor\(\), PerChannel\(axis\)"):
        QSpec(granularity=granularity)


# ---- QParams: bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, TINY / 2, 1e-45, 1e-50])
def test_scales_that_are_no_scales(scale):
    with pytest.raises(ValueError, match=r"QParams: a scale must be positive, finite and at least 2\^-126.*got"):
        QParams(scale, 0, QSpec())


def test_the_smallest_scale_is_allowed():
    assert QParams(TINY, 0, QSpec()).scale == np.float32(TINY)


def test_how_many_scales_are_bad():
    with pytest.raises(ValueError, match=r"got .*0\.0.* and 1 more"):
        QParams(np.array([0, 1, -1]), np.zeros(3, int), QSpec(granularity=PerChannel()))


@pytest.mark.parametrize(("zero_point", "spec"), [(128, QSpec()), (-129, QSpec()), (-1, QSpec(signed=False)),
                                                  (8, QSpec(4)), (100, QSpec(qmax=99)), (2**40, QSpec())])  # fmt: skip
def test_zero_point_outside_the_grid(zero_point, spec):
    message = rf"QParams: the zero point must lie on the grid {spec.qmin}…{spec.qmax}, so that real 0 is exact; got"
    with pytest.raises(ValueError, match=f"{message} {zero_point}"):
        QParams(1.0, zero_point, spec)


@pytest.mark.parametrize("zero_point", [0.0, np.float32(3), True, "0"])
def test_zero_point_must_be_integers(zero_point):
    with pytest.raises(TypeError, match="QParams: zero_point must be integers, got"):
        QParams(1.0, zero_point, QSpec())


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"scale has shape \(3,\) and zero_point \(2,\); they must be equal"):
        QParams(np.ones(3), np.zeros(2, int), QSpec(granularity=PerChannel()))
    with pytest.raises(ValueError, match=r"PerTensor\(\) has 0-d scales, got shape \(3,\); use PerChannel\(axis\)"):
        QParams(np.ones(3), np.zeros(3, int), QSpec())
    with pytest.raises(ValueError, match=r"PerChannel\(axis=0\) has 1-d scales, got shape \(\)"):
        QParams(1.0, 0, QSpec(granularity=PerChannel()))
    with pytest.raises(ValueError, match=r"a tensor of shape \(4, 2\).*needs scales of shape \(4,\), got \(3,\)"):
        QParams(np.ones(3), 0, QSpec(granularity=PerChannel())).expand((4, 2))


def test_one_zero_point_serves_all_channels():
    qparams = QParams(np.ones(3), 0, QSpec(granularity=PerChannel()))
    assert qparams.zero_point.shape == (3,) and qparams.zero_point.dtype == np.int32
    assert qparams.scale.dtype == np.float32
