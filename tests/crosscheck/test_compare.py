"""`compare` on minquant's models: every planted fault is found in its layer and called by its name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn
from minquant.crosscheck import compare
from minquant.crosscheck.diagnosis.causes import CAUSES
from minquant.crosscheck.diagnosis.rules import ROUNDINGS, Layer, rule_of
from minquant.crosscheck.diagnosis.values import Facts
from minquant.quant import (
    LinearReLU,
    MinMaxObserver,
    PerChannel,
    PerChannelMinMaxObserver,
    QConfig,
    QParams,
    QSpec,
    QTensor,
    Quantize,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantWrapper,
    choose_qparams,
    convert,
    default_dynamic_qconfig,
    fuse_modules,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize,
    quantize_dynamic,
)

ROWS = 400


def linear_chain(width=32, bias=True):
    """Three Linears, each with its ReLU fused in."""
    manual_seed(3)
    return QuantWrapper(nn.Sequential(*(LinearReLU(nn.Linear(width, width, bias=bias), nn.ReLU()) for _ in range(3))))


def conv_chain():
    """Three convolutions with ReLU fused in, images of 6×6."""
    manual_seed(4)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3)]
    model = nn.Sequential(*(part for conv in convs for part in (conv, nn.ReLU())))
    return QuantWrapper(fuse_modules(model.eval(), [["0", "1"], ["2", "3"], ["4", "5"]]))


def data(model, rows=ROWS, seed=0):
    shape = (rows // 10, 3, 6, 6) if any(isinstance(m, nn.Conv2d) for m in model.modules()) else (rows, 32)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def converted(model, engine="reference", x=None, qconfig=None):
    prepared = prepare(model, qconfig or get_default_qconfig(engine))
    prepared(data(model) if x is None else x)
    return convert(prepared)


# ---- faults: each changes one converted layer ------------------------------------------------------------------------


def output_zero_point(layer):
    grid = layer.output
    layer.output = QParams(grid.scale, grid.zero_point + 1, grid.spec)


def output_scale(layer):
    grid = layer.output
    layer.output = QParams(grid.scale * np.float32(1.01), grid.zero_point, grid.spec)


def one_weight(layer):
    integers = layer.weight.int_repr().copy()
    integers[(1,) * integers.ndim] += 1 if integers[(1,) * integers.ndim] < 127 else -1
    layer.weight = QTensor(integers, layer.weight.qparams)


def channel_scale(layer):
    grid = layer.weight.qparams
    scale = grid.scale.copy()
    scale[2] = scale[3]
    layer.weight = QTensor(layer.weight.int_repr(), QParams(scale, grid.zero_point, grid.spec))


def bias_lost(layer):
    layer.bias = None


def range_clamped(layer):
    grid = layer.output
    layer.output = QParams(grid.scale, grid.zero_point, replace(grid.spec, qmax=127))


def no_relu(layer):
    layer.__class__ = QuantizedConv2d if layer.weight.ndim == 4 else QuantizedLinear


def by_rule(**changes):
    """The layer recomputed from its own parameters with one rule changed, and nothing in them that shows it."""

    def plant(layer):
        role = "linear" if layer.weight.ndim == 2 else "conv"
        facts = Facts("", role, layer.weight, layer.bias, layer.output, layer.relu, layer.backend,
                      getattr(layer, "geometry", None), integers=True)  # fmt: skip
        rule = replace(rule_of(facts), **changes)
        layer.forward = lambda x: QTensor(Layer(facts, [x]).integers(rule)[0], layer.output)

    return plant


def half_up_by_hand(layer):
    """Written out as somebody would who writes their own kernel; no table of ours takes part."""

    def forward(x):
        centred = x.int_repr().astype(np.int64) - int(x.qparams.zero_point)
        acc = centred @ layer.weight.int_repr().astype(np.int64).T
        y = acc.astype(np.float32) * (x.qparams.scale * layer.weight.qparams.scale) + layer.bias
        q = np.floor(np.maximum(y, 0) * (np.float32(1) / layer.output.scale) + np.float32(0.5))
        return QTensor(np.clip(q + layer.output.zero_point, 0, 255).astype(np.uint8), layer.output)

    layer.forward = forward


def integer_bias_by_hand(layer):
    """The bias rounded to int32, added to the accumulator; otherwise the reference dialect's order."""

    def forward(x):
        step = x.qparams.scale * layer.weight.qparams.scale
        acc = (x.int_repr().astype(np.int32) - x.qparams.zero_point) @ layer.weight.int_repr().astype(np.int32).T
        y = (acc + np.rint(layer.bias / step).astype(np.int32)).astype(np.float32) * step
        return quantize(np.maximum(y, np.float32(0)), layer.output)

    layer.forward = forward


