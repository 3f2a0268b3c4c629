from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

import minquant.quant as quant
from minquant import Tensor
from minquant.quant import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannel,
    PerChannelMinMaxObserver,
    PerTensor,
    QSpec,
    choose_qparams,
)
from minquant.quant import histogram as h

F32 = np.float32
PER_TENSOR = (MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver)
PER_CHANNEL = (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
MOVING = (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver)


def f32(*values):
    return np.array(values, F32)


def observed(observer, *batches):
    for batch in batches:
        observer(np.asarray(batch, F32))
    return observer


def assert_qparams(observer, scale, zero_point):
    s, z = observer.calculate_qparams()
    assert s.dtype == F32 and z.dtype == np.int32
    np.testing.assert_array_equal(s, np.asarray(scale, F32), strict=True)
    np.testing.assert_array_equal(z, np.asarray(zero_point, np.int32), strict=True)


# ---- recorded answers of torch -------------------------------------------------------------------------------

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "observers.npz")
CASES = json.loads(str(GOLDEN["cases"]))


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i]['observer']}-{CASES[i]['data']}")
def test_equals_the_recorded_answers_of_torch(i):
    case = CASES[i]
    observer = getattr(quant, case["observer"])(**case["arguments"])
    batches = [key for key in GOLDEN.files if key.startswith(f"data/{case['data']}/")]
    for key in batches:
        observer(GOLDEN[key])
    assert batches
    np.testing.assert_array_equal(observer.min_val.data, F32(case["min_val"]))
    np.testing.assert_array_equal(observer.max_val.data, F32(case["max_val"]))
    if case["observer"] == "HistogramObserver":
        np.testing.assert_array_equal(observer.histogram.data, GOLDEN[f"histogram/{i}"])
    assert_qparams(observer, case["scale"], case["zero_point"])


# ---- closed forms --------------------------------------------------------------------------------------------


def test_min_max_affine_keeps_the_extremes_of_all_batches():
    observer = observed(MinMaxObserver(), [0.5, 2.0], [-1.0, 0.0], [[1.5]])
    assert observer.min_val.data == -1 and observer.max_val.data == 2
    assert_qparams(observer, F32(3) / F32(255), 85)


def test_range_is_extended_to_zero_on_either_side():
    assert_qparams(observed(MinMaxObserver(), [1.0, 255.0]), 1.0, 0)
    assert_qparams(observed(MinMaxObserver(), [-255.0, -1.0]), 1.0, 255)
    assert_qparams(observed(MinMaxObserver("qint8"), [1.0, 255.0]), 1.0, -128)


@pytest.mark.parametrize(("low", "zero_point"), [(-0.5, 0), (-1.5, 2), (-2.5, 2), (-3.5, 4)])
def test_zero_point_rounds_half_to_even(low, zero_point):
    assert_qparams(observed(MinMaxObserver(), [low, 255 + low]), 1.0, zero_point)


@pytest.mark.parametrize(("low", "high", "zero_point"), [(-7.875, 7.875, 128), (-20.125, 100.625, 42)])
def test_zero_point_divides_by_the_scale(low, high, zero_point):
    # multiplying by the rounded reciprocal gives 127 and 43
    assert_qparams(observed(MinMaxObserver(), [low, high]), (F32(high) - F32(low)) / F32(255), zero_point)


