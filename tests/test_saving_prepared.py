"""minquant.save and load of models that are being calibrated or trained: they go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import minquant
import minquant.lm
from minquant import Tensor, nn, optim
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
    IntxWeightOnlyConfig,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannel,
    PerChannelMinMaxObserver,
    PerGroup,
    QATConfig,
    QConfig,
    QSpec,
    QuantWrapper,
    WeightFakeQuantize,
    choose_qparams,
    convert,
    disable_fake_quant,
    disable_observer,
    freeze_bn_stats,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_,
    register_fake_quantizer,
    report,
)
from minquant.savable import name_of_savable, savable
from minquant.saved_kinds import SETTINGS

RNG = np.random.default_rng(0)
BATCHES = RNG.standard_normal((6, 5, 3, 6, 6), dtype=np.float32)
TOKENS = RNG.integers(0, 7, (6, 5, 4))
INT8 = {"dtype": "qint8", "qscheme": "per_tensor_symmetric", "quant_min": -128, "quant_max": 127}
WEIGHT = INT8 | {"qscheme": "per_channel_symmetric"}


class Skip(nn.Module):
    """x + f(x), its sum on a grid of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.act = nn.Sigmoid()
        self.skip = nn.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip.add(x, self.act(self.conv(x)))


savable(Skip)


def images() -> nn.Module:
    """Every kind of layer that watches: convolutions, norms, pools, activations, a sum, dropout."""
    minquant.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), Skip(), nn.AvgPool2d(3),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 2),
    )  # fmt: skip
    return QuantWrapper(body)


def words() -> nn.Module:
    minquant.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), QuantWrapper(nn.Sequential(nn.Flatten(), nn.Linear(16, 2))))


def linears() -> nn.Module:
    minquant.manual_seed(0)
    body = nn.Flatten(), nn.Linear(108, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2, bias=False)
    return nn.Sequential(*body)


def fused() -> nn.Module:
    model = images()
    return fuse_modules_qat(model.train(), [["module.0", "module.1", "module.2"]])


# ---- what is compared --------------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, Any]:
    """All that a model consists of, in values that compare."""
    return {
        f"{path}.{name}": plain(value)
        for path, module in model.named_modules()
        for name, value in facts(module)
    }  # fmt: skip


def facts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    tables = ("_parameters", "_buffers", "_modules", "_forward_hooks")
    yield "type", type(module)
    yield "hooks", list(module._forward_hooks.values())
    yield "children", {name: child and type(child) for name, child in module._modules.items()}
    yield from ((name, value) for name, value in vars(module).items() if name not in tables)
    yield from (module._parameters | module._buffers).items()


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return type(value), value.requires_grad, plain(value.data)
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, QConfig):
        return plain((value.activation, value.weight, value.backend))
    if hasattr(value, "func"):
        return plain(value.func), plain(value.args), {n: plain(v) for n, v in value.keywords.items()}
    if dataclasses.is_dataclass(value):
        return type(value), [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if hasattr(value, "int_repr"):
        return plain(value.int_repr()), plain(value.qparams)
    return [plain(part) for part in value] if isinstance(value, tuple | list) else value


def reloaded(model: nn.Module, tmp_path: Any) -> nn.Module:
    minquant.save(model, tmp_path / "model")
    loaded = minquant.load(tmp_path / "model")
    assert state(loaded) == state(model)
    assert repr(loaded) == repr(model) and report(loaded).rows == report(model).rows
    return loaded


def step(model: nn.Module, optimizer: Any, batch: np.ndarray) -> None:
    optimizer.zero_grad()
    ((model(batch) - 1) ** 2).mean().backward()
    optimizer.step()


def train(model: nn.Module, batches: np.ndarray) -> None:
    minquant.manual_seed(1)  # for dropout
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        step(model, optimizer, batch)


def same(a: nn.Module, b: nn.Module, batch: np.ndarray) -> None:
    assert state(a) == state(b)
    assert a(batch).data.tobytes() == b(batch).data.tobytes()


# ---- calibration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "config", "data", "seen"),
    [
        (images, get_default_qconfig(), BATCHES, 0),
        (images, get_default_qconfig(weight_bits=3, act_bits=5), BATCHES, 2),
        (images, get_default_qconfig("x86"), BATCHES, 1),
        (images, get_default_qconfig("qnnpack"), BATCHES, 2),
        (words, get_default_qconfig(), TOKENS, 1),
    ],
)
def test_calibration_goes_on(tmp_path, make, config, data, seen):
    model = prepare(make().eval(), config)
    for batch in data[:seen]:
        model(batch)
    loaded = reloaded(model, tmp_path)
    for batch in data[seen:4]:
        same(model, loaded, batch)
    converted, expected = convert(loaded), convert(model)
    same(converted, expected, data[0])
    minquant.save(converted, tmp_path / "converted")
    same(minquant.load(tmp_path / "converted"), expected, data[0])


