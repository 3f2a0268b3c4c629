"""The torchao dialect without torchao: closed forms of its grids, its gradient, tinygemm, and its dynamic Linears."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from minquant import Tensor, load, nn, save
from minquant.quant import (
    MinMaxObserver,
    PerChannel,
    PerChannelMinMaxObserver,
    PerGroup,
    PerTensor,
    PerToken,
    QConfig,
    QParams,
    QSpec,
    QuantWrapper,
    choose_qparams,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    quantize,
    quantize_dynamic,
)
from minquant.quant.dialects import get_dialect, tinygemm, torchao
from minquant.quant.grid import EPS, to_integers, to_own_grids

F32 = np.float32
INT4 = QSpec(4, symmetric=True)
NO_CLIPPING = "symmetric_no_clipping_error"

# ---- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "mapping", "scale", "zero_point"),
    [
        (-3, 1, "symmetric", 3 / 7.5, 0),
        (-1, 3, "symmetric", 3 / 7.5, 0),
        (-4, 1, NO_CLIPPING, 4 / 8, 0),
        (-1, 3.5, NO_CLIPPING, 3.5 / 7, 0),
        (1, 3.5, NO_CLIPPING, 3.5 / 7, 0),
        (-1, 2, "asymmetric", 3 / 15, -3),
        (1, 3, "asymmetric", 3 / 15, -8),
        (-3, -1, "asymmetric", 3 / 15, 7),
    ],
)
def test_grids_of_int4(low, high, mapping, scale, zero_point):
    spec = QSpec(4, symmetric=mapping != "asymmetric")
    grid = torchao.choose_qparams(np.array([low, high], F32), spec, mapping)
    assert grid.scale == pytest.approx(scale, rel=1e-7) and grid.zero_point == zero_point


@pytest.mark.parametrize("eps", [torchao.TINY, EPS])
def test_choosing_and_rounding_in_one_pass_changes_nothing(eps, monkeypatch):
    monkeypatch.setenv("MINQUANT_BACKEND", "numba")
    import_module("minquant.kernels.fake_quantize")  # small work does not load numba by itself
    rng, spec = np.random.default_rng(0), QSpec(granularity=PerToken())
    for i in range(300):
        x = (rng.normal(size=rng.integers(1, (6, 70))) * 10.0 ** rng.integers(-44, 37)).astype(F32)
        x = [x, np.abs(x), -np.abs(x), np.rint(x) / 2, x * F32(0)][i % 5]
        qparams = torchao.choose_qparams(x, spec, eps=eps)
        wanted = to_integers(x, qparams), *qparams.expand(x.shape)
        for ours, plain in zip(to_own_grids(x, spec, eps), wanted, strict=True):
            assert ours.dtype == plain.dtype
            np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_grid_is_left_to_the_way_that_says_so(bad, monkeypatch):
    monkeypatch.setenv("MINQUANT_BACKEND", "numba")
    import_module("minquant.kernels.fake_quantize")
    x = np.ones((2, 4), F32)
    x[1, 2] = bad
    assert to_own_grids(x, QSpec(granularity=PerToken()), EPS) is None
    assert to_own_grids(np.array([[-3e38, 3e38]], F32), QSpec(granularity=PerToken()), EPS) is None


def test_only_one_symmetric_mapping_clips_the_largest_value():
    x = np.array([-0.3, 1.0], F32)
    clipped, whole = (torchao.choose_qparams(x, INT4, mapping) for mapping in ("symmetric", NO_CLIPPING))
    assert quantize(x, clipped).dequantize()[1] == F32(7) * clipped.scale < 1
    assert quantize(x, whole).dequantize()[1] == 1


def test_the_mapping_left_out_is_the_specs():
    x = np.array([-1.0, 2.0], F32)
    for spec, mapping in ((INT4, "symmetric"), (QSpec(4), "asymmetric")):
        assert torchao.choose_qparams(x, spec).scale == torchao.choose_qparams(x, spec, mapping).scale


def test_the_middle_of_a_symmetric_grid_is_rounded_up_to_zero():
    middles = {(-8, 7): 0, (-7, 7): 0, (0, 15): 8, (0, 14): 7, (-6, 7): 1, (-8, 4): -1}
    for (qmin, qmax), middle in middles.items():
        spec = QSpec(4, qmin < 0, True, qmin=qmin, qmax=qmax)
        assert torchao.choose_qparams(np.ones(2, F32), spec).zero_point == middle


def test_the_smallest_scale_is_the_smallest_normal_number():
    assert torchao.choose_qparams(np.zeros(3, F32), INT4).scale == F32(2.0**-126)
    assert choose_qparams(0, 0, INT4).scale == F32(2.0**-23)  # the reference dialect's
    assert torchao.choose_qparams(np.zeros(3, F32), INT4, eps=1e-5).scale == F32(1e-5)


@pytest.mark.parametrize(
    ("spec", "mapping", "message"),
    [
        (INT4, "skewed", "mapping must be one of symmetric, symmetric_no_clipping_error, asymmetric; got 'skewed'"),
        (INT4, "asymmetric", "contradicts the spec, int4 symmetric per tensor"),
        (QSpec(4), "symmetric", "contradicts the spec, int4 affine per tensor"),
        (QSpec(4, signed=False, symmetric=True), NO_CLIPPING, "needs integers of both signs"),
    ],
)
def test_mappings_refused(spec, mapping, message):
    with pytest.raises(ValueError, match=message):
        torchao.choose_qparams(np.ones(2, F32), spec, mapping)


def test_a_range_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the range holds 0 NaN and 1 infinite values"):
        torchao.choose_qparams(np.array([1, np.inf], F32), INT4)


# ---- fake quantization -----------------------------------------------------------------------------------------------


def test_the_gradient_passes_through_scale_and_reciprocal():
    grid = QParams(F32(41), 0, INT4)
    x = Tensor(np.array([-400, -340, 100, 300, 310], F32), requires_grad=True)  # codes -10, -8, 2, 7, 8
    y = torchao.fake_quantize(x, grid)
    y.sum().backward()
    through = F32(41) * (F32(1) / F32(41))
    assert through == 1 - 2.0**-24  # which is why it is not the straight-through gradient to the last bit
    assert x.grad.tolist() == [0, through, through, through, 0]
    assert y.qparams is grid and y.data.tolist() == [-8 * 41, -8 * 41, 2 * 41, 7 * 41, 7 * 41]


# ---- tinygemm --------------------------------------------------------------------------------------------------------

UINT4 = QSpec(4, signed=False, granularity=PerGroup(4))


def test_tinygemms_zero_point_is_the_real_value_of_the_middle():
    x = np.array([[1, 2, 3, 8.5, -1, -2, -3, -16]], F32)
    grid = tinygemm.choose_qparams(x, UINT4)
    assert grid.scale.tolist() == [[0.5, 1]] and grid.zero_point.tolist() == [[5, -8]]
    q = tinygemm.quantize(x, grid)
    assert q.dtype == np.uint8 and q.tolist() == [[0, 2, 4, 15, 15, 14, 13, 0]]
    assert np.array_equal(tinygemm.dequantize(q, grid), x)


def test_tinygemm_spends_no_integers_on_zero():
    """All between 10 and 11: a grid that holds 0 has steps of 11/15, tinygemm's has steps of 1/15."""
    x = np.linspace(10, 11, 16, dtype=F32).reshape(1, 16)
    spec = QSpec(4, signed=False, granularity=PerGroup(16))
    grid = tinygemm.choose_qparams(x, spec)
    with_zero = quantize(x, torchao.choose_qparams(x, spec)).dequantize()
    assert np.abs(tinygemm.dequantize(tinygemm.quantize(x, grid), grid) - x).max() < 1e-5
    assert np.abs(with_zero - x).max() > 0.3