@pytest.mark.parametrize(
    ("arguments", "steps", "zero_point"),
    [
        ({"dtype": "qint8"}, 255, 0),
        ({"dtype": "quint8"}, 255, 128),
        ({"dtype": "qint8", "reduce_range": True}, 127, 0),
        ({"dtype": "qint8", "quant_min": -127, "quant_max": 127}, 254, 0),
        ({"dtype": "qint8", "quant_min": -8, "quant_max": 7}, 15, 0),
        ({"dtype": "quint8", "quant_min": 0, "quant_max": 15}, 15, 7),
        ({"dtype": "quint8", "quant_min": 0, "quant_max": 255}, 255, 127),
    ],
)
def test_symmetric_scale_divides_the_amax_by_half_the_steps(arguments, steps, zero_point):
    observer = observed(MinMaxObserver(qscheme="per_tensor_symmetric", **arguments), [-3.0, 1.0])
    assert_qparams(observer, F32(3) / F32(steps / 2), zero_point)


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        ({}, (0, 255)),
        ({"dtype": "qint8"}, (-128, 127)),
        ({"reduce_range": True}, (0, 127)),
        ({"dtype": "qint8", "reduce_range": True}, (-64, 63)),
        ({"dtype": "qint8", "reduce_range": True, "quant_min": -127, "quant_max": 127}, (-64, 63)),
        ({"dtype": "qint8", "quant_min": -2, "quant_max": 1}, (-2, 1)),
    ],
)
def test_range_of_integers(arguments, bounds):
    for kind in PER_TENSOR + PER_CHANNEL:
        observer = kind(**arguments)
        assert (observer.quant_min, observer.quant_max) == bounds
        assert (observer.spec.qmin, observer.spec.qmax) == bounds


def test_eps_is_the_smallest_scale_and_moves_the_zero_point():
    assert_qparams(observed(MinMaxObserver(), [0.0]), F32(2.0**-23), 0)
    assert_qparams(observed(MinMaxObserver(eps=0.5), [-2.0, 1.0]), 0.5, 4)
    assert_qparams(observed(MinMaxObserver(qscheme="per_tensor_symmetric", dtype="qint8", eps=0.5), [1.0]), 0.5, 0)


def test_moving_average_copies_the_first_batch_and_then_moves():
    observer = observed(MovingAverageMinMaxObserver(0.25), [-1.0, 2.0], [-3.0, 6.0], [0.0, 3.0])
    assert observer.min_val.data == (-1 + 0.25 * -2) * 0.75
    assert observer.max_val.data == 3.0
    default = observed(MovingAverageMinMaxObserver(), [0.0, 0.1], [0.0, 0.7])
    assert default.max_val.data == F32(0.1) + F32(0.01) * (F32(0.7) - F32(0.1))


def test_moving_average_with_constant_one_is_the_newest_batch():
    observer = observed(MovingAverageMinMaxObserver(1.0), [-1.0, 2.0], [-0.5, 0.25])
    assert (observer.min_val.data, observer.max_val.data) == (-0.5, 0.25)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_per_channel_is_per_tensor_on_each_channel(axis):
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(F32)
    for kind, alone in ((PER_CHANNEL[0], MinMaxObserver), (PER_CHANNEL[1], MovingAverageMinMaxObserver)):
        observer = observed(kind(ch_axis=axis), x, 2 * x)
        single = [observed(alone(), channel, 2 * channel).calculate_qparams() for channel in np.moveaxis(x, axis, 0)]
        assert_qparams(observer, *(np.stack(values) for values in zip(*single, strict=True)))


def test_per_channel_of_a_vector_has_one_value_a_channel():
    observer = observed(PerChannelMinMaxObserver(), [255.0, -510.0])
    assert_qparams(observer, [1.0, 2.0], [0, 255])


