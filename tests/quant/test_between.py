"""Operations between two grids: activations, pooling, norms, sums and joins, in training and on integers."""

from __future__ import annotations

import numpy as np
import pytest

import minquant
from minquant import Tensor, nn, no_grad
from minquant import functional as F
from minquant.quant import (
    BetweenGrids,
    FixedQParamsObserver,
    QFunctional,
    QParams,
    QSpec,
    QuantStub,
    QuantWrapper,
    convert,
    dequantize,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize,
    report,
)

F32 = np.float32
UINT8 = QSpec(signed=False)
X = np.random.default_rng(0).standard_normal((6, 4, 4, 4)).astype(F32)


class Block(nn.Module):
    """A residual block with every operation of FloatFunctional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        for name in ("add", "add_relu", "mul", "cat", "plus", "times", "matmul"):
            setattr(self, name, nn.FloatFunctional())

    def forward(self, x):
        y = self.conv(x)
        y = self.add_relu.add_relu(self.add.add(x, y), self.mul.mul(x, y))
        y = self.times.mul_scalar(self.plus.add_scalar(y, 0.3), 1.7)
        return self.matmul.matmul(self.cat.cat([x, y, x], dim=1), self.cat.cat([y, x, x], dim=1))


def last(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), module)


MODELS = {
    "block": Block,
    "sigmoid": lambda: last(nn.Sigmoid()),
    "tanh": lambda: last(nn.Tanh()),
    "softmax": lambda: last(nn.Softmax(1)),
    "gelu": lambda: last(nn.GELU()),
    "silu": lambda: last(nn.SiLU()),
    "average": lambda: last(nn.AvgPool2d(3, stride=2, padding=1)),
    "adaptive average": lambda: last(nn.AdaptiveAvgPool2d(1)),
    "layer norm": lambda: last(nn.LayerNorm(4)),
    "rms norm": lambda: last(nn.RMSNorm(4)),
    "batch norm": lambda: last(nn.BatchNorm2d(4)),
    "batch norm 1d": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(2), nn.BatchNorm1d(4)),
}


def trained(name: str, bits: int = 8, backend: str = "reference") -> nn.Module:
    minquant.manual_seed(0)
    qconfig = get_default_qat_qconfig(backend, act_bits=bits)
    model = prepare_qat(QuantWrapper(MODELS[name]()), qconfig)
    for scale in (1, 2):
        (model(X * F32(scale)) ** 2).sum().backward()
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_prepared_equals_converted(name, bits):
    model = trained(name, bits)
    converted = convert(model)
    x = 1.5 * np.random.default_rng(1).standard_normal((40, 4, 4, 4)).astype(F32)
    with no_grad():
        before = model(x).data
    assert (before.view(np.int32) != converted(x).data.view(np.int32)).sum() == 0
    assert bits == 2 or len(np.unique(before)) > 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["reference", "x86", "qnnpack", "onednn"])
def test_static_output_is_close_to_the_float_models(name, backend):
    minquant.manual_seed(0)
    model = QuantWrapper(MODELS[name]()).eval()
    prepared = prepare(model, get_default_qconfig(backend))
    prepared(X)
    expected, got = model(X).data, convert(prepared)(X).data
    assert np.abs(got - expected).max() <= (0.25 if "norm" in name else 0.12) * np.abs(expected).max()


@pytest.mark.parametrize("backend", ["x86", "qnnpack", "onednn"])
@pytest.mark.parametrize("name", ["block", "average", "sigmoid", "layer norm"])
def test_torchs_dialects_train_and_convert(name, backend):
    model = trained(name, backend=backend)
    y = convert(model)(X).data
    assert np.abs(y - model(X).data).max() <= 0.2 * np.abs(y).max()


def test_sums_and_joins_in_real_values():
    a = quantize(np.array([1.0, 2.0], F32), QParams(0.5, 10, UINT8))
    b = quantize(np.array([0.75, -0.25], F32), QParams(0.25, 40, UINT8))
    functional = QFunctional(QParams(1.0, 5, UINT8), "reference")
    assert dequantize(functional.add(a, b)).tolist() == [2.0, 2.0]  # 1.75 and 1.75
    assert dequantize(functional.mul(a, b)).tolist() == [1.0, 0.0]  # 0.75, and -0.5: a tie, to even
    assert dequantize(functional.add_relu(a, functional.mul_scalar(a, -2.0))).tolist() == [0.0, 0.0]
    assert dequantize(functional.cat([a, b])).tolist() == [1.0, 2.0, 1.0, 0.0]
    assert functional.add_scalar(a, 0.5).int_repr().tolist() == [7, 7]  # 1.5 and 2.5: both to 2


def test_max_pooling_is_exact_on_integers_and_average_pooling_is_not():
    """Pool 0.4 and 0.9, s = 1: the maximum is 1 either way; the mean .65 gives 1, that of the integers .5 gives 0."""
    x = np.array([[[[0.4, 0.9]]]], F32)
    q = quantize(x, QParams(1.0, 0, UINT8))
    assert (
        F.max_pool2d(q, (1, 2)).int_repr().item() == 1 == quantize(F.max_pool2d(x, (1, 2)), q.qparams).int_repr().item()
    )
    on_integers = BetweenGrids(nn.AvgPool2d((1, 2)), q.qparams, "reference")(q)
    assert on_integers.int_repr().item() == 0
    assert quantize(F.avg_pool2d(x, (1, 2)), q.qparams).int_repr().item() == 1


def test_ranges_known_without_data():
    observer = FixedQParamsObserver(1 / 256, 0)
    assert observer(X) is X and observer.saw_data
    assert [float(v) for v in observer.calculate_qparams()] == [1 / 256, 0]
    assert [float(v) for v in observer.range()] == [0, 1]
    observer.reset_min_max_vals()
    assert [float(v) for v in observer.range()] == [0, 1]
    for name, bits, scale, zero_point in (
        ("sigmoid", 8, 1 / 256, 0),
        ("softmax", 4, 1 / 16, 0),
        ("tanh", 8, 2 / 256, 128),
    ):
        output = convert(trained(name, bits)).module[1].output
        assert (float(output.scale), int(output.zero_point)) == (scale, zero_point)
    x86 = convert(trained("tanh", backend="x86")).module[1].output  # the whole range, whatever its observers do
    assert (float(x86.scale), int(x86.zero_point)) == (2 / 256, 128)
    for arguments in ((0.0, 0), (1.0, 256)):
        with pytest.raises(ValueError, match="FixedQParamsObserver: expected scale > 0 and 0 <= zero_point <= 255"):
            FixedQParamsObserver(*arguments)


def test_torchs_engines_average_on_the_inputs_grid():
    model = convert(trained("average", backend="x86"))
    assert model.module[1].output is None
    y = model.module(model.quant(X))
    assert y.qparams.scale == model.module[0].output.scale


def test_outside_the_quantized_part_they_stay_float():
    model = nn.Sequential(QuantWrapper(nn.Linear(4, 3)), nn.Softmax(-1))
    qat = prepare_qat(model, get_default_qat_qconfig())
    x = X.reshape(-1, 4)
    qat(x)
    qat.eval()
    converted = convert(qat)
    assert np.array_equal(converted(x).data, qat(x).data)
    assert np.array_equal(converted(x).data, F.softmax(converted[0](x), -1).data)


def test_the_report_says_why_a_norm_stays_in_float():
    rows = {row["layer"]: row for row in report(convert(trained("layer norm"))).rows}
    assert rows["module.1"]["note"].startswith("stays in float, between two grids: it divides by a statistic")
    assert rows["module.1"]["kind"] == "BetweenGrids(LayerNorm)"
    rows = {row["layer"]: row for row in report(convert(trained("batch norm"))).rows}
    assert rows["module.1"]["note"].endswith("fuse_modules folds it into the layer before it")


@pytest.mark.parametrize("name", ["block", "sigmoid", "average", "layer norm", "batch norm"])
@pytest.mark.parametrize("backend", ["reference", "x86"])
def test_saved_and_loaded(tmp_path, name, backend):
    model = convert(trained(name, backend=backend))
    into = QuantWrapper(Block()) if name == "block" else None
    minquant.save(model, tmp_path / "model")
    loaded = minquant.load(tmp_path / "model", into=into)
    assert repr(loaded) == repr(model)
    assert np.array_equal(loaded(X).data, model(X).data)


# ---- what is refused -------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.conv, self.sum = QuantStub(), nn.Conv2d(4, 4, 1), nn.FloatFunctional()

    def forward(self, x):
        return self.sum.add(self.conv(self.quant(x)), x)


def test_a_sum_of_integers_and_real_values():
    model = prepare_qat(Mixed(), get_default_qat_qconfig())
    with pytest.raises(ValueError, match="FloatFunctional 'sum': every operand must lie on a quantization grid"):
        model(Tensor(X))
    static = prepare(Mixed(), get_default_qconfig())
    static(Tensor(X))
    with pytest.raises(TypeError, match="QFunctional 'sum': every operand must be a quantized tensor, got Tensor"):
        convert(static)(Tensor(X))


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(np.ones(4, F32))

    def forward(self, x):
        return x * self.gain


@pytest.mark.parametrize("flow", [prepare, prepare_qat])
def test_a_layer_type_without_integers_is_named(flow):
    qconfig = get_default_qconfig() if flow is prepare else get_default_qat_qconfig()
    model = nn.Sequential(QuantWrapper(nn.Linear(4, 4)), Gain())
    with pytest.raises(ValueError, match="'1' is a Gain, which has parameters and no integer form. Keep it in float"):
        flow(model, qconfig)
    prepared = flow(model, {"": qconfig, "1": None})
    assert {row["layer"]: row["note"] for row in report(prepared).rows}["1"].startswith(
        "stays in float: its qconfig is"
    )
