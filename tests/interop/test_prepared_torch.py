"""Models in quantization-aware training in torch: the same operands and gradients, trained there, and back again."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minquant import Tensor, manual_seed, nn, optim
from minquant.interop import from_torch, to_torch
from minquant.interop.torch_modules import fake_quantizers
from minquant.quant import (
    FakeQuantize,
    FakeQuantizeConfigBase,
    FakeQuantizerBase,
    HistogramObserver,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxFakeQuantizeConfig,
    IntxWeightOnlyConfig,
    LearnableFakeQuantize,
    MovingAverageMinMaxObserver,
    PerChannel,
    PerGroup,
    PerTensor,
    QATConfig,
    QConfig,
    QSpec,
    choose_qparams,
    convert,
    disable_fake_quant,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_,
    register_fake_quantizer,
)
from tests.interop.in_training import gamma, host, operands, run

QUANTIZERS = ("Chosen", "Observed", "OnHost", "IntxFakeQuantizer", "TinygemmFakeQuantizer", "StaticFakeQuantizer",
              "MagnitudeFakeQuantizer", "FakeQuantize", "WeightFakeQuantize")  # fmt: skip
K, N = 64, 24


@dataclass(frozen=True)
class MagnitudeConfig(FakeQuantizeConfigBase):
    bits: int = 2


@register_fake_quantizer(MagnitudeConfig)
class MagnitudeFakeQuantizer(FakeQuantizerBase):
    """Clips at twice the mean size."""

    def grid(self, x):
        end = 2 * np.abs(x).mean(axis=1)
        return choose_qparams(-end, end, QSpec(self.config.bits, symmetric=True, granularity=PerChannel()))


CONFIGS = {
    "int4 groups": QATConfig(Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32)), step="prepare"),
    "int3 rows, affine": QATConfig(
        Int8DynamicActivationIntxWeightConfig("int3", PerChannel(0), "asymmetric"), step="prepare"
    ),
    "int2, nothing clipped": QATConfig(
        Int8DynamicActivationIntxWeightConfig("int2", PerGroup(16), "symmetric_no_clipping_error"), step="prepare"
    ),
    "int5 weights": QATConfig(IntxWeightOnlyConfig("int5", PerGroup(8)), step="prepare"),
    "int8 weights": QATConfig(Int8WeightOnlyConfig(PerTensor()), step="prepare"),
    "tinygemm": QATConfig(Int4WeightOnlyConfig(16), step="prepare"),
    "int8 by int8": QATConfig(Int8DynamicActivationInt8WeightConfig(), step="prepare"),
    "static, given": QATConfig(Int8StaticActivationInt8WeightConfig(0.02), step="prepare"),
    "static, observed": QATConfig(Int8StaticActivationInt8WeightConfig(), step="prepare"),
    "of one's own": QATConfig(
        activation_config=IntxFakeQuantizeConfig("int8", "per_token", is_symmetric=False),
        weight_config=MagnitudeConfig(3),
        step="prepare",
    ),
}


def layer(config: QATConfig, bias: bool = True) -> nn.Module:
    manual_seed(3)
    model = nn.Sequential(nn.Linear(K, N, bias=bias))
    quantize_(model, config)
    return model


def sizes(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float) -> np.ndarray:
    return np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T + np.abs(bias)


# ---- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_has_the_same_operands_and_gradients(name, bias):
    """The bound is `to_torch`'s, with G = K/8; where the input is not rounded both sides add K products and a bias."""
    rng = np.random.default_rng(0)
    own = layer(CONFIGS[name], bias)
    theirs = to_torch(own)
    mine, other = operands(own, QUANTIZERS), operands(theirs, QUANTIZERS)
    for size in (1.0, 30.0, 0.1):
        x, gradient = ((size * rng.normal(size=(2, 5, n))).astype(np.float32) for n in (K, N))
        for model in (own, theirs):
            model.zero_grad()
        (y, by), (ty, tby) = run(own, x, gradient), run(theirs, x, gradient)
        for heard in (mine, other):
            heard.sort(key=np.ndim)  # weight and input come in another order
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)
        weight, rounded = mine if len(mine) == 2 else (*mine, x)
        b = own[0].bias.data if bias else 0.0
        roundings = K + K // 8 + 9 if len(mine) == 2 else 2 * (K + 1)
        assert (np.abs(y - ty) <= gamma(roundings) * sizes(rounded, weight, b)).all()
        rows, g = rounded.reshape(-1, K), gradient.reshape(-1, N)
        bounds = {
            "0.weight": 2 * gamma(11) * sizes(g.T, rows.T, 0),
            "input": 2 * gamma(N) * sizes(gradient, weight.T, 0),
        }
        for key, bound in bounds.items():
            assert (np.abs(by[key] - tby[key]) <= bound).all(), key
            assert (by[key] == 0).mean() == (tby[key] == 0).mean()  # the same are clipped
        if bias:
            assert (np.abs(by["0.bias"] - tby["0.bias"]) <= 2 * gamma(11) * np.abs(g).sum(0)).all()
        mine.clear(), other.clear()
    assert {k: v.data.tolist() for k, v in own.state_dict().items()} == {
        k: v.tolist() for k, v in theirs.state_dict().items()
    }