@pytest.mark.parametrize("kind", PER_TENSOR + PER_CHANNEL)
@pytest.mark.parametrize("dtype", ["quint8", "qint8"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_agrees_with_choose_qparams(kind, dtype, scheme):
    random = np.random.default_rng(2)
    for _ in range(8):
        observer = kind(dtype=dtype, qscheme=f"per_{'tensor' if kind in PER_TENSOR else 'channel'}_{scheme}")
        observed(observer, random.standard_normal((3, 7)) * 10 ** random.uniform(-9, 9) + random.standard_normal())
        expected = choose_qparams(*observer.range(), observer.spec)
        assert_qparams(observer, expected.scale, expected.zero_point)
        assert observer.qparams().spec == observer.spec


# ---- behaviour -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PER_TENSOR + PER_CHANNEL)
def test_returns_its_input_and_ignores_an_empty_one(kind):
    observer = kind()
    for x in (np.ones((2, 3), F32), Tensor(np.ones((2, 3), F32), requires_grad=True), np.zeros((0, 3), F32)):
        assert observer(x) is x
    before = copy.deepcopy(observer)
    observer(np.zeros((4, 0), F32))
    for (name, value), (_, old) in zip(observer.named_buffers(), before.named_buffers(), strict=True):
        np.testing.assert_array_equal(value.data, old.data, err_msg=name)


@pytest.mark.parametrize("kind", PER_TENSOR + PER_CHANNEL)
def test_having_seen_nothing_gives_one_and_zero_but_no_range(kind):
    observer = kind()
    shape = () if kind in PER_TENSOR else (1,)
    assert_qparams(observer, np.ones(shape), np.zeros(shape))
    for ask in (observer.range, observer.qparams):
        with pytest.raises(ValueError, match="saw no data; run the model on calibration data"):
            ask()
    observed(observer, [[1.0, 2.0]])
    observer.reset_min_max_vals()
    assert_qparams(observer, np.ones(shape), np.zeros(shape))
    assert not observer.saw_data


def test_histogram_starts_anew_after_reset():
    observer = observed(HistogramObserver(), [-100.0, 100.0])
    observer.reset_min_max_vals()
    assert_qparams(observed(observer, [0.0, 1.0]), *observed(HistogramObserver(), [0.0, 1.0]).calculate_qparams())


def test_range_is_what_the_grid_is_chosen_for():
    low, high = observed(MinMaxObserver(), [1.0, 3.0]).range()
    assert (low, high) == (1, 3) and low.shape == high.shape == () and low.dtype == F32
    low, high = observed(PerChannelMinMaxObserver(1), [[1.0, 3.0], [-1.0, 5.0]]).range()
    np.testing.assert_array_equal(low, f32(-1, 3), strict=True)
    np.testing.assert_array_equal(high, f32(1, 5), strict=True)


def test_spec():
    assert MinMaxObserver().spec == QSpec(8, signed=False)
    assert MinMaxObserver(dtype="qint8", qscheme="per_tensor_symmetric").spec == QSpec(8, symmetric=True)
    assert MovingAveragePerChannelMinMaxObserver(ch_axis=2, dtype="qint8").spec.granularity == PerChannel(2)
    assert HistogramObserver(reduce_range=True).spec.granularity == PerTensor()


def test_with_args_makes_factories():
    factory = MovingAverageMinMaxObserver.with_args(dtype="qint8", averaging_constant=0.5)
    one, two = factory(), factory.with_args(averaging_constant=1.0)(qscheme="per_tensor_symmetric")
    assert type(one) is type(two) is MovingAverageMinMaxObserver
    assert (one.dtype, one.averaging_constant, one.qscheme) == ("qint8", 0.5, "per_tensor_affine")
    assert (two.dtype, two.averaging_constant, two.qscheme) == ("qint8", 1.0, "per_tensor_symmetric")
    assert factory() is not one


def test_state_dict_carries_the_statistics():
    observer = observed(HistogramObserver(16), [0.0, 1.0, 5.0])
    other = HistogramObserver(16)
    other.load_state_dict(observer.state_dict())
    assert set(observer.state_dict()) == {"eps", "min_val", "max_val", "histogram"}
    assert_qparams(other, *observer.calculate_qparams())


def test_float64_and_half_are_read_as_float32():
    third = np.array([1 / 3])
    for dtype in (np.float64, np.float16):
        observer = MinMaxObserver()
        observer(third.astype(dtype))
        assert observer.max_val.data == third.astype(dtype).astype(F32) and observer.max_val.dtype == F32


# ---- what is not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "values", "zero_point"),
    [
        ("quint8", [1.0, np.inf], 0),
        ("qint8", [1.0, np.inf], -128),
        ("qint8", [-3e38, 3e38], -128),
    ],
)
def test_infinite_range_gives_an_infinite_scale(dtype, values, zero_point):
    observer = observed(MinMaxObserver(dtype), values)
    assert_qparams(observer, np.inf, zero_point)
    with pytest.raises(ValueError, match="scale must be positive, finite"):
        observer.qparams()


@pytest.mark.parametrize("kind", [MinMaxObserver, MovingAverageMinMaxObserver, *PER_CHANNEL])
def test_nan_enters_the_range(kind):
    observer = observed(kind(), [[1.0, np.nan]])
    assert np.isnan(observer.min_val.data).all() and np.isnan(observer.calculate_qparams()[0]).all()
    observed(observer, [[1.0, 2.0]])
    assert np.isnan(observer.max_val.data).all()


def test_histogram_drops_infinities_and_refuses_nan():
    x = [-1.0, 0.5, 2.0]
    plain, infinite = observed(HistogramObserver(), x), observed(HistogramObserver(), [*x, np.inf, -np.inf])
    assert_qparams(infinite, *plain.calculate_qparams())
    assert not observed(HistogramObserver(), [np.inf, -np.inf]).saw_data
    with pytest.raises(ValueError, match="1 of 4 values are NaN"):
        observed(plain, [*x, np.nan])
    assert_qparams(infinite, *plain.calculate_qparams())
    with pytest.raises(ValueError, match="float32 cannot hold the width of the range"):
        observed(HistogramObserver(), [-3e38, 3e38])


def test_minimum_above_maximum_is_refused():
    observer = observed(MinMaxObserver(), [1.0])
    observer.min_val.data = np.asarray(2, F32)
    with pytest.raises(ValueError, match="min_val must not exceed max_val, got 2.0 … 1.0"):
        observer.calculate_qparams()


# ---- bad arguments -------------------------------------------------------------------------------------------

ANY_KIND = [
    ({"dtype": "int4"}, "dtype must be 'quint8' or 'qint8', got 'int4'"),
    ({"qscheme": "affine"}, "qscheme must be 'per_.*_affine' or 'per_.*_symmetric', got 'affine'"),
    ({"quant_min": 3}, "give both quant_min and quant_max or neither, got 3 and None"),
    ({"quant_min": 0, "quant_max": 0}, "quant_min must be below quant_max, got 0 and 0"),
    ({"quant_min": 1, "quant_max": 9}, "must hold 0, got 1 … 9"),
    ({"quant_min": 0, "quant_max": 256}, "0 … 256 does not fit 'quint8', which holds 0 … 255"),
    ({"dtype": "qint8", "quant_min": -129, "quant_max": 7}, "-129 … 7 does not fit 'qint8'"),
    ({"eps": 0}, "eps, the smallest scale, must be positive, got 0"),
    ({"eps": float("nan")}, "eps, the smallest scale, must be positive, got nan"),
]


@pytest.mark.parametrize("kind", PER_TENSOR + PER_CHANNEL)
@pytest.mark.parametrize(("arguments", "message"), ANY_KIND)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: .*{message}"):
        kind(**arguments)


@pytest.mark.parametrize("kind", PER_TENSOR + PER_CHANNEL)
def test_scheme_of_the_other_granularity_and_reduced_symmetric_quint8(kind):
    own, other = ("tensor", "channel") if kind in PER_TENSOR else ("channel", "tensor")
    with pytest.raises(ValueError, match=f"must be 'per_{own}_affine' .* got 'per_{other}_affine'"):
        kind(qscheme=f"per_{other}_affine")
    with pytest.raises(ValueError, match="would put the zero point, 128, outside 0…127; use dtype='qint8'"):
        kind(qscheme=f"per_{own}_symmetric", reduce_range=True)


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("c", [0, -0.1, 1.01, float("nan")])
def test_averaging_constant(kind, c):
    with pytest.raises(ValueError, match=r"averaging_constant.* must lie in \(0, 1\], got"):
        kind(averaging_constant=c)


@pytest.mark.parametrize("bins", [0, -1, 2.5, "many"])
def test_bins(bins):
    with pytest.raises(ValueError, match="bins must be a positive integer, got"):
        HistogramObserver(bins)


@pytest.mark.parametrize("kind", PER_TENSOR + PER_CHANNEL)
def test_integers_are_refused(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}: expected floating point .* got int64; convert with"):
        kind()(np.arange(6).reshape(2, 3))


def test_channels_that_change_or_are_missing():
    observer = observed(PerChannelMinMaxObserver(1), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"expected 3 channels as before, got 4 .*shape \(2, 4\)"):
        observed(observer, np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"axis=1.* shape \(3,\)"):
        observed(observer, np.zeros(3))


# ---- the histogram's arithmetic ------------------------------------------------------------------------------


def test_count_puts_the_right_end_into_the_last_bin():
    np.testing.assert_array_equal(h.count(f32(0, 0.24, 0.25, 0.5, 1, 1), 4, F32(0), F32(1)), f32(2, 1, 1, 2))


def test_count_multiplies_before_it_divides():
    # 13 / 22 · 22 rounds below 13
    assert h.count(f32(13), 22, F32(0), F32(22))[13] == 1


@pytest.mark.parametrize(
    ("value", "bin_of_8"), [(0.0, 4), (3.5, 4), (2.0**24, 2), (-(2.0**24), 5), (2.0**26, 2), (1e30, 4)]
)
def test_count_of_a_single_point(value, bin_of_8):
    counts = h.count(f32(value, value, value), 8, F32(value), F32(value))
    np.testing.assert_array_equal(counts, np.where(np.arange(8) == bin_of_8, F32(3), F32(0)))


def test_rebin_spreads_each_bin_over_the_bins_that_it_overlaps():
    # 0…2 in two bins of 1 becomes 0…8 in two bins of 4; then 0…3, whose bins of 1.5 cut the second bin in half
    np.testing.assert_array_equal(h.rebin(f32(6, 10), F32(0), F32(2), F32(0), F32(8)), f32(16, 0))
    np.testing.assert_array_equal(h.rebin(f32(6, 10), F32(0), F32(2), F32(0), F32(3)), f32(11, 5))
    np.testing.assert_array_equal(h.rebin(f32(3, 4), F32(1), F32(1), F32(0), F32(4)), f32(7, 0))


def test_rebin_puts_a_middle_on_an_edge_to_the_right():
    # 32 parts of 1/16, middles (k + ½)/16; the edge 17.5/16 is the middle of part 17, so 17 of 32 parts stay left
    np.testing.assert_array_equal(h.rebin(f32(16, 16), F32(0), F32(2), F32(0), F32(35 / 16)), f32(17, 15))


def test_linspace_reaches_both_ends_and_counts_from_the_nearer():
    low, high = F32(-0.1), F32(0.7)
    for n in range(2, 300):
        x = h.linspace(low, high, n)
        step = float((high - low) / F32(n - 1))
        assert (x[0], x[-1]) == (low, high)
        if n > 3:
            assert x[-2] == F32(float(high) - step)


def test_fma_rounds_once():
    # 2²⁴ + 1 lies between two float32 numbers; what is added decides, however little it is
    odd = np.array(2**24 + 1)
    for tiny in (1e-45, 1e-20, 1e-10):
        assert h.fma(F32(1), odd, F32(tiny)) == 2.0**24 + 2
        assert h.fma(F32(1), odd, F32(-tiny)) == 2.0**24
        assert h.fma(F32(1), odd + 2, F32(-tiny)) == 2.0**24 + 2
    assert h.fma(F32(1), odd, F32(0)) == 2.0**24


def test_rebin_adds_in_float32_one_after_the_other():
    # sixteen times 2²⁸ + 4 stays 2²⁸ in sequence; summed in float64 or pairwise it is 2²⁸ + 64
    histogram = f32(2.0**28, 64)
    rebinned = h.rebin(histogram, F32(0), F32(2), F32(0), F32(64))
    np.testing.assert_array_equal(rebinned, f32(2.0**28, 0))


def test_error_of_the_whole_range_of_a_uniform_histogram():
    # 512 bins in 256 cells, two bins a cell: the error of a value spread evenly over a cell d is d²/12
    histogram = np.full(512, 4, F32)
    (error,) = h.quantization_error(histogram, F32(0), F32(256), np.array([[0, 511]]))
    assert error == pytest.approx(4 * 512 / 12, rel=1e-6)  # each of 512 terms rounds at most a few 2⁻²⁴


def test_error_of_a_cut_counts_what_falls_outside():
    # Bins of width 1; cut to the first half: cells of 1 hold one bin each, the rest lies t - 255.5 from the last.
    histogram = np.ones(512, F32)
    (error,) = h.quantization_error(histogram, F32(0), F32(512), np.array([[0, 255]]))
    outside = (256.5**3 - 0.5**3) / 3
    assert error == pytest.approx(256 / 12 + outside, rel=1e-5)  # 256³ in float32, 512 terms


def naive_walk(histogram):
    """The steps one by one, as the algorithm says, without skipping any."""
    total = float(h.cascade_sum(histogram))
    cumulative = np.cumsum(histogram, dtype=np.float64).astype(F32)
    first, last, alpha, beta, cuts = 0, histogram.size - 1, 0.0, 1.0, []
    while alpha < beta:
        next_alpha, next_beta = alpha + 1e-5, beta - 1e-5
        left, right = first, last
        while left < last and cumulative[left] < F32(next_alpha * total):
            left += 1
        while right > first and cumulative[right] > F32(next_beta * total):
            right -= 1
        before = first, last
        if left - first > last - right:
            first, alpha = left, next_alpha
        else:
            last, beta = right, next_beta
        if (first, last) != before:
            cuts.append((first, last))
    return cuts


@pytest.mark.parametrize("kind", ["normal", "sparse", "left", "one bin", "single", "beyond 2²⁴"])
def test_walk_skips_only_steps_that_move_nothing(kind):
    random = np.random.default_rng(3)
    histogram = {
        "normal": h.count(random.standard_normal(4000).astype(F32), 64, F32(-4), F32(4)),
        "sparse": np.where(random.random(200) < 0.05, random.random(200) * 1000, 0).astype(F32),
        "left": np.append(np.zeros(30, F32), f32(1, 10**6, 1)),
        "one bin": f32(0, 0, 5, 0),
        "single": f32(5),
        "beyond 2²⁴": np.append(F32(2.0**24), np.ones(1000, F32)),
    }[kind]
    assert list(h.walk(histogram)) == naive_walk(histogram)


def test_search_cuts_an_outlier_and_keeps_an_even_distribution():
    # cutting costs the outlier (100 - 4)², keeping it 3·10⁶ values d²/12 with d = 105/256: four times as much
    body = np.random.default_rng(4).standard_normal(20000).astype(F32)
    low, high = F32(-5), F32(100)
    histogram = h.count(body, 2048, low, high) * F32(150) + h.count(f32(100), 2048, low, high)
    first, last = h.search(histogram, low, high)
    assert low + 105 / 2048 * (last + 1) < 6 and low + 105 / 2048 * first < -3.5
    low, high = observed(HistogramObserver(), np.random.default_rng(6).random(20000)).range()
    assert high - low > 0.99


def test_search_stops_at_the_last_cut_before_the_error_rises():
    # density 1 - |x|: cutting δ on both sides leaves (2(1-δ)/256)²/12 + δ⁴/6, which falls until δ = 0.025
    histogram = np.minimum(np.arange(2048) + 0.5, 2047.5 - np.arange(2048)).astype(F32)
    low, high = F32(-1), F32(1)
    cuts = list(h.walk(histogram))
    errors = [h.quantization_error(histogram, low, high, np.array([cut]))[0] for cut in cuts]
    rises = next(i for i in range(1, len(cuts)) if errors[i] > errors[i - 1])
    assert rises > h.CUTS_AT_ONCE, "the search must look at more than one group of cuts"
    assert h.search(histogram, low, high) == cuts[rises - 1]


def test_search_goes_on_past_an_equal_error():
    histogram = f32(0, 1, 0, 5, 0, 1, 0)
    cuts = list(h.walk(histogram))
    assert len(cuts) > 1
    assert h.search(histogram, F32(1), F32(1)) == cuts[-1]  # a single point: every error is 0


def test_cascade_sum_order():
    # 2²⁴ meets each 1 of its own lane, where it absorbs them; the ones of the other 31 lanes survive
    x = np.ones(2048, F32)
    x[0] = 2.0**24
    in_the_lane_after_the_first_block = 3 * 16
    assert h.cascade_sum(x) == 2.0**24 + 31 * 64 + in_the_lane_after_the_first_block
    assert h.cascade_sum(np.zeros(0, F32)) == 0
    for n in (1, 5, 8, 31, 33, 100, 2050, 40000):
        assert h.cascade_sum(np.ones(n, F32)) == n
    both = h.cascade_sum(np.stack([x, 2 * x], axis=1))
    np.testing.assert_array_equal(both, f32(1, 2) * h.cascade_sum(x))