def test_tinygemm_has_a_smallest_scale_and_no_symmetric_grid():
    assert tinygemm.choose_qparams(np.ones((1, 4), F32), UINT4).scale == F32(1e-6)
    with pytest.raises(ValueError, match="tinygemm has no symmetric grid, got int4 symmetric"):
        tinygemm.choose_qparams(np.ones((1, 4), F32), QSpec(4, symmetric=True, granularity=PerGroup(4)))
    with pytest.raises(ValueError, match="1 of 4 values are NaN"):
        tinygemm.quantize(np.array([[1, 2, 3, np.nan]], F32), tinygemm.choose_qparams(np.ones((1, 4), F32), UINT4))


# ---- dynamic Linears -------------------------------------------------------------------------------------------------


def linear(w: np.ndarray, bias: np.ndarray | None = None) -> nn.Module:
    layer = nn.Linear(w.shape[1], w.shape[0], bias=bias is not None)
    layer.weight.data = w.astype(F32)
    if bias is not None:
        layer.bias.data = bias.astype(F32)
    return nn.Sequential(layer)


def test_the_preset_is_torchaos():
    model = quantize_dynamic(nn.Sequential(nn.Linear(64, 8)), default_dynamic_qconfig("torchao", weight_bits=4))
    layer = model[0]
    assert layer.input_spec == QSpec(granularity=PerToken())
    assert layer.weight.qparams.spec == QSpec(4, symmetric=True, granularity=PerGroup(32))
    assert layer.weight.qparams.scale.shape == (8, 2)


def test_affine_input_the_operands_are_multiplied_as_real_values():
    rng = np.random.default_rng(0)
    w, bias, x = rng.standard_normal((5, 8)), rng.standard_normal(5), rng.standard_normal((2, 3, 8)).astype(F32)
    weight = torchao.IntxWeightObserver.with_args(weight_bits=3, granularity=PerGroup(4))
    model = quantize_dynamic(linear(w, bias), QConfig(QSpec(granularity=PerToken()), weight, "torchao"))
    real_x = quantize(x, torchao.choose_qparams(x, QSpec(granularity=PerToken()))).dequantize().astype(np.float64)
    spec = QSpec(3, symmetric=True, granularity=PerGroup(4))
    real_w = quantize(w.astype(F32), torchao.choose_qparams(w.astype(F32), spec)).dequantize()
    size = np.abs(real_x) @ np.abs(real_w).T + np.abs(bias)
    assert (np.abs(model(x).data - (real_x @ real_w.T + bias.astype(F32))) <= 9 * 2.0**-24 * 1.001 * size).all()