def test_an_embedding_has_the_same_rows_and_gradients():
    manual_seed(4)
    own = nn.Sequential(nn.Embedding(12, 16, padding_idx=3))
    quantize_(own, QATConfig(IntxWeightOnlyConfig("int4", PerGroup(8)), step="prepare"), lambda module, path: path)
    theirs, index = to_torch(own), np.array([[0, 3, 3], [11, 5, 0]])
    gradient = np.random.default_rng(1).normal(size=(2, 3, 16)).astype(np.float32)
    (y, by), (ty, tby) = run(own, index, gradient), run(theirs, index, gradient)
    np.testing.assert_array_equal(y, ty)
    np.testing.assert_array_equal(by["0.weight"], tby["0.weight"])  # at most two terms a row: one order of adding
    assert not tby["0.weight"][3].any()


def test_what_is_clipped_gets_no_gradient():
    own = layer(CONFIGS["static, given"])
    x = np.linspace(-4, 4, K, dtype=np.float32)[None]
    (_, by), (_, tby) = (run(model, x, np.ones((1, N), np.float32)) for model in (own, to_torch(own)))
    assert 0 < (by["input"] == 0).sum() == (tby["input"] == 0).sum() < K
    np.testing.assert_array_equal(by["input"] == 0, tby["input"] == 0)


@pytest.mark.parametrize("name", ["int4 groups", "static, observed"])
def test_nan_is_refused_by_name(name):
    theirs = to_torch(layer(CONFIGS[name]))
    with pytest.raises(ValueError, match=r"'0.activation_fake_quantizer.*NaN or infinity in the values to round"):
        theirs(torch.full((2, K), torch.nan))


def test_switched_off_it_is_the_float_layer():
    own = layer(CONFIGS["int4 groups"])
    own.apply(disable_fake_quant)
    theirs, x = to_torch(own), torch.randn(3, K)
    wanted = torch.nn.functional.linear(x, theirs[0].weight, theirs[0].bias)
    assert torch.equal(theirs(x), wanted)
    theirs[0].weight_fake_quantizer.fake_quant_enabled.fill_(True)
    assert not torch.equal(theirs(x), wanted)
    assert bool(from_torch(theirs)[0].weight_fake_quantizer.fake_quant_enabled)


# ---- models that `prepare_qat` made ----------------------------------------------------------------------------------


