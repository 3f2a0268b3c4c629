"""Convolution in torch's dialects, in closed form and without torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minquant.functional.geometry import Geometry
from minquant.quant import PerChannel, PerTensor, QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.saturating_conv import taps_in_pairs, windows_in_pairs

F32 = np.float32
UINT8 = QSpec(signed=False)
ENGINES = ("fbgemm", "x86", "qnnpack", "onednn")
ALL = (*ENGINES, "fbgemm_avx2", "onednn_avx2")


def grid(scale, zero_point):
    return QParams(np.asarray(scale, F32), np.asarray(zero_point, np.int32), UINT8)


def weight_of(qw, scale, zero_point=0):
    scale = np.asarray(scale, F32)
    spec = QSpec(granularity=PerChannel() if scale.ndim else PerTensor())
    return QTensor(qw, QParams(scale, np.full(scale.shape, zero_point, np.int32), spec))


def square(kernel, stride=1, padding=0, dilation=1, groups=1):
    return Geometry.of("conv", kernel, stride, padding, dilation, groups)


def random_conv(rng, channels, outputs, groups, largest=127):
    """Input, weight per channel, bias and output grid."""
    x = QTensor(rng.integers(0, largest + 1, (2, channels, 7, 6)).astype(np.uint8), grid(0.03, 40))
    qw = rng.integers(-128, 128, (outputs, channels // groups, 3, 3)).astype(np.int8)
    weight = weight_of(qw, rng.uniform(0.01, 0.02, outputs))
    bias = rng.standard_normal(outputs).astype(F32)
    return x, weight, bias, grid(0.4, 121)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_real_zero(engine, stride):
    x, weight, bias, output = random_conv(np.random.default_rng(0), 4, 5, 1)
    padded = np.pad(x.int_repr(), ((0, 0), (0, 0), (2, 2), (1, 1)), constant_values=40)
    conv = get_dialect(engine).conv
    whole = conv(x, weight, bias, output, False, square((3, 3), stride, (2, 1)))
    by_hand = conv(QTensor(padded, x.qparams), weight, bias, output, False, square((3, 3), stride))
    assert np.array_equal(whole.int_repr(), by_hand.int_repr())


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("per_group", [1, 4])
def test_groups_are_convolutions_side_by_side(engine, per_group):
    groups = 3
    x, weight, bias, output = random_conv(np.random.default_rng(1), groups * per_group, groups * per_group, groups)
    conv = get_dialect(engine).conv
    whole = conv(x, weight, bias, output, True, square((3, 3), groups=groups)).int_repr()
    for g in range(groups):
        own = slice(g * per_group, (g + 1) * per_group)
        part = QTensor(x.int_repr()[:, own], x.qparams)
        filters = weight_of(weight.int_repr()[own], weight.qparams.scale[own])
        assert np.array_equal(conv(part, filters, bias[own], output, True, square((3, 3))).int_repr(), whole[:, own])


@pytest.mark.parametrize("engine", ALL)
def test_a_fused_relu_is_the_maximum_with_the_zero_point(engine):
    case = random_conv(np.random.default_rng(2), 4, 6, 1)
    conv = get_dialect(engine).conv
    plain, fused = (conv(*case, relu, square((3, 3))).int_repr() for relu in (False, True))
    assert (plain < 121).any() and np.array_equal(fused, np.maximum(plain, 121))


@pytest.mark.parametrize("engine", ["fbgemm", "fbgemm_avx2", "qnnpack"])
def test_a_window_of_one_is_a_linear(engine):
    x, weight, bias, output = random_conv(np.random.default_rng(3), 6, 5, 1, largest=255)
    weight = weight_of(weight.int_repr()[:, :, :1, :1], weight.qparams.scale)
    dialect = get_dialect(engine)
    y = dialect.conv(x, weight, bias, output, False, square((1, 1))).int_repr()
    rows = QTensor(np.moveaxis(x.int_repr(), 1, -1), x.qparams)
    filters = weight_of(weight.int_repr()[:, :, 0, 0], weight.qparams.scale)
    assert np.array_equal(np.moveaxis(y, 1, -1), dialect.linear(rows, filters, bias, output, False).int_repr())


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("fbgemm", [101, 103, 103]),  # 0.5, 1.5 and 2.5 to even, then + 101
        ("qnnpack", [101, 103, 103]),
        ("onednn", [102, 102, 104]),  # 101.5, 102.5 and 103.5 to even
        ("onednn_avx2", [102, 102, 104]),
        ("x86", [102, 102, 104]),
    ],
)
def test_ties(engine, expected):
    x = QTensor(np.array([[[4, 6, 8]]], np.uint8), grid(1, 3))  # 1, 3 and 5
    weight = weight_of(np.ones((1, 1, 1), np.int8), 1)
    y = get_dialect(engine).conv(x, weight, np.zeros(1, F32), grid(2, 101), False, square((1,)))
    assert y.int_repr().ravel().tolist() == expected


def test_onednn_inverts_a_weights_scale_twice_for_a_linear_and_not_for_a_conv():
    """f(1/f(1/3.5)) is 3.4999998: 3.5 goes to 4, and that to 3."""
    x, weight, output = np.ones((1, 1, 1), np.uint8), np.ones((1, 1, 1), np.int8), grid(1, 0)
    dialect = get_dialect("onednn")
    conv = dialect.conv(QTensor(x, grid(1, 0)), weight_of(weight, 3.5), np.zeros(1, F32), output, False, square((1,)))
    linear = dialect.linear(QTensor(x[0], grid(1, 0)), weight_of(weight[0], 3.5), np.zeros(1, F32), output, False)
    assert (conv.int_repr().item(), linear.int_repr().item()) == (4, 3)


def test_which_engine_x86_takes():
    """Ties tell: onednn rounds after adding the zero point, fbgemm before."""

    def of_groups(groups, zero_point):
        x = QTensor(np.full((1, groups, 1), 4, np.uint8), grid(1, 3))
        weight = weight_of(np.full((groups, 1, 1), 1 + zero_point, np.int8), 1, zero_point)
        y = get_dialect("x86").conv(x, weight, np.zeros(groups, F32), grid(2, 101), False, square((1,), groups=groups))
        return set(y.int_repr().ravel().tolist())

    assert of_groups(100, 0) == {102}
    assert of_groups(101, 0) == {101}
    assert of_groups(100, 1) == {101}  # a weight that is not symmetric


# ---- saturation ------------------------------------------------------------------------------------------------------


def middle(engine, channels, kernel, groups):
    """The sum at the middle of a picture of 255 under weights of 127, whose exact value is 255·127 a tap."""
    x = QTensor(np.full((1, channels, 5, 5), 255, np.uint8), grid(1, 0))
    weight = weight_of(np.full((channels, channels // groups, *kernel), 127, np.int8), 1)
    geometry = square(kernel, padding=kernel[0] // 2, groups=groups)
    return int(geometry.images(get_dialect(engine).conv_sums(x, weight, geometry), x.shape)[0, 0, 2, 2])


def test_the_depthwise_kernel_saturates_on_every_processor():
    assert middle("fbgemm", 8, (3, 3), 8) == middle("fbgemm_avx2", 8, (3, 3), 8) == 4 * 32767 + 255 * 127
    assert middle("fbgemm", 7, (3, 3), 7) == 9 * 255 * 127  # not a multiple of 8: another kernel
    assert middle("fbgemm", 8, (1, 1), 8) == 255 * 127


def test_other_kernels_saturate_without_vnni():
    assert middle("fbgemm", 4, (3, 3), 1) == 36 * 255 * 127
    assert middle("fbgemm_avx2", 4, (3, 3), 1) == middle("onednn_avx2", 4, (3, 3), 1) == 18 * 32767
    # nine taps of three channels: 13 pairs and one alone, against nine times a pair and one alone
    assert middle("fbgemm_avx2", 3, (3, 3), 1) == 13 * 32767 + 255 * 127
    assert middle("onednn_avx2", 3, (3, 3), 1) == 9 * (32767 + 255 * 127)
    assert middle("onednn_avx2", 3, (3, 3), 3) == 9 * 255 * 127  # depthwise: exact
    assert middle("onednn_avx2", 6, (3, 3), 3) == 18 * 255 * 127  # two channels a group: the plain reference, exact


def specification(qx, zx, qw, geometry, within_taps):
    """Python's integers, one output at a time."""
    (N, _, L), (M, per_group, k) = qx.shape, qw.shape
    (before, after), s, d = geometry.padding[0], geometry.stride[0], geometry.dilation[0]
    padded = np.pad(qx.astype(int), ((0, 0), (0, 0), (before, after)), constant_values=-1)
    rows = []
    for n, i in itertools.product(range(N), range(geometry.places((L,))[0])):
        for m in range(M):
            first = m // (M // geometry.groups) * per_group
            taps = [(padded[n, first : first + per_group, i * s + t * d], qw[m, :, t].astype(int)) for t in range(k)]
            rows.append(paired(taps, zx, within_taps))
    return np.array(rows).reshape(-1, M)


