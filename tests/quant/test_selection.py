"""Which layers a qconfig is about: one config, paths, None; and requests that would change nothing."""

from __future__ import annotations

import re

import pytest

from minquant import nn
from minquant.quant import (
    FakeQuantize,
    HistogramObserver,
    LinearReLU,
    MinMaxObserver,
    QConfig,
    QSpec,
    QuantStub,
    QuantWrapper,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from minquant.quant.selection import select

CONFIG, OTHER = get_default_qconfig(), get_default_qconfig("x86")


def model() -> nn.Module:
    encoder = nn.Sequential({"fc1": nn.Linear(3, 3), "act": nn.ReLU(), "fc2": nn.Linear(3, 3)})
    head = LinearReLU(nn.Linear(3, 2), nn.ReLU())
    return QuantWrapper(nn.Sequential({"encoder": encoder, "head": head}))


ALL = ["quant", "module.encoder.fc1", "module.encoder.fc2", "module.head"]


@pytest.mark.parametrize(
    ("qconfig", "chosen"),
    [
        (CONFIG, dict.fromkeys(ALL, CONFIG)),
        ({"": CONFIG}, dict.fromkeys(ALL, CONFIG)),
        ({"module.encoder": CONFIG}, dict.fromkeys(ALL[1:3], CONFIG)),
        ({"": CONFIG, "module.encoder": OTHER}, dict(zip(ALL, [CONFIG, OTHER, OTHER, CONFIG], strict=True))),
        ({"": CONFIG, "module.encoder": None}, dict.fromkeys(["quant", "module.head"], CONFIG)),
        (
            {"module.encoder": None, "": CONFIG, "module.encoder.fc2": OTHER},
            {"quant": CONFIG, "module.encoder.fc2": OTHER, "module.head": CONFIG},
        ),
        ({"module.head": OTHER, "quant": CONFIG}, {"quant": CONFIG, "module.head": OTHER}),
    ],
)
def test_the_longest_path_decides(qconfig, chosen):
    assert select(model(), qconfig, "prepare") == chosen


def test_the_rest_is_told_why():
    copied = model()
    select(copied, {"module.encoder": CONFIG, "module.encoder.fc2": None}, "prepare")
    assert copied.module.encoder.fc2.float_reason == "its qconfig is None (under 'module.encoder.fc2')"
    assert copied.module.head.float_reason == "not named in the qconfig"
    assert not hasattr(copied.module.encoder.fc1, "float_reason")


@pytest.mark.parametrize(
    ("path", "proposal"),
    [
        ("module.encoder.fc3", "did you mean 'module.encoder.fc2' or 'module.encoder.fc1'"),
        ("encoder.fc1", "did you mean 'module.encoder.fc1'"),
        ("module.haed", "did you mean 'module.head'"),
        ("zzz", "there are quant, dequant, module, module.encoder"),
    ],
)
@pytest.mark.parametrize("flow", [prepare, prepare_qat, quantize_dynamic])
def test_misspelt_paths(flow, path, proposal):
    message = f"{flow.__name__}: no module is named '{path}'; {proposal}"
    with pytest.raises(ValueError, match=re.escape(message)):
        flow(model().train(), {path: CONFIG})


@pytest.mark.parametrize("flow", [prepare, prepare_qat, quantize_dynamic])
def test_nothing_to_quantize(flow):
    empty = QuantWrapper(nn.Sequential(nn.ReLU(), nn.Flatten())).train()
    message = (
        f"{flow.__name__}: the model has no layer that can be quantized; those that can are Linear, Conv1d, Conv2d"
    )
    with pytest.raises(ValueError, match=message):
        flow(empty, CONFIG)
    with pytest.raises(ValueError, match=f"{flow.__name__}: 'module.encoder.act' holds no layer that can be quantized"):
        flow(model().train(), {"": CONFIG, "module.encoder.act": CONFIG})


def test_everything_left_in_float():
    for qconfig in ({"module": None}, {}, {"quant": CONFIG}):
        with pytest.raises(ValueError, match="leaves every layer in float .*module.encoder.fc1.*name one to quantize"):
            prepare(model(), qconfig)


@pytest.mark.parametrize("qconfig", [None, "x86", MinMaxObserver, QConfig, [CONFIG], QSpec()])
def test_what_is_no_config(qconfig):
    for flow in (prepare, prepare_qat):
        with pytest.raises(TypeError, match=rf"{flow.__name__}: expected a QConfig, got .*get_default_qconfig\(\)"):
            flow(model().train(), qconfig)
    if qconfig is not None:
        with pytest.raises(TypeError, match="quantize_dynamic: expected a QConfig, got"):
            quantize_dynamic(model(), qconfig)


@pytest.mark.parametrize("wish", ["x86", MinMaxObserver, False])
def test_what_is_no_config_under_a_path(wish):
    with pytest.raises(TypeError, match="prepare: expected a QConfig or None for 'module.head', got"):
        prepare(model(), {"": CONFIG, "module.head": wish})


@pytest.mark.parametrize("key", [0, None, nn.Linear])
def test_keys_are_paths(key):
    with pytest.raises(TypeError, match="prepare: a qconfig's keys are paths of modules, got"):
        prepare(model(), {key: CONFIG})


# ---- QConfig and the presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [MinMaxObserver(), None, "MinMaxObserver", 8])
@pytest.mark.parametrize("name", ["activation", "weight"])
def test_a_config_takes_factories(name, value):
    arguments = {"activation": MinMaxObserver, "weight": MinMaxObserver} | {name: value}
    with pytest.raises(TypeError, match=rf"QConfig: {name} must be an observer or fake quantizer class.*with_args"):
        QConfig(**arguments)


def test_a_spec_is_for_activations_only():
    assert QConfig(QSpec(), MinMaxObserver).activation == QSpec()
    with pytest.raises(TypeError, match="QConfig: weight must be"):
        QConfig(QSpec(), QSpec())


PRESETS = [get_default_qconfig, get_default_qat_qconfig, default_dynamic_qconfig]


@pytest.mark.parametrize("preset", PRESETS)
def test_unknown_backends(preset):
    with pytest.raises(ValueError, match="backend: expected one of reference, fbgemm, .*; got 'cuda'"):
        preset("cuda")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", ["fbgemm", "x86", "qnnpack", "onednn"])
def test_torchs_engines_know_8_bits(preset, backend):
    with pytest.raises(ValueError, match=r'knows 8 bits only, got weight_bits=4.*the dialect "reference" has 2 to 8'):
        preset(backend, weight_bits=4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("bits", [1, 9, 12, 16, 8.0])
def test_presets_have_2_to_8_bits(preset, bits):
    with pytest.raises(ValueError, match="weight_bits must be 2 to 8"):
        preset(weight_bits=bits)


@pytest.mark.parametrize("preset", PRESETS[:2])
@pytest.mark.parametrize("bits", [1, 9, 16])
def test_presets_activations(preset, bits):
    with pytest.raises(ValueError, match="act_bits must be 2 to 8"):
        preset(act_bits=bits)


@pytest.mark.parametrize("backend", ["reference", "fbgemm", "x86", "qnnpack", "onednn"])
def test_presets(backend):
    reduced, per_tensor = backend in ("fbgemm", "x86"), backend == "qnnpack"
    scheme = "per_tensor_symmetric" if per_tensor else "per_channel_symmetric"
    static, qat = get_default_qconfig(backend), get_default_qat_qconfig(backend)
    assert static.backend == qat.backend == backend
    activation, weight = static.activation(), static.weight()
    assert isinstance(activation, HistogramObserver) and weight.qscheme == scheme
    assert (activation.quant_min, activation.quant_max) == (0, 127 if reduced else 255)
    assert (weight.quant_min, weight.quant_max, weight.dtype) == (-128, 127, "qint8")
    fake_activation, fake_weight = qat.activation(), qat.weight()
    assert isinstance(fake_activation, FakeQuantize) and isinstance(fake_weight, FakeQuantize)
    assert fake_activation.activation_post_process.quant_max == (127 if reduced else 255)
    assert fake_weight.activation_post_process.qscheme == scheme
    dynamic = default_dynamic_qconfig(backend)
    run_time_end = 255 if backend in ("reference", "qnnpack") else 127
    assert dynamic.activation == QSpec(signed=False, qmax=run_time_end)
    assert dynamic.weight().qscheme == ("per_channel_symmetric" if backend == "reference" else "per_tensor_symmetric")


def test_stubs_are_layers_to_watch():
    assert select(nn.Sequential(QuantStub(), nn.Linear(2, 2)), CONFIG, "prepare") == {"0": CONFIG, "1": CONFIG}