class Skip(nn.Module):
    """Convolutions with batch norm, a skip connection, dropout, a Linear, a bare activation."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding="same"), nn.BatchNorm2d(6), nn.ReLU())
        self.conv, self.skip = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.FloatFunctional()
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.0)
        self.head = nn.Sequential(nn.Linear(24, 9), nn.BatchNorm1d(9))
        self.last = nn.Linear(9, 4)

    def forward(self, x):
        x = self.stem(self.quant(x))
        x = self.pool(self.skip.add_relu(self.conv(x), x)).flatten(1)
        return self.dequant(self.last(self.head(self.drop(x))))


FUSED = [["stem.0", "stem.1", "stem.2"], ["head.0", "head.1"]]


def skip_net(weight_bits: int = 4) -> nn.Module:
    manual_seed(5)
    model = Skip()
    rng = np.random.default_rng(2)
    for bn in (model.stem[1], model.head[1]):
        bn.weight.data[...] = rng.uniform(0.5, 1.5, bn.weight.shape)
    model = fuse_modules_qat(model, FUSED)
    return prepare_qat(model, get_default_qat_qconfig(weight_bits=weight_bits))


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 1, 4, 4)).astype(np.float32)


GRIDS = {"stem.0": "quant", "conv": "stem.0", "head.0": "skip", "last": "head.0"}
"""Of each layer with a weight, on whose grid its input lies."""


def before_their_grid(model: nn.Module) -> dict:
    """By path, what a layer's output was before it was rounded; a call fills it."""
    heard: dict = {}
    for path in GRIDS:
        model.get_submodule(path).activation_post_process.register_forward_hook(
            lambda module, x, y, path=path: heard.update({path: x[0].data if isinstance(x[0], Tensor) else host(x[0])})
        )
    return heard


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("training", [True, False])
def test_each_layer_of_a_network_on_the_same_input(bits, training):
    """Outputs before they are rounded, gradients, ranges and running statistics.

    Each layer is asked alone: of two outputs a rounding error apart one may round up and the other down, so that what
    follows gets another integer. Values are sums of at most 55 products, norms divide them by a deviation near 1.
    """
    rng = np.random.default_rng(6)
    own = skip_net(bits)
    own(images(rng, 16))
    own.train(training)
    theirs, inputs = to_torch(own), {}
    alone = copy.deepcopy(theirs)
    for path in GRIDS:
        theirs.get_submodule(path).register_forward_hook(
            lambda m, x, y, path=path: inputs.update({path: x[0].detach()})
        )
    theirs(torch.tensor(images(rng, 16)))
    mine, other = before_their_grid(own), before_their_grid(alone)
    after = from_torch(without_hooks(theirs))
    for path, producer in GRIDS.items():
        layer, twin = own.get_submodule(path), alone.get_submodule(path)
        x, given = Tensor(inputs[path].numpy(), requires_grad=True), inputs[path].clone().requires_grad_()
        x.qparams = after.get_submodule(producer).activation_post_process.qparams()
        y, ty = layer(x), twin(given)
        assert_near(mine[path], other[path], path)
        step = float(layer.activation_post_process.qparams().scale)
        assert np.abs(y.data - host(ty)).max() <= step * 1.001
        gradient = rng.normal(size=y.shape).astype(np.float32)
        y.backward(Tensor(gradient)), ty.backward(torch.tensor(gradient))
        assert_near(x.grad.data, given.grad.numpy(), path)
        for name, parameter in twin.named_parameters():
            assert_near(dict(layer.named_parameters())[name].grad.data, parameter.grad.numpy(), f"{path}.{name}", 10)
        for name, value in twin.state_dict().items():
            assert_near(layer.state_dict()[name].data, value.numpy(), f"{path}.{name}")


def assert_near(a: np.ndarray, b: np.ndarray, what: str, at_least: float = 1.0) -> None:
    """Within 2e-6 of the largest size, or of `at_least`."""
    np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * max(at_least, np.abs(a).max()), err_msg=what)