def test_what_stays_in_float_keeps_its_reason(tmp_path):
    model = prepare(images().eval(), {"": get_default_qconfig(), "module.8": None})
    loaded = reloaded(model, tmp_path)
    assert loaded.module[8].float_reason == model.module[8].float_reason


# ---- training ----------------------------------------------------------------------------------------------------


def learned() -> QConfig:
    activation = LearnableFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, dtype="quint8")
    return QConfig(
        activation.with_args(use_grad_scaling=True),
        LearnableFakeQuantize.with_args(observer=PerChannelMinMaxObserver, **WEIGHT),
    )


TRAINED = {
    "reference": (images, get_default_qat_qconfig),
    "2 and 4 bits": (images, partial(get_default_qat_qconfig, weight_bits=2, act_bits=4)),
    "x86": (images, partial(get_default_qat_qconfig, "x86")),
    "qnnpack": (images, partial(get_default_qat_qconfig, "qnnpack")),
    "onnx": (lambda: QuantWrapper(linears()), partial(get_default_qat_qconfig, "onnx")),
    "batch norm folded": (fused, get_default_qat_qconfig),
    "learned steps": (lambda: QuantWrapper(linears()), learned),
    "embedding": (words, get_default_qat_qconfig),
}


def begun(name: str, steps: int = 2) -> tuple[nn.Module, np.ndarray]:
    make, config = TRAINED[name]
    model = prepare_qat(make().train(), config())
    data = TOKENS if make is words else BATCHES
    train(model, data[:steps])
    return model, data


@pytest.mark.parametrize("name", TRAINED)
def test_training_goes_on(tmp_path, name):
    model, data = begun(name)
    loaded = reloaded(model, tmp_path)
    for m in (model, loaded):
        train(m, data[2:])
    same(model.eval(), loaded.eval(), data[0])
    assert state(convert(model)) == state(convert(loaded))


def test_training_can_begin_after_loading(tmp_path):
    model, data = begun("reference", steps=0)
    loaded = reloaded(model, tmp_path)
    for m in (model, loaded):
        train(m, data)
    same(model.eval(), loaded.eval(), data[0])


def let_learn(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LearnableFakeQuantize):
            module.enable_param_learning()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("learned steps", let_learn),
        ("batch norm folded", lambda model: model.apply(freeze_bn_stats)),
        ("reference", lambda model: model.apply(disable_observer)),
        ("reference", lambda model: model.apply(disable_fake_quant)),
        ("reference", lambda model: model.module[0].requires_grad_(False)),
    ],
)
def test_what_was_switched_stays_switched(tmp_path, name, change):
    model, data = begun(name)
    change(model)
    loaded = reloaded(model, tmp_path)
    for m in (model, loaded):
        train(m, data[2:])
    assert state(model) == state(loaded)


BASES = {
    "int8 × int4 in groups": Int8DynamicActivationIntxWeightConfig("int4", PerGroup(4)),
    "int4 weights": IntxWeightOnlyConfig("int4", PerChannel(0)),
    "int8 weights": Int8WeightOnlyConfig(),
    "int8 × int8": Int8DynamicActivationInt8WeightConfig(),
    "static": Int8StaticActivationInt8WeightConfig(),
    "static, given": Int8StaticActivationInt8WeightConfig(0.02),
    "tinygemm": Int4WeightOnlyConfig(group_size=4),
}


