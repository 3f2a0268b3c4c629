"""ONNX's quantized operators without onnx: the specification's own examples, ties, saturation, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, nn
from minquant.crosscheck.onnx_models import unmixed
from minquant.functional.geometry import Geometry
from minquant.quant import (
    PerChannel,
    PerTensor,
    PerToken,
    QParams,
    QSpec,
    QTensor,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.onnx import (
    conv_integer,
    dequantize_linear,
    dynamic_quantize_linear,
    integer_bias,
    matmul_integer,
    qlinear_conv,
    qlinear_matmul,
    quantize_linear,
)
from minquant.quant.dialects.onnx_products import in_double, in_single

F32 = np.float32
U8, I8 = np.uint8, np.int8
UINT8 = QSpec(signed=False)
ROUNDINGS = (in_double, in_single)
DIALECTS = ("onnx", "onnxruntime")


def f32(values):
    return np.array(values, F32)


def u8(values):
    return np.array(values, U8)


def i8(values):
    return np.array(values, I8)


# ---- QuantizeLinear: examples of the operator specification ----------------------------------------------------------


def test_quantize_linear_per_tensor():
    y = quantize_linear(f32([0, 2, 3, 1000, -254, -1000]), f32(2), u8(128))
    assert y.tolist() == [128, 129, 130, 255, 1, 0] and y.dtype == U8


def test_quantize_linear_per_axis():
    x = f32(
        [
            [
                [[-162, 10], [-100, 232], [-20, -50]],
                [[-76, 0], [0, 252], [32, -44]],
                [[245, -485], [-960, -270], [-375, -470]],
            ]
        ]
    )
    y = quantize_linear(x, f32([2, 4, 5]), u8([84, 24, 196]))
    expected = [[[[3, 89], [34, 200], [74, 59]], [[5, 24], [24, 87], [32, 13]], [[245, 99], [4, 142], [121, 102]]]]
    assert y.tolist() == expected
    assert quantize_linear(x, f32([2, 4, 5]), u8([84, 24, 196]), axis=-3).tolist() == expected


def test_quantize_linear_blocked():
    x = f32([[6, 12, 50, 5], [1, 8, 4, 5], [0, 20, 10, 4]])
    scale = f32([[1.5, 2.5], [3, 4.9], [5.1, 6.9]])
    symmetric = [[4, 8, 20, 2], [0, 3, 1, 1], [0, 4, 1, 1]]
    assert quantize_linear(x, scale, axis=1, block_size=2, output_dtype="int8").tolist() == symmetric
    shifted = quantize_linear(x, scale, i8([[0, 1], [1, 0], [2, 3]]), axis=1, block_size=2)
    assert shifted.tolist() == (np.array(symmetric) + np.repeat([[0, 1], [1, 0], [2, 3]], 2, 1)).tolist()
    last = quantize_linear(x[:, :3], scale, axis=1, block_size=2, output_dtype="int8")  # the last block is cut short
    assert last.tolist() == [row[:3] for row in symmetric]


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("int2", -2, 1),
        ("uint2", 0, 3),
        ("int4", -8, 7),
        ("uint4", 0, 15),
        ("int16", -32768, 32767),
        ("uint16", 0, 65535),
    ],
)
def test_other_widths_saturate_at_their_ends(dtype, low, high):
    y = quantize_linear(f32([-np.inf, -3e38, 3e38, np.inf, 1]), f32(1e-30), output_dtype=dtype)
    assert y.tolist() == [low, low, high, high, high]
    assert str(y.dtype) == (dtype if "16" in dtype else dtype[:-1] + "8")


def test_ties_round_to_even_before_the_zero_point_is_added():
    x = f32([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize_linear(x, f32(1), u8(3)).tolist() == [1, 3, 3, 5, 5]
    assert quantize_linear(x, f32(1), i8(3)).tolist() == [1, 3, 3, 5, 5]


def test_it_divides():
    """f(x · f(1/s)) is another number than f(x / s), and at some ties another integer."""
    s = np.random.default_rng(0).uniform(0.01, 1, 50).astype(F32)
    x = (np.arange(-100, 100) + 0.5).astype(F32)[:, np.newaxis] * s
    divided, multiplied = np.rint(x / s), np.rint(x * (F32(1) / s))
    assert (divided != multiplied).any()
    assert np.array_equal(quantize_linear(x, s, np.zeros(50, I8)), divided)


# ---- DequantizeLinear ------------------------------------------------------------------------------------------------


def test_dequantize_linear():
    assert dequantize_linear(u8([0, 3, 128, 255]), f32(2), u8(128)).tolist() == [-256, -250, 0, 254]
    x = u8([[[[3, 89], [34, 200], [74, 59]], [[5, 24], [24, 87], [32, 13]], [[245, 99], [4, 142], [121, 102]]]])
    y = dequantize_linear(x, f32([2, 4, 5]), u8([84, 24, 196]))
    assert y[0, 0].tolist() == [[-162, 10], [-100, 232], [-20, -50]] and y.dtype == F32
    assert dequantize_linear(np.array([300, -30272], np.int16), f32(2), np.array(-1024, np.int16)).tolist() == [
        2648,
        -58496,
    ]
    assert dequantize_linear(np.array([2**24 + 1], np.int32), f32(1)).tolist() == [2**24]  # a bias, rounded to float32
    y = dequantize_linear(i8([[1, 2, 3], [4, 5, 6]]), f32([[1, 2], [3, 4]]), i8([[0, 1], [2, 3]]), axis=1, block_size=2)
    assert y.tolist() == [[1, 2, 4], [6, 9, 12]]


# ---- DynamicQuantizeLinear -------------------------------------------------------------------------------------------


def test_dynamic_quantize_linear():
    y, scale, zero_point = dynamic_quantize_linear(f32([0, 2, -3, -2.5, 1.34, 0.5]))
    assert (scale, zero_point) == (F32(5) / F32(255), 153)
    assert y.tolist() == [153, 255, 0, 26, 221, 179]
    y, scale, zero_point = dynamic_quantize_linear(f32([-1, -2.1, -1.3, -2.5, -3.34, -4]))
    assert (scale, zero_point) == (F32(4) / F32(255), 255) and y.tolist() == [191, 121, 172, 96, 42, 0]
    y, scale, zero_point = dynamic_quantize_linear(f32([[1, 2.1, 1.3, 2.5], [3.34, 4, 1.5, 2.6], [3.9, 4, 3, 2.345]]))
    assert (scale, zero_point) == (F32(4) / F32(255), 0)
    assert y.tolist() == [[64, 134, 83, 159], [213, 255, 96, 166], [249, 255, 191, 149]]


@pytest.mark.parametrize("x", [np.zeros(3, F32), np.zeros((0, 4), F32)])
def test_nothing_to_choose_a_scale_from(x):
    y, scale, zero_point = dynamic_quantize_linear(x)
    assert (scale, zero_point, y.shape) == (F32(1) / F32(255), 0, x.shape) and not y.any()


@pytest.mark.parametrize("x", [[np.nan], [np.inf], [-3e38, 3e38], [1e-44]])
def test_ranges_without_a_scale(x):
    with pytest.raises(ValueError, match="DynamicQuantizeLinear"):
        dynamic_quantize_linear(f32(x))


# ---- matrix products -------------------------------------------------------------------------------------------------


def test_matmul_integer():
    a, b = u8([[11, 7, 3], [10, 6, 2], [9, 5, 1], [8, 4, 0]]), u8([[1, 4], [2, 5], [3, 6]])
    assert matmul_integer(a, b, u8(12), u8(0)).tolist() == [[-38, -83], [-44, -98], [-50, -113], [-56, -128]]


def test_matmul_integer_of_all_shapes():
    rng = np.random.default_rng(0)
    for a_shape, b_shape in [
        ((4,), (4,)),
        ((4,), (4, 3)),
        ((2, 4), (4,)),
        ((5, 1, 2, 4), (3, 4, 6)),
        ((2, 4), (0, 4, 3)),
    ]:
        a = rng.integers(-128, 128, a_shape).astype(I8)
        b = rng.integers(0, 256, b_shape).astype(U8)
        expected = np.matmul(a.astype(np.int32) + 7, b.astype(np.int32) - 200)
        y = matmul_integer(a, b, i8(-7), u8(200))
        assert y.shape == expected.shape and np.array_equal(y, expected) and y.dtype == np.int32


@pytest.mark.parametrize(("za", "zb"), [([1, 2], [3, 4, 5]), ([[1], [2]], [[3, 4, 5]])])
def test_zero_points_by_row_and_by_column(za, zb):
    a, b = np.full((2, 4), 9, U8), np.full((4, 3), 9, U8)
    assert matmul_integer(a, b, u8(za), u8(zb)).tolist() == [[192, 160, 128], [168, 140, 112]]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_qlinear_matmul(rounding):
    a, b = (
        u8([[208, 236, 0, 238], [3, 214, 255, 29]]),
        u8([[152, 51, 244], [60, 26, 255], [0, 127, 246], [127, 254, 247]]),
    )
    y = qlinear_matmul(a, f32(0.0066), u8(113), b, f32(0.00705), u8(114), f32(0.0107), u8(118), rounding=rounding)
    assert y.tolist() == [[168, 115, 255], [1, 66, 151]]
    to_int8 = qlinear_matmul(a, f32(0.0066), u8(113), b, f32(0.00705), u8(114), f32(0.0107), i8(-10), rounding=rounding)
    assert to_int8.tolist() == [[40, -13, 127], [-127, -62, 23]]


def test_scales_by_row_and_by_column():
    a, b = np.ones((2, 1), U8), np.ones((1, 2), I8)
    y = qlinear_matmul(a, f32([1, 2]), u8([0, 0]), b, f32([10, 20]), i8([0, 0]), f32(1), u8(0))
    assert y.tolist() == [[10, 20], [20, 40]]


def test_where_the_two_roundings_differ():
    one = f32(1)
    tie = (u8([[5]]), one, u8(0), u8([[1]]), one, u8(0), f32(2), u8(3))  # 2.5 steps, and an odd zero point
    assert qlinear_matmul(*tie, rounding=in_double) == 6 and qlinear_matmul(*tie, rounding=in_single) == 5
    acc, m = np.array([2**25 + 2**17 + 1], np.int32), F32(2.0**-18)  # 128.5 steps and a little more than float32 holds
    assert in_double(acc, m, u8(0)) == 129 and in_single(acc, m, u8(0)) == 128


# ---- convolutions ----------------------------------------------------------------------------------------------------


def test_conv_integer():
    x, w = np.arange(2, 11).reshape(1, 1, 3, 3).astype(U8), np.ones((1, 1, 2, 2), U8)
    assert conv_integer(x, w, u8(1)).tolist() == [[[[12, 16], [24, 28]]]]
    padded = [[1, 3, 5, 3], [5, 12, 16, 9], [11, 24, 28, 15], [7, 15, 17, 9]]
    assert conv_integer(x, w, u8(1), pads=(1, 1, 1, 1)).tolist() == [[padded]]


def naive_conv(x, w, zx, zw, pads, strides, dilations, group):
    """Element by element, in two dimensions."""
    x = np.pad(x.astype(int) - zx, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    w = w.astype(int) - np.reshape(zw, (-1, 1, 1, 1))
    span = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    places = [(n - s) // t + 1 for n, s, t in zip(x.shape[2:], span, strides, strict=True)]
    y = np.zeros((len(x), len(w), *places), int)
    for n, m, i, j in np.ndindex(*y.shape):
        first = m // (len(w) // group) * w.shape[1]
        for c, s, t in np.ndindex(*w.shape[1:]):
            at = i * strides[0] + s * dilations[0], j * strides[1] + t * dilations[1]
            y[n, m, i, j] += x[n, first + c, *at] * w[m, c, s, t]
    return y


@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv_integer_with_every_attribute(group):
    rng = np.random.default_rng(group)
    x, w = rng.integers(0, 256, (2, 4, 7, 6)).astype(U8), rng.integers(-128, 128, (8, 4 // group, 3, 2)).astype(I8)
    zw = rng.integers(-5, 6, 8).astype(I8)
    attributes = {"pads": (2, 1, 0, 3), "strides": (2, 1), "dilations": (1, 2), "group": group}
    assert np.array_equal(conv_integer(x, w, u8(9), zw, **attributes), naive_conv(x, w, 9, zw, **attributes))


def test_automatic_padding():
    x, w = np.ones((1, 1, 5), U8), np.array([1, 10], I8).reshape(1, 1, 2)
    assert conv_integer(x, w, auto_pad="VALID", pads=(9, 9)).tolist() == [[[11, 11, 11, 11]]]
    assert conv_integer(x, w, auto_pad="SAME_UPPER").tolist() == [[[11, 11, 11, 11, 1]]]
    assert conv_integer(x, w, auto_pad="SAME_LOWER").tolist() == [[[10, 11, 11, 11, 11]]]
    assert conv_integer(x, w, auto_pad="SAME_UPPER", strides=(2,)).tolist() == [[[11, 11, 1]]]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_qlinear_conv(rounding):
    x = np.arange(49).reshape(1, 1, 7, 7).astype(U8) * 5
    y = qlinear_conv(
        x, f32(0.00369), u8(132), u8([[[[0]]]]), f32(0.00172), u8(255), f32(0.00162), u8(123), rounding=rounding
    )
    m = np.float64(F32(F32(0.00369) * F32(0.00172)) / F32(0.00162))
    expected = np.clip(np.rint((x.astype(int) - 132) * -255 * m) + 123, 0, 255)
    assert np.array_equal(y, expected) and y.dtype == U8


def test_qlinear_conv_by_channel_with_a_bias():
    x, w = np.full((1, 1, 2), 3, U8), np.ones((2, 1, 1), I8)
    bias = np.array([10, -1], np.int32)
    y = qlinear_conv(x, f32(1), u8(1), w, f32([1, 8]), i8([0, 0]), f32(2), i8(-1), bias)
    assert y.tolist() == [[[5, 5], [3, 3]]]  # (2 + 10)·½ - 1 and (2 - 1)·4 - 1


# ---- what is refused -------------------------------------------------------------------------------------------------

X, ONE, A = f32([[1, 2], [3, 4]]), f32(1), np.ones((2, 2), U8)
IMAGE, FILTER = np.ones((1, 2, 3, 3), U8), np.ones((2, 2, 1, 1), I8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize_linear(X.astype(np.float64), ONE), TypeError, "x must be float32"),
        (lambda: quantize_linear(X * np.nan, ONE), ValueError, "4 of 4 values are NaN"),
        (lambda: quantize_linear(X, ONE, output_dtype="int3"), ValueError, "output_dtype must be one of"),
        (
            lambda: quantize_linear(X, ONE, u8(0), output_dtype="int8"),
            TypeError,
            "y_zero_point must be of the integers",
        ),
        (lambda: quantize_linear(X, f32(0)), ValueError, "y_scale must be positive"),
        (lambda: quantize_linear(X, f32([1, np.inf])), ValueError, "y_scale must be positive"),
        (lambda: quantize_linear(X, f32([1, 2, 3])), ValueError, r"needs shape \(2,\) for axis 1, got \(3,\)"),
        (lambda: quantize_linear(X, f32([1, 2]), u8(0)), ValueError, r"the scale's shape \(2,\), got \(\)"),
        (lambda: quantize_linear(X, f32([1, 2]), axis=2), ValueError, "axis must be one of the 2 axes"),
        (lambda: quantize_linear(X, f32([1, 2]), block_size=2), ValueError, r"needs shape \(2, 1\)"),
        (lambda: dequantize_linear(X, ONE), TypeError, "x must be integers"),
        (lambda: dequantize_linear(A, ONE, i8(0)), TypeError, "x_zero_point must be of the integers' type, uint8"),
        (lambda: dequantize_linear(A.astype(np.int32), ONE, np.int32(1)), ValueError, "int32 has no zero point"),
        (lambda: matmul_integer(X, A), TypeError, "A must be int8 or uint8, got float32"),
        (lambda: matmul_integer(A, A, i8(0)), TypeError, "zero point of A must be uint8"),
        (lambda: matmul_integer(A, np.ones((3, 2), U8)), ValueError, "inner sizes differ"),
        (lambda: qlinear_matmul(A, f32(1e30), u8(0), A, f32(1e30), u8(0), ONE, u8(0)), ValueError, "must be positive"),
        (lambda: conv_integer(A, FILTER), ValueError, "x must be"),
        (lambda: conv_integer(IMAGE, FILTER, group=2), ValueError, "x has 2 channels, w of shape .* takes 4"),
        (lambda: conv_integer(IMAGE, FILTER, group=3), ValueError, "groups=3"),
        (lambda: conv_integer(IMAGE, FILTER, auto_pad="SAME"), ValueError, "auto_pad must be"),
        (lambda: conv_integer(IMAGE, FILTER, pads=(1, 1)), ValueError, "pads must be 0 or more"),
        (lambda: conv_integer(IMAGE, np.ones((2, 2, 4, 1), I8)), ValueError, "the kernel spans"),
        (
            lambda: qlinear_conv(IMAGE, ONE, u8(0), FILTER, ONE, i8(0), ONE, u8(0), f32([1, 1])),
            TypeError,
            "B must be int32",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- the dialects ----------------------------------------------------------------------------------------------------


def operands(rng, shape, per_channel):
    x = QTensor(rng.integers(0, 256, shape[0]).astype(U8), QParams(0.05, 120, UINT8))
    granularity = PerChannel() if per_channel else PerTensor()
    spec = QSpec(symmetric=True, qmin=-127, granularity=granularity)
    scale = rng.uniform(0.001, 0.01, shape[1][0] if per_channel else ()).astype(F32)
    weight = QTensor(
        rng.integers(-127, 128, shape[1]).astype(I8), QParams(scale, np.zeros(scale.shape, np.int32), spec)
    )
    return x, weight, rng.standard_normal(shape[1][0]).astype(F32)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_layers_are_the_operators(dialect, per_channel, relu):
    rng = np.random.default_rng(0)
    rounding, output = ROUNDINGS[DIALECTS.index(dialect)], QParams(0.1, 77, UINT8)
    x, w, bias = operands(rng, ((2, 4, 6, 5), (6, 2, 3, 3)), per_channel)
    geometry = Geometry((3, 3), (2, 1), ((1, 1), (0, 0)), (1, 1), 2)
    y = get_dialect(dialect).conv(x, w, bias, output, relu, geometry).int_repr()
    x_grid, w_grid = x.qparams, w.qparams
    given = x.int_repr(), x_grid.scale, u8(120), w.int_repr(), w_grid.scale, w_grid.zero_point.astype(I8)
    steps = integer_bias(bias, x_grid.scale, w_grid.scale)
    attributes = {"pads": (1, 0, 1, 0), "strides": (2, 1), "group": 2}
    expected = qlinear_conv(*given, output.scale, u8(77), steps, rounding=rounding, **attributes)
    assert np.array_equal(y, np.maximum(expected, 77) if relu else expected)
    x, w, bias = operands(rng, ((3, 2, 8), (5, 8)), per_channel)
    y = get_dialect(dialect).linear(x, w, 0 * bias, output, relu).int_repr()
    x_grid, w_grid = x.qparams, w.qparams
    zeros = w_grid.zero_point.astype(I8)
    expected = qlinear_matmul(
        x.int_repr(),
        x_grid.scale,
        u8(120),
        w.int_repr().T,
        w_grid.scale,
        zeros,
        output.scale,
        u8(77),
        rounding=rounding,
    )
    assert np.array_equal(y, np.maximum(expected, 77) if relu else expected)


def test_the_bias_is_an_integer():
    bias = integer_bias(f32([0.5, -1.5, 2.5, 1e30, -1e30]), F32(0.5), F32(2))
    assert bias.tolist() == [0, -2, 2, 2**31 - 1, -(2**31)] and bias.dtype == np.int32


@pytest.mark.parametrize("dialect", DIALECTS)
def test_whole_flows(dialect):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 6)).astype(F32)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    exact = model(Tensor(x)).data
    prepared = prepare(QuantWrapper(model), get_default_qconfig(dialect))
    prepared(Tensor(x))
    qat = prepare_qat(QuantWrapper(model), get_default_qat_qconfig(dialect))
    qat(Tensor(x))
    dynamic = quantize_dynamic(model, default_dynamic_qconfig(dialect))
    for quantized in (convert(prepared), convert(qat.eval()), dynamic):
        error = np.abs(quantized(Tensor(x)).data - exact).max()
        assert 0 < error < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_presets(dialect):
    activation, weight = get_default_qconfig(dialect).activation(), get_default_qconfig(dialect).weight()
    assert (activation.quant_min, activation.quant_max, activation.qscheme) == (0, 255, "per_tensor_affine")
    assert (weight.quant_min, weight.quant_max, weight.qscheme) == (-127, 127, "per_channel_symmetric")
    for preset in (get_default_qconfig, get_default_qat_qconfig, default_dynamic_qconfig):
        with pytest.raises(ValueError, match=f"{dialect} knows 8 bits only"):
            preset(dialect, weight_bits=4)


def test_what_the_dialect_refuses():
    dialect = get_dialect("onnx")
    for spec in (QSpec(), QSpec(signed=False, qmax=127), QSpec(signed=False, granularity=PerToken())):
        with pytest.raises(ValueError, match="DynamicQuantizeLinear knows uint8 affine per tensor only"):
            dialect.quantize_at_run_time(X, spec)
    with pytest.raises(ValueError, match="NaN"):
        dialect.quantize(X * np.nan, QParams(1.0, 0, UINT8))


def test_grids_are_used_to_the_ends_of_their_type():
    dialect = get_dialect("onnx")
    assert dialect.converted_grid(QParams(0.5, 3, QSpec(signed=False, qmax=127))).spec == UINT8
    assert dialect.quantize(f32([-5, 0.5, 2.5, 1000]), QParams(1.0, 3, UINT8)).int_repr().tolist() == [0, 3, 5, 255]


# ---- the oracle's helper ---------------------------------------------------------------------------------------------


def test_a_product_of_two_types_as_one_of_uint8():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (3, 5)).astype(U8), rng.integers(-128, 128, (5, 2)).astype(I8)
    for inputs in ({"A": a, "B": b, "b_zero_point": i8([3, -4])}, {"A": a, "B": b}, {"A": b.T, "B": a.T}):
        moved = unmixed("MatMulInteger", inputs)
        assert moved["A"].dtype == moved["B"].dtype == U8
        assert np.array_equal(matmul_integer(**moved), matmul_integer(**inputs))
    assert unmixed("MatMulInteger", {"A": b, "B": b.T})["A"].dtype == I8