FAULTS = {
    "input zero point + 1": (by_rule(input_zero_point=1), "zero_point"),
    "input zero point not taken out": (by_rule(input_zero_point="none"), "zero_point"),
    "output zero point + 1": (output_zero_point, "zero_point"),
    "output zero point + 1 in the sums only": (by_rule(output_zero_point=1), "zero_point"),
    "output scale 1% off": (output_scale, "scale"),
    "output scale 1% off, not declared": (by_rule(output_scale=1.01), "scale"),
    "one weight + 1": (one_weight, "weight"),
    "wrong channel scale": (channel_scale, "scale"),
    "one scale for all channels, not declared": (by_rule(weight_scale="largest"), "scale"),
    "bias lost": (bias_lost, "bias"),
    "bias lost, not declared": (by_rule(bias=0.0), "bias"),
    "integer bias": (by_rule(scaling="integer bias"), "bias"),
    "halves rounded up": (by_rule(rounding="half up"), "rounding"),
    "truncation": (by_rule(rounding="truncated"), "rounding"),
    "float sums": (by_rule(sums="dequantized", scaling="dequantized"), "accumulation"),
    "range clamped at 127": (range_clamped, "clamp"),
    "range clamped at 127, not declared": (by_rule(high=127), "clamp"),
    "wraps around": (by_rule(wraps=True), "clamp"),
    "int16 saturation of pairs": (by_rule(sums="pairs"), "saturation"),
    "int16 saturation of the sum": (by_rule(sums="clipped"), "saturation"),
    "ReLU lost": (no_relu, "missing"),
    "ReLU lost, not declared": (by_rule(relu="none"), "missing"),
}


def float_sums_by_hand(layer):
    """Dequantized operands, multiplied and added in float, as a simulation does it."""

    def forward(x):
        y = x.dequantize() @ layer.weight.dequantize().T + layer.bias
        return quantize(np.maximum(y, np.float32(0)), layer.output)

    layer.forward = forward


BY_HAND = {
    "float sums, by hand": (float_sums_by_hand, "accumulation"),
    "halves rounded up, by hand": (half_up_by_hand, "rounding"),
    "integer bias, by hand": (integer_bias_by_hand, "bias"),
}


def planted(model, index, fault):
    """A copy with that layer (counted among those with a weight) broken."""
    broken = copy.deepcopy(model)
    paths = [path for path, m in broken.named_modules() if hasattr(m, "weight")]
    fault(broken.get_submodule(paths[index]))
    return broken, paths[index]


SYMMETRIC = QConfig(
    MinMaxObserver.with_args(qscheme="per_tensor_symmetric"),
    PerChannelMinMaxObserver.with_args(dtype="qint8", qscheme="per_channel_symmetric"),
)
"""Zero points of 128, behind a ReLU too, so that what concerns them shows in every layer."""
NEEDS_ZERO_POINTS = {"input zero point not taken out", "ReLU lost", "ReLU lost, not declared"}


@pytest.fixture(scope="module")
def linears():
    return converted(linear_chain())


@pytest.fixture(scope="module")
def symmetric():
    return {make: converted(make(), qconfig=SYMMETRIC) for make in (linear_chain, conv_chain)}


@pytest.fixture(scope="module")
def convs():
    return converted(conv_chain())