@pytest.mark.parametrize("name", BASES)
def test_training_in_place_goes_on(tmp_path, name):
    model = linears()
    quantize_(model, QATConfig(BASES[name], step="prepare"))
    train(model, BATCHES[:2])
    loaded = reloaded(model, tmp_path)
    for m in (model, loaded):
        train(m, BATCHES[2:])
    same(model.eval(), loaded.eval(), BATCHES[0])
    for m in (model, loaded):
        quantize_(m, QATConfig(BASES[name], step="convert"))
    same(model, loaded, BATCHES[0])
    same(model, reloaded(model, tmp_path), BATCHES[0])


# ---- what is shared, and what is one's own -------------------------------------------------------------------------


def test_shared_watchers_and_parameters_are_shared_again(tmp_path):
    model = linears()
    model[5] = model[3]
    quantize_(model, QATConfig(BASES["int8 × int4 in groups"], step="prepare"))
    model[1].weight_fake_quantizer = model[3].weight_fake_quantizer
    loaded = reloaded(model, tmp_path)
    assert loaded[5] is loaded[3] and loaded[1] is not loaded[3]
    assert loaded[1].weight_fake_quantizer is loaded[3].weight_fake_quantizer


@dataclasses.dataclass(frozen=True)
class MeanConfig(FakeQuantizeConfigBase):
    bits: int = 3


@register_fake_quantizer(MeanConfig)
class MeanFakeQuantizer(FakeQuantizerBase):
    """Two mean magnitudes to each side; counts its calls."""

    def __init__(self, config: MeanConfig) -> None:
        super().__init__(config)
        self.calls, self.last = 0, np.float32(0)

    def grid(self, x: np.ndarray) -> Any:
        self.calls += 1
        end = 2 * np.abs(x).mean(axis=1)
        self.last = end[0]
        return choose_qparams(-end, end, QSpec(self.config.bits, symmetric=True, granularity=PerChannel()))


def test_a_fake_quantizer_of_ones_own_is_saved_as_it_is(tmp_path):
    model = linears()
    quantize_(model, QATConfig(weight_config=MeanConfig(2), step="prepare"))
    train(model, BATCHES[:2])
    loaded = reloaded(model, tmp_path)
    assert loaded[1].weight_fake_quantizer.calls == model[1].weight_fake_quantizer.calls > 0
    for m in (model, loaded):
        train(m, BATCHES[2:])
    assert state(model) == state(loaded)


class OwnObserver(MinMaxObserver):
    pass


class OwnFakeQuantize(FakeQuantize):
    pass


@savable
class SavableObserver(MovingAverageMinMaxObserver):
    pass


def test_savable_observers_and_partial_factories(tmp_path):
    activation = partial(
        FakeQuantize.with_args(observer=SavableObserver.with_args(averaging_constant=0.5)), quant_min=0
    )
    weight = partial(WeightFakeQuantize, PerChannelMinMaxObserver, -8, 7)
    scheme = {"dtype": "qint8", "qscheme": "per_channel_symmetric"}
    config = QConfig(partial(activation, quant_max=255), partial(weight, **scheme))
    model = prepare_qat(QuantWrapper(linears()).train(), config)
    loaded = reloaded(model, tmp_path)
    assert type(loaded.module[1].activation_post_process.activation_post_process) is SavableObserver
    for m in (model, loaded):
        train(m, BATCHES)
    assert state(model) == state(loaded)


@pytest.mark.parametrize("kind", [OwnObserver, OwnFakeQuantize])
def test_observers_of_ones_own_that_are_not_savable_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__} '1' is of a class of your own.*@savable"):
        minquant.save(nn.Sequential(nn.ReLU(), kind()), tmp_path / "m")
    config = QConfig(HistogramObserver, OwnObserver.with_args(**INT8))
    prepared = prepare(QuantWrapper(nn.Linear(3, 3)), config)
    with pytest.raises(ValueError, match=r"'quant.qconfig.weight' makes its objects with .*OwnObserver.*@savable"):
        minquant.save(prepared, tmp_path / "m")
    assert not list(tmp_path.iterdir())