def paired(taps, zx, within_taps):
    """The saturated sum of one window, zx taken out."""
    if within_taps:
        seen = [tap for tap in taps if tap[0][0] >= 0]
        return sum(clipped(list(a * w)) - zx * int(w.sum()) for a, w in seen)
    inputs = np.concatenate([np.where(a < 0, zx, a) for a, _ in taps])
    weights = np.concatenate([w for _, w in taps])
    return clipped(list(inputs * weights)) - zx * int(weights.sum())


def clipped(products):
    products = products + [0] * (len(products) % 2)
    return sum(min(max(p + q, -32768), 32767) for p, q in zip(products[::2], products[1::2], strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_pairs_equal_the_specification(seed):
    rng = np.random.default_rng(seed)
    groups, per_group = int(rng.integers(1, 3)), int(rng.integers(1, 5))
    geometry = square((int(rng.integers(1, 4)),), int(rng.integers(1, 3)), int(rng.integers(0, 3)), 1, groups)
    qx = rng.integers(128, 256, (2, groups * per_group, 6)).astype(np.uint8)
    qw = rng.choice(np.array([-128, -90, 100, 127], np.int8), (2 * groups, per_group, *geometry.kernel))
    zx = np.asarray(rng.integers(0, 256), np.int32)
    whole = windows_in_pairs(qx, zx, qw, np.zeros((), np.int32), geometry)
    assert np.array_equal(whole, specification(qx, int(zx), qw, geometry, False))
    assert np.array_equal(taps_in_pairs(qx, zx, qw, geometry), specification(qx, int(zx), qw, geometry, True))


# ---- dynamic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dynamic_output_stays_on_the_grid_of_the_input(engine):
    """A fault of torch, kept: 100 times the input is cut off at the grid's ends. The reference dialect keeps it."""
    x = np.array([[[-1, 0, 0.5, 1]]], F32)
    weight, bias, geometry = weight_of(np.full((1, 1, 1), 100, np.int8), 1), np.zeros(1, F32), square((1,))
    dialect, reference = get_dialect(engine), get_dialect("reference")
    spec = dialect.dynamic(8)[0]
    y = dialect.dynamic_conv(x, weight, bias, False, spec, geometry).ravel()
    step = 2 / spec.qmax
    lowest, highest = -round(spec.qmax / 2) * step, (255 - round(spec.qmax / 2)) * step
    assert np.allclose(y, [lowest, 0, highest, highest], atol=step)
    kept = reference.dynamic_conv(x, weight, bias, False, reference.dynamic(8)[0], geometry)
    assert np.allclose(kept.ravel(), [-100, 0, 50, 100], atol=100 / 255)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dynamic_relu_is_the_maximum_with_zero(engine):
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((2, 3, 8)).astype(F32), rng.standard_normal(4).astype(F32) / 4
    weight = weight_of(rng.integers(-128, 128, (4, 3, 3)).astype(np.int8), 0.002)
    dialect, geometry = get_dialect(engine), square((3,), padding=1)
    spec = dialect.dynamic(8)[0]
    plain, fused = (dialect.dynamic_conv(x, weight, bias, relu, spec, geometry) for relu in (False, True))
    assert (plain < 0).any() and np.array_equal(fused, np.maximum(plain, 0))


@pytest.mark.parametrize("engine", ALL)
def test_no_pictures(engine):
    x = QTensor(np.zeros((0, 8, 5, 5), np.uint8), grid(1, 3))
    weight, bias = weight_of(np.ones((8, 1, 3, 3), np.int8), 1), np.zeros(8, F32)
    dialect, geometry = get_dialect(engine), square((3, 3), padding=1, groups=8)
    assert dialect.conv(x, weight, bias, grid(1, 3), False, geometry).shape == (0, 8, 5, 5)
    spec = dialect.dynamic(8)[0]
    assert dialect.dynamic_conv(x.dequantize(), weight, bias, False, spec, geometry).shape == (0, 8, 5, 5)