AT_THE_ENDS = (
    "input zero point + 1",
    "bias lost",
    "halves rounded up, by hand",
    "output scale 1% off",
    "one weight + 1",
)
CASES = [(name, 1) for name in (*FAULTS, *BY_HAND)] + [(name, index) for name in AT_THE_ENDS for index in (0, 2)]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_fault_in_a_linear_is_named(linears, symmetric, name, index):
    fault, cause = (FAULTS | BY_HAND)[name]
    model = symmetric[linear_chain] if name in NEEDS_ZERO_POINTS else linears
    broken, path = planted(model, index, fault)
    found = compare(model, broken, data(linear_chain())).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == (path, cause), found


@pytest.mark.parametrize("name", [*FAULTS, "padded with the integer 0"])
def test_a_fault_in_a_conv_is_named(convs, symmetric, name):
    fault, cause = (FAULTS | {"padded with the integer 0": (by_rule(padding=0), "zero_point")})[name]
    model = symmetric[conv_chain] if name in NEEDS_ZERO_POINTS or "padded" in name else convs
    broken, path = planted(model, 1, fault)
    found = compare(model, broken, data(conv_chain())).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == (path, cause), found


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onednn"])
@pytest.mark.parametrize("name", ["halves rounded up", "bias lost", "int16 saturation of pairs", "output scale 1% off"])
def test_a_fault_in_another_dialect_is_named(engine, name):
    model = converted(linear_chain(), engine)
    fault, cause = FAULTS[name]
    broken, path = planted(model, 1, fault)
    found = compare(model, broken, data(linear_chain())).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == (path, cause), found


@pytest.mark.parametrize("sums", ["float32", "float32 raw", "float32 one by one"])
def test_a_float32_accumulator_is_named_where_it_loses_digits(sums):
    manual_seed(0)
    model = QuantWrapper(nn.Sequential(nn.Linear(4000, 6), nn.ReLU(), nn.Linear(6, 3)))
    model.module[0].weight.data[:] = np.abs(model.module[0].weight.data)  # sums beyond 2²⁴
    x = np.random.default_rng(0).uniform(0.8, 1, (64, 4000)).astype(np.float32)
    whole = converted(model, x=x)
    broken, path = planted(whole, 0, by_rule(sums=sums))
    found = compare(whole, broken, x).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == (path, "accumulation"), found


def test_a_layer_left_in_float_is_missing():
    model = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    left_out = quantize_dynamic(model, {"": default_dynamic_qconfig(), "1": None})
    found = compare(quantize_dynamic(model), left_out, data(model)).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == ("1", "missing"), found
    assert "stayed in float in the second" in found["evidence"]


def test_a_missing_relu_module_is_missing():
    manual_seed(1)
    with_relu = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    without = nn.Sequential(with_relu[0], nn.Identity(), with_relu[2])
    found = compare(with_relu, without, np.ones((3, 4), np.float32)).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == ("1", "missing")


def test_another_activation_is_told():
    manual_seed(1)
    one, other = (nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 2)) for act in (nn.ReLU(), nn.SiLU()))
    other[0], other[2] = one[0], one[2]
    found = compare(one, other, np.ones((3, 4), np.float32)).first_divergent
    assert (found["layer"], found["cause"], found["evidence"]) == ("1", "missing", "a ReLU here, a SiLU there")


def test_a_batch_norm_folded_with_a_wrong_variance_is_a_wrong_weight():
    whole, wrong = (folded_network(factor) for factor in (1.0, 1.5))
    x = data(conv_chain())
    found = compare(whole, wrong, x).first_divergent
    assert found is not None
    assert (found["layer"], found["cause"]) == ("module.2", "weight"), found


def folded_network(factor):
    """Conv, Conv-BN-ReLU, Conv, folded; the variance of its batch norm times a factor."""
    manual_seed(5)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(*layers).eval()
    model[3].running_var.data[:] = np.array([0.5, 2, 1, 0.1]) * factor
    model[3].running_mean.data[:] = [0.1, -0.2, 0, 0.3]
    return converted(QuantWrapper(fuse_modules(model, [["0", "1"], ["2", "3", "4"]])))


# ---- against the float model -----------------------------------------------------------------------------------------