class OwnGELU(nn.GELU):
    pass


class OwnNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wrapped = QuantWrapper(nn.Sequential(nn.Linear(3, 2), OwnGELU()))
        self.told = 1.0

    def forward(self, x: Any) -> Tensor:
        return self.wrapped(x) * self.told


@pytest.mark.parametrize("flow", [prepare, prepare_qat])
def test_classes_of_ones_own_are_loaded_into_a_float_model(tmp_path, flow):
    model = flow(OwnNet(), get_default_qconfig() if flow is prepare else get_default_qat_qconfig())
    x = RNG.standard_normal((4, 3), dtype=np.float32)
    model(x)
    minquant.save(model, tmp_path / "m")
    loaded = minquant.load(tmp_path / "m", into=OwnNet())
    same(model, loaded, x)
    same(convert(model), convert(loaded), x)
    into_prepared = minquant.load(tmp_path / "m", into=loaded)
    assert state(into_prepared) == state(minquant.load(tmp_path / "m", into=OwnNet()))


@savable
class Odd(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@pytest.mark.parametrize(
    "value",
    [(1, ("a", 2.5), None), float("inf"), np.float32(0.1), np.arange(3), True, QSpec(3), MinMaxObserver, MeanConfig()],
)
def test_attributes_of_savable_classes(tmp_path, value):
    reloaded(Odd(value), tmp_path)


@pytest.mark.parametrize(
    "value", [{"a": 1}, print, Tensor([1.0]), object(), QATConfig(Int8WeightOnlyConfig(), step="prepare")]
)
def test_attributes_that_no_file_can_hold_are_refused(tmp_path, value):
    with pytest.raises(TypeError, match=rf"'1.value' is a {type(value).__name__}, which no file can hold.*arrays"):
        minquant.save(nn.Sequential(nn.ReLU(), Odd(value)), tmp_path / "m")


def test_a_savable_class_that_is_not_imported(tmp_path, monkeypatch):
    minquant.save(nn.Sequential(Odd(1)), tmp_path / "m")
    monkeypatch.setattr("minquant.savable._KINDS", {})
    into = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match=r"m: it holds a Odd, a class that is not known here.*import it before"):
        minquant.load(tmp_path / "m", into)
    assert repr(into) == repr(nn.Sequential(nn.ReLU()))


def test_two_savable_classes_of_one_name(tmp_path):
    def another() -> type[nn.Module]:
        @savable
        class Twin(nn.Module):
            pass

        return Twin

    one, again = another(), another()  # a notebook's cell that ran twice
    minquant.save(again(), tmp_path / "m")
    assert type(minquant.load(tmp_path / "m")) is again is not one

    @savable
    class Twin(nn.Module):
        pass

    for use in (lambda: minquant.save(Twin(), tmp_path / "n"), lambda: minquant.load(tmp_path / "m")):
        with pytest.raises(ValueError, match=r"there are several savable classes called Twin .*rename one"):
            use()
    with pytest.raises(TypeError, match="savable: expected a Module class or a dataclass, got <function"):
        savable(another)


ABSTRACT = {
    "Fused", "Observer", "MovingAverage", "QATWeighted", "FoldsBatchNorm", "QATConv", "IntegerWeight", "IntegerLinear",
    "IntegerConv", "QuantizedConv", "DynamicQuantizedConv", "FakeQuantizerBase",
}  # fmt: skip
OURS = ("minquant.nn", "minquant.quant", "minquant.lm")


def below(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def test_every_layer_can_be_saved():
    ours = {kind for kind in below(nn.Module) if kind.__module__.startswith(OURS) and not kind.__name__.startswith("_")}
    unknown = {kind.__name__ for kind in ours if kind not in SETTINGS and not name_of_savable(kind)}
    assert len(ours) > 80 and unknown <= ABSTRACT
