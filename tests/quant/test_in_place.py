"""`quantize_`: what it replaces, that prepared and converted layers are equal, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import minquant
from minquant import Tensor, nn, optim
from minquant.quant import (
    ComposableQATQuantizer,
    DynamicQuantizedLinear,
    FakeQuantizeConfigBase,
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
    FakeQuantizerBase,
    Int4WeightOnlyConfig,
    Int4WeightOnlyEmbeddingQATQuantizer,
    Int4WeightOnlyQATQuantizer,
    Int8DynActInt4WeightQATQuantizer,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxFakeQuantizeConfig,
    IntxWeightOnlyConfig,
    LearnableFakeQuantize,
    MinMaxObserver,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QATConfig,
    QSpec,
    QuantizedEmbedding,
    StaticActivationLinear,
    WeightOnlyQuantizedLinear,
    choose_qparams,
    disable_fake_quant,
    enable_fake_quant,
    quantize_,
    register_fake_quantizer,
)
from minquant.quant.dialects import torchao

INDICES = np.random.default_rng(0).integers(0, 11, (3, 7))

CONFIGS = {
    "int4 groups": (Int8DynamicActivationIntxWeightConfig("int4"), DynamicQuantizedLinear),
    "int4 rows": (Int8DynamicActivationIntxWeightConfig("int4", PerChannel(0)), DynamicQuantizedLinear),
    "int3 affine": (Int8DynamicActivationIntxWeightConfig("int3", PerGroup(16), "asymmetric"), DynamicQuantizedLinear),
    "int2 unclipped": (
        Int8DynamicActivationIntxWeightConfig("int2", PerGroup(8), "symmetric_no_clipping_error"),
        DynamicQuantizedLinear,
    ),
    "weights int4": (IntxWeightOnlyConfig("int4", PerGroup(32)), WeightOnlyQuantizedLinear),
    "weights int8": (Int8WeightOnlyConfig(), WeightOnlyQuantizedLinear),
    "tinygemm": (Int4WeightOnlyConfig(32), WeightOnlyQuantizedLinear),
    "int8 tokens": (Int8DynamicActivationInt8WeightConfig(), DynamicQuantizedLinear),
    "int8 tensors": (Int8DynamicActivationInt8WeightConfig((PerTensor(), PerTensor())), DynamicQuantizedLinear),
    "int8 static": (Int8StaticActivationInt8WeightConfig(), StaticActivationLinear),
    "int8 static, given": (Int8StaticActivationInt8WeightConfig(0.05), StaticActivationLinear),
}
BOTH_STEPS = [QATConfig(CONFIGS["int4 groups"][0], step=step) for step in ("prepare", "convert")]


def make_model() -> nn.Sequential:
    minquant.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(11, 64), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 64, bias=False), nn.Linear(64, 11)
    )


def is_embedding(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Embedding)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(INDICES)
        nn.CrossEntropyLoss()(logits.reshape(-1, 11), Tensor(INDICES.reshape(-1))).backward()
        optimizer.step()


# ---- what becomes of the layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_equals_converted(name):
    config, kind = CONFIGS[name]
    model = make_model()
    parameters = dict(model.named_parameters())
    assert quantize_(model, QATConfig(config, step="prepare")) is None
    prepared = dict(model.named_parameters())
    assert all(prepared[path] is parameter for path, parameter in parameters.items())
    before = model[1].weight.data.copy()
    train(model)
    assert (model[1].weight.data != before).any()
    model.eval()
    expected = model(INDICES).data, model(INDICES[:1, :1]).data
    quantize_(model, QATConfig(config, step="convert"))
    assert [type(model[i]) for i in (1, 3, 4)] == [kind] * 3
    assert not model[1].training
    for got, wanted in zip((model(INDICES).data, model(INDICES[:1, :1]).data), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "int8 static"])
def test_quantizing_at_once_is_preparing_and_converting(name):
    config, kind = CONFIGS[name]
    at_once, in_steps = make_model(), make_model()
    quantize_(at_once, config)
    assert type(at_once[1]) is kind
    quantize_(in_steps, QATConfig(config, step="prepare"))
    quantize_(in_steps, QATConfig(step="convert"))
    np.testing.assert_array_equal(at_once(INDICES).data, in_steps(INDICES).data)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_kernels_change_no_output(backend, monkeypatch):
    results = []
    for choice in ("numpy", backend):
        monkeypatch.setenv("MINQUANT_BACKEND", choice)
        model = make_model()
        quantize_(model, BOTH_STEPS[0])
        train(model)
        results.append(model.eval()(INDICES).data)
    bound = 1e-5 * np.abs(results[0]).max()  # training multiplies in float; one forward pass is exact, see below
    assert np.abs(results[0] - results[1]).max() <= bound
    quantize_(model, BOTH_STEPS[1])
    monkeypatch.setenv("MINQUANT_BACKEND", "numpy")
    np.testing.assert_array_equal(model(INDICES).data, results[1])


def test_prepared_gradient_is_the_float_products():
    model = nn.Sequential(nn.Linear(8, 3))
    quantize_(model, QATConfig(Int8DynamicActivationIntxWeightConfig("int4", PerGroup(4)), step="prepare"))
    x = Tensor(np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32), requires_grad=True)
    y = model(x)
    grad = np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
    y.backward(grad)
    layer = model[0]
    w_hat = layer.weight_fake_quantizer.quantized(layer.weight).dequantize()
    x_hat = layer.activation_fake_quantizer(x).data.reshape(-1, 8)
    np.testing.assert_array_equal(x.grad.data, grad @ w_hat)
    np.testing.assert_array_equal(layer.weight.grad.data, grad.reshape(-1, 3).T @ x_hat)
    np.testing.assert_allclose(layer.bias.grad.data, grad.reshape(-1, 3).sum(0), rtol=1e-6, atol=1e-6)


def test_integers_are_those_of_torchaos_rule():
    model = make_model()
    weight = model[1].weight.data.copy()
    quantize_(model, Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32)))
    grid = torchao.choose_qparams(weight, QSpec(4, symmetric=True, granularity=PerGroup(32)))
    np.testing.assert_array_equal(model[1].weight.qparams.scale, grid.scale)
    groups = weight.reshape(32, 2, 32) * (np.float32(1) / grid.scale[..., np.newaxis])
    np.testing.assert_array_equal(model[1].weight.int_repr(), np.clip(np.rint(groups), -8, 7).reshape(32, 64))


def test_embeddings_are_asked_for():
    config = IntxWeightOnlyConfig("int4", PerGroup(32))
    model = make_model()
    quantize_(model, QATConfig(config, step="prepare"), is_embedding)
    assert type(model[0]) is FakeQuantizedEmbedding
    assert type(model[1]) is nn.Linear
    expected = model.eval()(INDICES).data
    quantize_(model, QATConfig(config, step="convert"))
    assert type(model[0]) is QuantizedEmbedding
    np.testing.assert_array_equal(model(INDICES).data, expected)


def test_tied_weights_stay_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 32), nn.Linear(32, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    model = Tied()
    quantize_(model, Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32)))
    quantize_(model, IntxWeightOnlyConfig("int4", PerGroup(32)), is_embedding)
    assert model.embedding.weight is model.head.weight
    other = Tied()
    quantize_(other, Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32)))
    quantize_(other, IntxWeightOnlyConfig("int4", PerGroup(16)), is_embedding)
    assert other.embedding.weight is not other.head.weight


def test_fake_quantization_can_wait():
    model, untouched = make_model(), make_model()
    quantize_(model, BOTH_STEPS[0])
    model.apply(disable_fake_quant)
    np.testing.assert_array_equal(model(INDICES).data, untouched(INDICES).data)
    model.apply(enable_fake_quant)
    assert (model(INDICES).data != untouched(INDICES).data).any()


def test_static_scale_is_observed_in_training_only():
    model = nn.Sequential(nn.Linear(4, 2))
    quantize_(model, QATConfig(Int8StaticActivationInt8WeightConfig(), step="prepare"))
    model(np.full((1, 4), 2.0, np.float32))
    model.eval()(np.full((1, 4), 9.0, np.float32))
    quantize_(model, QATConfig(step="convert"))
    assert model[0].input_grid.scale == np.float32(2.0) / np.float32(127.5)


def test_explicit_configs_are_converted_to_integers():
    activation = IntxFakeQuantizeConfig("int8", "per_token", is_symmetric=False)
    weight = IntxFakeQuantizeConfig("int4", group_size=32)
    model = make_model()
    quantize_(model, QATConfig(activation_config=activation, weight_config=weight, step="prepare"))
    expected = model.eval()(INDICES).data
    quantize_(model, QATConfig(CONFIGS["int4 groups"][0], step="convert"))  # the same in other words
    np.testing.assert_array_equal(model(INDICES).data, expected)


def test_names_of_granularity_and_mapping_agree():
    named = IntxFakeQuantizeConfig("int4", "per_group", group_size=32, is_symmetric=True)
    assert (
        named
        == IntxFakeQuantizeConfig("int4", PerGroup(32), "symmetric")
        == IntxFakeQuantizeConfig("int4", group_size=32)
    )
    assert IntxFakeQuantizeConfig("int8", "per_token").granularity == PerToken()
    assert IntxFakeQuantizeConfig("int8", "per_channel").granularity == PerChannel(0)


# ---- a fake quantizer of one's own -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClippedConfig(FakeQuantizeConfigBase):
    bits: int = 2


@register_fake_quantizer(ClippedConfig)
class ClippedFakeQuantizer(FakeQuantizerBase):
    def grid(self, x):
        end = 2 * np.abs(x).mean(axis=1)
        return choose_qparams(-end, end, QSpec(self.config.bits, symmetric=True, granularity=PerChannel()))


@dataclass(frozen=True)
class LearnedConfig(FakeQuantizeConfigBase):
    pass


@register_fake_quantizer(LearnedConfig)
class LearnedFakeQuantizer(LearnableFakeQuantize):
    def __init__(self, config):
        super().__init__(MinMaxObserver, -128, 127, dtype="qint8", qscheme="per_tensor_affine")
        self.config = config


def test_a_registered_fake_quantizer_trains_and_converts():
    model = make_model()
    quantize_(model, QATConfig(weight_config=ClippedConfig(), step="prepare"))
    train(model)
    expected = model.eval()(INDICES).data
    ends = 2 * np.abs(model[1].weight.data).mean(axis=1)
    quantize_(model, QATConfig(step="convert"))
    np.testing.assert_array_equal(model(INDICES).data, expected)
    np.testing.assert_array_equal(model[1].weight.qparams.scale, ends / np.float32(1.5))


def test_an_input_may_be_given_a_grid_that_learns():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 11))
    weight = IntxFakeQuantizeConfig("int8", "per_channel")
    quantize_(model, QATConfig(activation_config=LearnedConfig(), weight_config=weight, step="prepare"))
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    model(x)
    for layer in model:
        layer.activation_fake_quantizer.enable_param_learning()
    loss = (model(x) ** 2).mean()
    loss.backward()
    assert model[0].activation_fake_quantizer.scale.grad is not None
    expected = model.eval()(x).data
    quantize_(model, QATConfig(step="convert"))
    assert type(model[0]) is StaticActivationLinear
    np.testing.assert_array_equal(model(x).data, expected)


# ---- torchao's older names -------------------------------------------------------------------------------------------


def test_composed_quantizers_of_the_guide():
    model = make_model()
    quantizer = ComposableQATQuantizer(
        [Int8DynActInt4WeightQATQuantizer(groupsize=32), Int4WeightOnlyEmbeddingQATQuantizer(group_size=32)]
    )
    assert quantizer.prepare(model) is model
    assert [type(model[i]) for i in (0, 1)] == [FakeQuantizedEmbedding, FakeQuantizedLinear]
    train(model)
    expected = model.eval()(INDICES).data
    assert quantizer.convert(model) is model
    assert [type(model[i]) for i in (0, 1)] == [QuantizedEmbedding, DynamicQuantizedLinear]
    np.testing.assert_array_equal(model(INDICES).data, expected)


def test_older_int4_quantizer_takes_a_bias_and_refuses_what_torchao_passes_over():
    model = make_model()
    Int4WeightOnlyQATQuantizer(32).prepare(model)
    assert type(model[1]) is FakeQuantizedLinear  # which has a bias
    with pytest.raises(ValueError, match=r"'1': PerGroup\(256\): the group size must divide .* which has 64"):
        Int4WeightOnlyQATQuantizer().prepare(make_model())


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "filter_fn", "message"),
    [
        (BOTH_STEPS[0], lambda m, p: False, "filter_fn picked no module; those that can be quantized are 0, 1, 3, 4"),
        (BOTH_STEPS[1], None, "no layer is prepared; .*comes first"),
        (BOTH_STEPS[1], lambda m, p: p == "1", "'1' is a Linear and was not prepared"),
        (BOTH_STEPS[0], lambda m, p: p == "2", "'2' is a SiLU; only Linear and Embedding"),
        (BOTH_STEPS[0], is_embedding, "'0' is an Embedding, whose input are indices: .*IntxWeightOnlyConfig"),
        (Int4WeightOnlyConfig(32), is_embedding, "'0': the table of an Embedding has no tinygemm form"),
        (IntxWeightOnlyConfig("int4", PerGroup(48)), None, r"'1': PerGroup\(48\): the group size must divide"),
        (Int8StaticActivationInt8WeightConfig(), None, "the input of FakeQuantizedLinear '1' has no scale yet"),
    ],
)
def test_refusals_leave_the_model_as_it_was(config, filter_fn, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        quantize_(model, config, filter_fn)
    assert [type(m) for m in model] == [nn.Embedding, nn.Linear, nn.SiLU, nn.Linear, nn.Linear]


def test_prepare_and_convert_must_agree():
    model = make_model()
    quantize_(model, BOTH_STEPS[0])
    for other in (Int8DynamicActivationIntxWeightConfig("int3"), IntxWeightOnlyConfig("int4", PerGroup(32))):
        with pytest.raises(ValueError, match="'1' was trained for .*the integers would not be those"):
            quantize_(model, QATConfig(other, step="convert"))
    with pytest.raises(ValueError, match="the model has no Linear left: it is prepared or quantized already"):
        quantize_(model, BOTH_STEPS[0])
    with pytest.raises(ValueError, match="'1' is prepared already"):
        quantize_(model, CONFIGS["int8 tokens"][0], lambda m, p: p == "1")
    quantize_(model, BOTH_STEPS[1])
    with pytest.raises(ValueError, match="'1' is quantized already"):
        quantize_(model, CONFIGS["int8 tokens"][0], lambda m, p: p == "1")


def test_the_model_cannot_be_the_layer():
    with pytest.raises(ValueError, match="put it into a Sequential"):
        quantize_(nn.Linear(32, 4), BOTH_STEPS[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": "train"}, 'step must be "prepare" or "convert"'),
        ({"step": "prepare"}, "needs a base_config or a weight_config"),
        ({"step": "convert", "weight_config": ClippedConfig()}, 'weight_config cannot be given in the step "convert"'),
        (
            {"step": "prepare", "weight_config": ClippedConfig(), "base_config": Int8WeightOnlyConfig()},
            "weight_config cannot be given beside a base_config",
        ),
        ({"step": "prepare", "base_config": ClippedConfig()}, "give it as weight_config"),
        ({"step": "prepare", "weight_config": "int4"}, "must be a config of a fake quantizer"),
    ],
)
def test_qat_config_refuses(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        QATConfig(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntxFakeQuantizeConfig("int9", "per_token"), 'dtype must be "int2" … "int8"'),
        (lambda: IntxFakeQuantizeConfig("int8"), "expected a granularity"),
        (lambda: IntxFakeQuantizeConfig("int8", "per_row"), "expected a granularity"),
        (lambda: IntxFakeQuantizeConfig("int8", "per_token", group_size=32), "contradicts"),
        (lambda: IntxFakeQuantizeConfig("int8", "per_token", "symmetric", is_symmetric=True), "not both"),
        (lambda: IntxFakeQuantizeConfig("int8", "per_token", "affine"), "mapping_type must be one of"),
        (lambda: Int8DynamicActivationIntxWeightConfig("uint4"), "the weight's dtype"),
        (lambda: Int8DynamicActivationIntxWeightConfig("int4", PerToken()), r"weights take PerGroup\(size\)"),
        (lambda: Int8DynamicActivationInt8WeightConfig(PerToken()), "expected two granularities"),
        (lambda: Int8DynamicActivationInt8WeightConfig((PerGroup(8), PerChannel(0))), "inputs take PerToken"),
        (lambda: Int8StaticActivationInt8WeightConfig(-1.0), "act_quant_scale must be positive"),
        (lambda: Int8WeightOnlyConfig(PerToken()), "granularity must be"),
        (lambda: Int4WeightOnlyConfig(0), "expected a positive integer group_size"),
        (lambda: register_fake_quantizer(int), "expected a subclass of FakeQuantizeConfigBase"),
    ],
)
def test_configs_refuse(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_an_input_grid_that_no_dialect_chooses_is_refused():
    config = IntxFakeQuantizeConfig("int8", "per_token", "symmetric_no_clipping_error")
    weight = IntxFakeQuantizeConfig("int4", group_size=32)
    with pytest.raises(ValueError, match="cannot be had at run time"):
        quantize_(make_model(), QATConfig(activation_config=config, weight_config=weight, step="prepare"))


@dataclass(frozen=True)
class UnknownConfig(FakeQuantizeConfigBase):
    pass


def test_an_unregistered_config_is_refused():
    with pytest.raises(TypeError, match="no fake quantizer is registered for UnknownConfig"):
        quantize_(make_model(), QATConfig(weight_config=UnknownConfig(), step="prepare"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["int4 groups", "int8 tokens"])
def test_values_without_a_range_are_refused_with_the_layers_path(name, bad):
    config, _ = CONFIGS[name]
    model = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 4))
    quantize_(model, QATConfig(config, step="prepare"), lambda m, p: p == "0")
    x = np.zeros((2, 32), np.float32)
    x[0, 1] = bad
    with pytest.raises(ValueError, match="the input of FakeQuantizedLinear '0' holds (1 NaN|0 NaN and 1)"):
        model(x)
    quantize_(model, QATConfig(step="convert"))
    with pytest.raises(ValueError, match="the input of DynamicQuantizedLinear '0' holds"):
        model(x)
    with pytest.raises(ValueError, match="'0': the last axis must have 32 features"):
        model(x[:, :5])


def test_a_weight_that_diverged_is_refused():
    model = make_model()
    quantize_(model, BOTH_STEPS[0])
    model[3].weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="the weight of FakeQuantizedLinear '3' holds 1 NaN"):
        model(INDICES)
    with pytest.raises(ValueError, match="the weight of FakeQuantizedLinear '3'"):
        quantize_(model, BOTH_STEPS[1])
    assert type(model[1]) is FakeQuantizedLinear