def test_a_sound_model_differs_from_float_by_rounding_alone(linears):
    comparison = compare(linear_chain(), linears, data(linear_chain()))
    assert comparison.first_divergent["cause"] == "rounding"
    assert "nothing is wrong" in comparison.first_divergent["evidence"]
    assert all(row["sqnr_db"] > 25 for row in comparison.layers)


UNSEEN_FROM_FLOAT = {"output zero point + 1", "output scale 1% off"}
"""A grid that is only declared elsewhere is a grid like any other."""


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - UNSEEN_FROM_FLOAT))
def test_a_fault_is_named_against_the_float_model_too(linears, symmetric, name):
    fault, cause = FAULTS[name]
    broken, path = planted(symmetric[linear_chain] if name in NEEDS_ZERO_POINTS else linears, 1, fault)
    found = compare(linear_chain(), broken, data(linear_chain())).first_divergent
    assert found["layer"] == path
    assert found["cause"] == ("weight" if name == "wrong channel scale" else cause), found


def test_float_models_are_compared_in_units_of_the_float_bound():
    first = linear_chain()
    assert compare(first, copy.deepcopy(first), data(first)).first_divergent is None
    second = copy.deepcopy(first)
    second.module[1].layer.weight.data[0, 0] += 1e-3
    comparison = compare(first, second, data(first))
    assert comparison.first_divergent["layer"] == "module.1"
    assert comparison.first_divergent["cause"] == "weight"
    assert {row["unit"] for row in comparison.layers} == {"float bound"}
    assert "float bound" in str(comparison)


def test_a_float_batch_norm_and_relu_join_the_layer_that_they_are_folded_into():
    manual_seed(6)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    model[1].running_mean.data[:] = [0.3, 0, -1, 2]
    quantized = converted(QuantWrapper(fuse_modules(model, [["0", "1", "2"]])))
    comparison = compare(QuantWrapper(model), quantized, data(model))
    assert [row["name"] for row in comparison.layers] == ["quant", "module.0", "module.3"]
    assert "nothing is wrong" in comparison.first_divergent["evidence"]
    assert compare(model, quantized, data(model)).layers[0]["kinds"] == ["Conv2d", "QuantizedConvReLU2d"]


# ---- what else is there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "fbgemm", "x86", "qnnpack", "onednn", "fbgemm_avx2", "onnx"])
def test_equal_models_do_not_differ(engine):
    for model in (linear_chain(), conv_chain()):
        quantized = converted(model, engine)
        comparison = compare(quantized, copy.deepcopy(quantized), data(model))
        assert comparison.first_divergent is None
        assert all(row["differing"] == row["same_inputs"]["differing"] == 0 for row in comparison.layers)
        assert "no layer differs" in str(comparison)


def test_prepared_for_training_equals_converted():
    prepared = prepare_qat(linear_chain().train(), get_default_qat_qconfig())
    x = data(linear_chain())
    prepared(x)
    comparison = compare(prepared.eval(), convert(prepared.eval()), x)
    assert comparison.first_divergent is None
    assert len(comparison.layers) == 4


def test_dynamic_models():
    float_model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    x = data(float_model)
    quantized = quantize_dynamic(float_model)
    assert compare(quantized, quantized, x).first_divergent is None
    assert compare(float_model, quantized, x).first_divergent["cause"] == "rounding"
    broken, path = planted(quantized, 1, one_weight)
    found = compare(quantized, broken, x).first_divergent
    assert (found["layer"], found["cause"]) == (path, "weight")


def test_embeddings():
    manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 2))
    spec = QSpec(granularity=PerChannel(0))
    table = quantize(model[0].weight, choose_qparams(*spec.granularity.min_max(model[0].weight.data), spec))
    quantized = nn.Sequential(QuantizedEmbedding(table), model[1])
    indices = np.arange(20).reshape(4, 5)
    comparison = compare(model, quantized, indices)
    assert comparison.first_divergent["cause"] == "rounding"
    assert comparison.layers[1]["same_inputs"]["differing"] == 0
    assert compare(quantized, quantized, indices).first_divergent is None
    broken, path = planted(quantized, 0, one_weight)
    found = compare(quantized, broken, indices).first_divergent
    assert (found["layer"], found["cause"]) == (path, "weight")