def without_hooks(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        module._forward_hooks.clear()
    return model


def test_the_first_range_is_minquants_to_the_last_bit():
    own, rng = skip_net(), np.random.default_rng(7)
    theirs = to_torch(own)
    for scale in (1.0, 3.0, 0.5):
        x = images(rng, 8) * np.float32(scale)
        own(x), theirs(torch.tensor(x))
    for end in ("min_val", "max_val"):
        name = f"quant.activation_post_process.activation_post_process.{end}"
        assert theirs.state_dict()[name].numpy().tobytes() == own.state_dict()[name].data.tobytes()


def trained_in_torch(theirs: torch.nn.Module, batches, steps: int = 6) -> None:
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
    for i in range(steps):
        x, target = batches[i % len(batches)]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(theirs(torch.tensor(x)), torch.tensor(target)).backward()
        optimizer.step()


def test_trained_in_torch_it_comes_back_to_be_converted():
    rng = np.random.default_rng(8)
    batches = [(images(rng, 16), rng.normal(size=(16, 4)).astype(np.float32)) for _ in range(2)]
    own = skip_net()
    before, theirs = copy.deepcopy(own.state_dict()), to_torch(own)
    trained_in_torch(theirs, batches)
    back = from_torch(theirs)
    assert list(back.state_dict()) == list(own.state_dict()) and type(back) is Skip
    for name, value in back.state_dict().items():
        np.testing.assert_array_equal(value.data, theirs.state_dict()[name].numpy(), err_msg=name)
    moved = [n for n, p in back.named_parameters() if not np.array_equal(p.data, before[n].data)]
    assert {n for n, _ in own.named_parameters() if n.endswith("weight")} <= set(moved)
    x = images(rng, 40)
    wanted = back.eval()(x).data
    np.testing.assert_array_equal(convert(back)(x).data, wanted)
    step = float(back.last.activation_post_process.qparams().scale)
    apart = np.abs(host(theirs.eval()(torch.tensor(x))) - wanted)
    assert apart.max() <= 3.001 * step and (apart < step / 2).mean() > 0.5  # a tie moves all that is computed from it
    optimizer = optim.SGD(back.train().parameters(), lr=0.05)  # or trained on here
    back(batches[0][0]).sum().backward()
    optimizer.step()


def test_the_rest_of_prepare_qat():
    """Conv1d with a ReLU fused in, an Embedding, joins."""

    class Rest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.quant, self.dequant = nn.Embedding(7, 6), nn.QuantStub(), nn.DeQuantStub()
            self.conv, self.relu, self.join = nn.Conv1d(6, 5, 2), nn.ReLU(), nn.FloatFunctional()

        def forward(self, x):
            x = self.relu(self.conv(self.quant(self.table(x).permute(0, 2, 1))))
            return self.dequant(self.join.cat([x, x], 1))

    manual_seed(9)
    own = prepare_qat(fuse_modules_qat(Rest(), [["conv", "relu"]]), get_default_qat_qconfig())
    theirs, index = to_torch(own), np.random.default_rng(9).integers(0, 7, (4, 8))
    y, ty = own(index).data, theirs(torch.tensor(index)).detach().numpy()
    step = float(own.join.activation_post_process.qparams().scale)
    assert y.shape == ty.shape and np.abs(y - ty).max() <= step * 1.001 and (np.abs(y - ty) < step / 2).mean() > 0.99
    np.testing.assert_array_equal(convert(from_torch(theirs).eval())(index).data, from_torch(theirs).eval()(index).data)


def test_averaged_ranges_move_as_in_minquant():
    qconfig = QConfig(
        FakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, averaging_constant=0.3, quant_min=0, quant_max=255
        ),
        get_default_qat_qconfig().weight,
    )
    own = prepare_qat(nn.QuantWrapper(nn.Linear(3, 2)), qconfig)
    theirs, rng = to_torch(own), np.random.default_rng(10)
    for _ in range(4):
        x = rng.normal(size=(5, 3)).astype(np.float32)
        own(x), theirs(torch.tensor(x))
    for end in ("min_val", "max_val"):
        name = f"quant.activation_post_process.activation_post_process.{end}"
        assert theirs.state_dict()[name].numpy().tobytes() == own.state_dict()[name].data.tobytes()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_does_not_go_over_is_named():
    def prepared(module, activation=None, backend="reference"):
        qconfig = get_default_qat_qconfig(backend)
        qconfig = QConfig(activation, qconfig.weight) if activation else qconfig
        return prepare_qat(nn.QuantWrapper(module), qconfig)

    linear = nn.Linear(2, 2)
    histogram = FakeQuantize.with_args(observer=HistogramObserver)
    learnable = LearnableFakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
    models = {
        "is prepared, not converted: call convert first": prepare(nn.QuantWrapper(linear), get_default_qconfig()),
        r"'module.1' \(Sigmoid\): in training it rounds its output only where": prepared(
            nn.Sequential(linear, nn.Sigmoid())
        ),
        r"'module' \(QATLinear\): is prepared in the dialect fbgemm": prepared(linear, backend="fbgemm"),
        r"post_process' \(HistogramObserver\): this observer is not": prepared(linear, histogram),
        r"post_process' \(LearnableFakeQuantize\): this fake quantizer is not": prepared(linear, learnable),
    }
    for message, model in models.items():
        with pytest.raises(ValueError, match=message):
            to_torch(model)


def test_what_does_not_come_back_is_named():
    model = nn.Sequential(nn.Linear(32, 4))
    quantize_(model, Int8DynamicActivationIntxWeightConfig("int4"))
    with pytest.raises(ValueError, match=r"0 \(DynamicLinear\): is on integers; float models and those in training"):
        from_torch(to_torch(model))
    qat = pytest.importorskip("torchao.quantization.qat")
    config = qat.IntxFakeQuantizeConfig(torch.int4, group_size=2)
    theirs = torch.nn.Sequential(qat.FakeQuantizedLinear(4, 4, weight_config=config))
    with pytest.raises(ValueError, match=r"no counterpart of torchao.quantization.qat.linear.FakeQuantizedLinear"):
        from_torch(theirs)


def test_an_empty_input_changes_no_range():
    theirs = to_torch(layer(CONFIGS["static, observed"]))
    theirs(torch.ones(1, K))
    before = theirs.state_dict()
    assert theirs(torch.zeros(0, K)).shape == (0, N)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    assert isinstance(theirs[0].activation_fake_quantizer, fake_quantizers.Observed)