def int8_config(granularity) -> QConfig:
    weight = PerChannelMinMaxObserver.with_args(dtype="qint8", qscheme="per_channel_symmetric")
    return QConfig(QSpec(symmetric=True, granularity=granularity), weight, "torchao")


def test_symmetric_input_the_integers_are_multiplied():
    w, x = np.array([[127.5, -2], [51, 102]]), np.array([[1, 127.5], [-255, 2]], F32)
    model = quantize_dynamic(linear(w, np.array([0.25, -0.25])), int8_config(PerToken()))
    # integers of w: [127, -2] at 1 and [64, 127] at 0.8; of x: [1, 127] at 1 and [-128, 1] at 2
    acc = np.array([[127 - 254, 64 + 127 * 127], [-128 * 127 - 2, -128 * 64 + 127]])
    expected = acc.astype(F32) * F32([[1], [2]]) * F32([1, 0.8]) + F32([0.25, -0.25])
    assert np.array_equal(model(x).data, expected)


def test_symmetric_input_has_the_other_smallest_scale():
    dialect, zeros = get_dialect("torchao"), np.zeros((1, 3), F32)
    scales = [dialect.quantize_at_run_time(zeros, QSpec(symmetric=s, granularity=PerToken()))[1] for s in (True, False)]
    assert [float(s[0, 0]) for s in scales] == [2.0**-23, 2.0**-126]


@pytest.mark.parametrize("granularity", [PerToken(), PerTensor()])
@pytest.mark.parametrize("symmetric", [True, False])
def test_empty_batches_and_relu(granularity, symmetric):
    spec = QSpec(symmetric=symmetric, granularity=granularity)
    config = QConfig(spec, int8_config(granularity).weight, "torchao")
    layer = quantize_dynamic(linear(np.ones((4, 3))), config)[0]
    assert layer(np.zeros((2, 0, 3), F32)).shape == (2, 0, 4)
    layer.relu = True
    assert (layer(np.array([[-1, -2, -3.0]], F32)).data == 0).all()


def test_a_model_survives_its_file(tmp_path):
    rng = np.random.default_rng(1)
    weight = torchao.IntxWeightObserver.with_args(weight_bits=4, granularity=PerGroup(4), mapping="asymmetric")
    model = quantize_dynamic(
        linear(rng.standard_normal((5, 8))), QConfig(QSpec(granularity=PerToken()), weight, "torchao")
    )
    save(model, tmp_path / "model.safetensors")
    x = rng.standard_normal((3, 8)).astype(F32)
    assert np.array_equal(load(tmp_path / "model.safetensors")(x).data, model(x).data)


def test_groups_that_do_not_fit_name_the_layer():
    with pytest.raises(
        ValueError, match=r"quantize_dynamic: the weight of '0': PerGroup\(32\): the group size must div"
    ):
        quantize_dynamic(nn.Sequential(nn.Linear(20, 4)), default_dynamic_qconfig("torchao"))


def test_symmetric_input_refuses_groups():
    weight = torchao.IntxWeightObserver.with_args(granularity=PerGroup(4))
    config = QConfig(QSpec(symmetric=True, granularity=PerToken()), weight, "torchao")
    model = quantize_dynamic(linear(np.ones((2, 4))), config)
    with pytest.raises(
        ValueError, match="with symmetric integers for the input, the weight must be symmetric per channel"
    ):
        model(np.ones((1, 4), F32))


def test_there_is_nothing_static():
    for preset in (get_default_qconfig, get_default_qat_qconfig):
        with pytest.raises(ValueError, match="torchao has dynamic Linears only: give this QConfig to quantize_dynamic"):
            preset("torchao")
    config = QConfig(MinMaxObserver, MinMaxObserver.with_args(dtype="qint8"), "torchao")
    with pytest.raises(ValueError, match="torchao has dynamic Linears only"):
        prepare(QuantWrapper(nn.Sequential(nn.Linear(3, 2))), config)


def test_there_is_no_conv():
    weight = PerChannelMinMaxObserver.with_args(dtype="qint8", qscheme="per_channel_symmetric")
    model = quantize_dynamic(nn.Sequential(nn.Conv1d(1, 1, 1)), QConfig(QSpec(), weight, "torchao"))
    with pytest.raises(ValueError, match="torchao has dynamic Linears only"):
        model(np.ones((1, 1, 3), F32))


def test_an_observer_of_a_weight_checks_its_arguments():
    with pytest.raises(ValueError, match="mapping must be one of"):
        torchao.IntxWeightObserver(mapping="skewed")
    with pytest.raises(ValueError, match="bits must be 2 to 8"):
        torchao.IntxWeightObserver(weight_bits=1)
    observer = torchao.IntxWeightObserver(4, PerChannel(), NO_CLIPPING)
    observer(np.array([[-8, 3], [1, 7.0]], F32))
    assert observer.qparams().scale.tolist() == [1, 1]