def test_a_module_called_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    model = Twice()
    assert [row["name"] for row in compare(model, model, np.ones((2, 4), np.float32)).layers] == ["fc", "fc#2"]


def test_operations_between_layers_are_layers():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
            self.fc, self.skip, self.act = nn.Linear(4, 4), nn.FloatFunctional(), nn.Sigmoid()

        def forward(self, x):
            x = self.quant(x)
            return self.dequant(self.act(self.skip.add(self.fc(x), x)))

    manual_seed(0)
    model = Residual()
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    quantized = converted(model, x=x)
    comparison = compare(quantized, quantized, x)
    assert [row["name"] for row in comparison.layers] == ["quant", "fc", "skip", "act"]
    assert comparison.first_divergent is None
    broken = copy.deepcopy(quantized)
    output_scale(broken.skip)
    assert compare(quantized, broken, x).first_divergent["layer"] == "skip"
    assert compare(quantized, broken, x).first_divergent["cause"] == "scale"
    assert compare(model, quantized, x).first_divergent["cause"] == "rounding"


@pytest.mark.parametrize("cause", ["scale", "zero_point", "clamp"])
def test_a_fault_in_a_stub_is_named(linears, cause):
    broken = copy.deepcopy(linears)
    grid = broken.quant.qparams
    broken.quant.qparams = {
        "scale": QParams(grid.scale * np.float32(1.01), grid.zero_point, grid.spec),
        "zero_point": QParams(grid.scale, grid.zero_point + 1, grid.spec),
        "clamp": QParams(grid.scale, np.int32(127), replace(grid.spec, qmax=127)),
    }[cause]
    whole = copy.deepcopy(linears)
    if cause == "clamp":
        whole.quant.qparams = QParams(grid.scale, np.int32(127), grid.spec)
    found = compare(whole, broken, data(linear_chain())).first_divergent
    assert (found["layer"], found["cause"]) == ("quant", cause)


@pytest.mark.parametrize(
    ("backend", "cause"), [("qnnpack", "bias"), ("onednn", "rounding"), ("fbgemm_avx2", "saturation")]
)
def test_a_layer_in_another_dialect_is_told_by_its_rule(linears, backend, cause):
    broken = copy.deepcopy(linears)
    broken.module[1].backend = backend
    found = compare(linears, broken, 3 * data(linear_chain())).first_divergent
    assert (found["layer"], found["cause"]) == ("module.1", cause), found


def test_two_faults_are_told_by_the_first(linears):
    broken, path = planted(linears, 1, by_rule(input_zero_point=1))
    bias_lost(broken.get_submodule("module.2"))
    assert compare(linears, broken, data(linear_chain())).first_divergent["layer"] == path


def test_batches_count_like_one_input(linears):
    broken, _ = planted(linears, 1, one_weight)
    x = data(linear_chain())
    one, two = compare(linears, broken, x), compare(linears, broken, [x[:150], Tensor(x[150:])])
    assert [row["differing"] for row in one.layers] == [row["differing"] for row in two.layers]


def test_own_and_same_inputs_part_ways_behind_the_fault(linears):
    broken, _ = planted(linears, 1, by_rule(input_zero_point=1))
    rows = compare(linears, broken, data(linear_chain())).layers
    assert [row["differing"] > 0 for row in rows] == [False, False, True, True]
    assert [row["same_inputs"]["differing"] > 0 for row in rows] == [False, False, True, False]


def test_the_models_stay_as_they_are(linears):
    model = linear_chain().train()
    compare(model, linears, data(model))
    assert model.training
    assert not model._forward_hooks
    assert type(linears.module[1]).__name__ == "QuantizedLinearReLU"


# ---- as text, JSON and picture ---------------------------------------------------------------------------------------


def test_json_has_no_infinity(linears):
    broken, path = planted(linears, 1, output_scale)
    report = json.loads(json.dumps(compare(linears, broken, data(linear_chain())).as_json(), allow_nan=False))
    assert {"name", "differing", "max_steps", "sqnr_db"} <= report["layers"][0].keys()
    assert report["layers"][0]["sqnr_db"] is None
    assert report["layers"][2]["sqnr_db"] > 0
    assert report["first_divergent"]["layer"] == path
    assert report["first_divergent"]["cause"] in CAUSES
    assert compare(linears, linears, data(linear_chain())).as_json()["first_divergent"] is None


def test_the_table_fits_its_width(linears):
    table = str(compare(linear_chain(), linears, data(linear_chain())))
    assert max(map(len, table.splitlines())) <= 110
    assert "own inputs" in table
    assert "same inputs" in table


def test_plot(linears, tmp_path):
    pytest.importorskip("matplotlib")
    compare(linear_chain(), linears, data(linear_chain())).plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_errors(linears):
    x = data(linear_chain())
    with pytest.raises(TypeError, match=r"second model must be a minquant Module .* got function"):
        compare(linears, lambda: linears, x)
    with pytest.raises(ValueError, match=r"no layer in common: the first has 'quant'"):
        compare(linears, nn.Sequential(nn.Sequential(nn.Linear(32, 3))), x)
    with pytest.raises(ValueError, match=r"the first model cannot run the inputs, in layer 'module.0'"):
        compare(linears, linears, np.ones((2, 31), np.float32))
    with pytest.raises(ValueError, match="inputs holds 1 NaN"):
        compare(linears, linears, np.array([[np.nan] + [0] * 31], np.float32))
    with pytest.raises(TypeError, match="arrays of numbers"):
        compare(linears, linears, "inputs.npy")
    with pytest.raises(ValueError, match="empty list"):
        compare(linears, linears, [])
    with pytest.raises(ValueError, match=r"layer '0' cannot be compared: shapes differ"):
        compare(nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 2)), np.ones((2, 4), np.float32))


def test_a_layer_that_returns_nan_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].bias.data[0] = np.nan
    with pytest.raises(ValueError, match="the output of '0' in the first model holds 2 NaN"):
        compare(model, model, np.ones((2, 2), np.float32))


# ---- the rules that are tried ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "fbgemm", "x86", "qnnpack", "onednn", "fbgemm_avx2"])
@pytest.mark.parametrize("make", [linear_chain, conv_chain])
def test_the_rules_with_none_changed_are_the_dialect(engine, make):
    """Put together again they give the integers of the dialect's own code."""
    model = converted(make(), engine)
    rng = np.random.default_rng(0)
    for layer in (m for m in model.modules() if hasattr(m, "weight")):
        shape = (50, layer.in_features) if layer.weight.ndim == 2 else (5, layer.in_channels, 6, 6)
        x = QTensor(
            rng.integers(0, 256, shape).astype(np.uint8), QParams(np.float32(0.013), np.int32(97), QSpec(signed=False))
        )
        facts = Facts("", "", layer.weight, layer.bias, layer.output, layer.relu, engine,
                      getattr(layer, "geometry", None), integers=True)  # fmt: skip
        (recomputed,) = Layer(facts, [x]).integers(rule_of(facts))
        np.testing.assert_array_equal(recomputed, layer(x).int_repr())


def test_roundings():
    assert ROUNDINGS["half up"](np.float32([2.5, -2.5])).tolist() == [3, -2]
    assert ROUNDINGS["half away"](np.float32([2.5, -2.5])).tolist() == [3, -3]
    assert ROUNDINGS["half even"](np.float32([2.5, -2.5])).tolist() == [2, -2]


def test_a_stub_of_another_dialect_is_told_by_its_rounding():
    ours, theirs = (nn.Sequential(Quantize(GRID, backend), nn.ReLU()) for backend in ("reference", "fbgemm"))
    found = compare(ours, theirs, data(linear_chain())).first_divergent
    assert (found["layer"], found["cause"]) == ("0", "rounding")
    assert "fma(x, f(1/s), z), rounded half even, gives the second model's integers exactly" in found["evidence"]


GRID = QParams(np.float32(0.03), np.int32(101), QSpec(signed=False))
