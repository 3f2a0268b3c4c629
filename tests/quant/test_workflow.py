"""prepare, prepare_qat, convert, quantize_dynamic, fuse_modules: what they promise, and how they refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minquant
from minquant import functional as F
from minquant import nn, optim
from minquant.quant import (
    DeQuantize,
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
    FakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    LinearReLU,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QATLinear,
    QConfig,
    QTensor,
    Quantize,
    QuantizedLinear,
    QuantizedLinearReLU,
    QuantStub,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    disable_fake_quant,
    disable_observer,
    fuse_modules,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from minquant.quant.observers import Observer
from minquant.quant.stubs import GridDropout

F32 = np.float32
X = np.random.default_rng(0).standard_normal((32, 3)).astype(F32)
Y = np.random.default_rng(1).standard_normal((32, 2)).astype(F32)


def mlp() -> nn.Sequential:
    minquant.manual_seed(0)
    return nn.Sequential({"fc1": nn.Linear(3, 4), "relu": nn.ReLU(), "fc2": nn.Linear(4, 2)})


def wrapped() -> QuantWrapper:
    return QuantWrapper(mlp())


def calibrated(qconfig=None) -> nn.Module:
    prepared = prepare(wrapped(), qconfig or get_default_qconfig())
    prepared(X)
    return prepared


def train(model: nn.Module, steps: int, optimizer=None, x: np.ndarray = X, y: np.ndarray = Y) -> None:
    optimizer = optimizer or optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()


# ---- the promise: a trained model and its converted self compute the same values -----------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A chain of Linear, LinearReLU, ReLU, Flatten, Dropout and Identity, and the shape of its input."""
    minquant.manual_seed(draw(st.integers(0, 999)))
    shape = draw(st.sampled_from([(7, 6), (5, 2, 3), (1, 6), (4, 3, 6)]))
    layers: list[nn.Module] = [nn.Flatten()] if shape[1:] == (2, 3) else []
    width = 6
    for _ in range(draw(st.integers(1, 4))):
        kind, out = draw(st.sampled_from(["Linear", "LinearReLU", "Linear and ReLU"])), draw(st.integers(1, 9))
        linear = nn.Linear(width, out, bias=draw(st.booleans()))
        linear.weight.data *= F32(draw(st.sampled_from([0.01, 1, 30])))
        layers += [LinearReLU(linear, nn.ReLU())] if kind == "LinearReLU" else [linear]
        layers += [nn.ReLU()] if kind == "Linear and ReLU" else []
        layers += draw(st.sampled_from([[], [], [nn.Dropout(0.25)], [nn.Identity()], [nn.Sequential(nn.ReLU())]]))
        width = out
    return QuantWrapper(nn.Sequential(*layers)), shape


@given(chain=chains(), weight_bits=st.sampled_from([8, 4, 2]), act_bits=st.sampled_from([8, 4, 2]),
       first_bits=st.sampled_from([8, 4, None]), steps=st.integers(0, 3), scale=st.sampled_from([0.01, 1, 50]),
       seed=st.integers(0, 999))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_prepared_equals_converted(chain, weight_bits, act_bits, first_bits, steps, scale, seed):
    model, shape = chain
    x = (np.random.default_rng(seed).standard_normal((3, *shape)) * scale).astype(F32)
    qconfig = get_default_qat_qconfig(weight_bits=weight_bits, act_bits=act_bits)
    if first_bits:
        first = next(path for path, m in model.named_modules() if isinstance(m, nn.Linear | LinearReLU))
        qconfig = {"": qconfig, first: get_default_qat_qconfig(weight_bits=first_bits, act_bits=first_bits)}
    prepared = prepare_qat(model.train(), qconfig)
    target = np.zeros(prepared(x[0]).shape, F32)
    train(prepared, steps, optim.Adam(prepared.parameters(), lr=0.01), x[1], target)
    prepared.eval()
    converted = convert(prepared)
    for batch in x:
        assert int((prepared(batch).data != converted(batch).data).sum()) == 0


def test_prepared_equals_converted_on_many_values():
    minquant.manual_seed(1)
    model = QuantWrapper(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    x = np.random.default_rng(0).standard_normal((500, 64)).astype(F32)
    for bits in (8, 4, 2):
        prepared = prepare_qat(model.train(), get_default_qat_qconfig(weight_bits=bits))
        prepared(x)
        prepared.eval()
        differing = prepared(x * 2).data != convert(prepared)(x * 2).data  # beyond the range that was observed, too
        assert differing.sum() == 0


def test_frozen_ranges_convert_as_they_stand():
    prepared = prepare_qat(wrapped().train(), get_default_qat_qconfig(weight_bits=4))
    train(prepared, 3)
    prepared.apply(disable_observer)
    train(prepared, 3)
    prepared.eval()
    assert (prepared(X).data != convert(prepared)(X).data).sum() == 0


# ---- static ----------------------------------------------------------------------------------------------------------


def test_prepare_computes_the_same_and_leaves_the_model_alone():
    model = wrapped()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    prepared = prepare(model, get_default_qconfig())
    assert np.array_equal(prepared(X).data, model(X).data)
    assert not any(hasattr(m, "activation_post_process") or m._forward_hooks for m in model.modules())
    assert all(np.array_equal(before[name], p.data) for name, p in model.named_parameters())
    prepared.module.fc1.weight.data[:] = 0
    assert model.module.fc1.weight.data.any()


def test_convert_makes_integers_flow():
    converted = convert(calibrated())
    kinds = {path: type(m) for path, m in converted.named_modules() if path}
    assert kinds == {
        "quant": Quantize, "dequant": DeQuantize, "module": nn.Sequential, "module.fc1": QuantizedLinear,
        "module.relu": nn.ReLU, "module.fc2": QuantizedLinear,
    }  # fmt: skip
    seen = []
    for module in (converted.quant, *converted.module):
        module.register_forward_hook(lambda m, inputs, output: seen.append(output))
    out = converted(X)
    assert all(isinstance(q, QTensor) and q.int_repr().dtype == np.uint8 for q in seen) and len(seen) == 4
    assert isinstance(out, minquant.Tensor) and not converted.training
    # a static model's integers follow from the observers' ranges
    prepared = calibrated()
    scale, zero_point = prepared.module.fc1.activation_post_process.calculate_qparams()
    assert (converted.module.fc1.output.scale, converted.module.fc1.output.zero_point) == (scale, zero_point)
    assert isinstance(prepared.module.fc1.activation_post_process, HistogramObserver)


def test_static_output_is_close_to_the_float_models():
    prepared = calibrated()
    error = np.abs(convert(prepared)(X).data - prepared(X).data).max()
    steps = sum(float(m.activation_post_process.calculate_qparams()[0]) for _, m in prepared.named_modules()
                if hasattr(m, "activation_post_process"))  # fmt: skip
    assert 0 < error < 3 * steps


def test_convert_leaves_the_prepared_model_usable():
    prepared = calibrated()
    first, expected = convert(prepared), prepared(X).data
    prepared(X * 4)
    second = convert(prepared)
    assert np.array_equal(prepared(X).data, expected)
    assert second.module.fc1.output.scale > first.module.fc1.output.scale


def test_shared_layers_stay_shared():
    linear = nn.Linear(3, 3)
    prepared = prepare(QuantWrapper(nn.Sequential(linear, nn.ReLU(), linear)), get_default_qconfig())
    prepared(X)
    converted = convert(prepared)
    assert converted.module[0] is converted.module[2]


def test_bits_and_fused_layers():
    model = QuantWrapper(nn.Sequential(LinearReLU(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2, bias=False)))
    prepared = prepare(model, get_default_qconfig(weight_bits=3, act_bits=4))
    prepared(X)
    fused, last = convert(prepared).module
    assert type(fused) is QuantizedLinearReLU and type(last) is QuantizedLinear and last.bias is None
    assert (fused.weight.qparams.spec.bits, fused.output.spec.bits) == (3, 4)
    assert fused.output.zero_point == 0  # nothing below zero is left


def test_different_configs_for_different_layers():
    configs = {"": get_default_qconfig(), "module.fc2": get_default_qconfig(weight_bits=4), "module.relu": None}
    del configs["module.relu"]
    prepared = prepare(wrapped(), configs)
    prepared(X)
    converted = convert(prepared)
    assert [m.weight.qparams.spec.bits for m in (converted.module.fc1, converted.module.fc2)] == [8, 4]


# ---- in training -------------------------------------------------------------------------------------------------


def test_an_optimizer_made_before_trains_the_model_made_after():
    model = wrapped().train()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    prepared = prepare_qat(model, get_default_qat_qconfig())
    assert [id(p) for p in prepared.parameters()] == [id(p) for p in model.parameters()]
    before = F.mse_loss(prepared(X), Y).item()
    train(prepared, 30, optimizer)
    assert F.mse_loss(prepared(X), Y).item() < 0.8 * before
    assert np.array_equal(prepared.module.fc1.weight.data, model.module.fc1.weight.data)
    # the structure is not shared
    assert type(model.module.fc1) is nn.Linear and not model.module.fc1._forward_hooks


def test_ranges_move_in_training_only():
    prepared = prepare_qat(wrapped().train(), get_default_qat_qconfig())
    prepared(X)
    state = {name: buffer.data.copy() for name, buffer in prepared.named_buffers()}
    prepared.eval()
    prepared(X * 10)
    assert all(np.array_equal(state[name], b.data) for name, b in prepared.named_buffers())
    prepared.train()
    prepared(X * 10)
    assert prepared.quant.activation_post_process.activation_post_process.max_val.data == X.max() * 10


def test_switched_off_it_is_the_float_model():
    model = wrapped().train()
    prepared = prepare_qat(model, get_default_qat_qconfig(weight_bits=2))
    prepared.apply(disable_fake_quant)
    assert np.array_equal(prepared(X).data, model(X).data)


def test_dropout_keeps_values_on_a_grid():
    prepared = prepare_qat(
        QuantWrapper(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))).train(), get_default_qat_qconfig()
    )
    assert isinstance(prepared.module[0], GridDropout)
    train(prepared, 2)
    converted = convert(prepared.eval())
    assert type(converted.module[0]) is nn.Dropout
    assert np.array_equal(prepared(X).data, converted(X).data)


def test_convert_keeps_the_trained_weights_integers():
    prepared = prepare_qat(wrapped().train(), get_default_qat_qconfig(weight_bits=4))
    train(prepared, 5)
    layer = prepared.module.fc1
    rounded = layer.weight_fake_quant(layer.weight)
    weight = convert(prepared).module.fc1.weight
    assert np.array_equal(weight.dequantize(), rounded.data) and weight.qparams.spec.bits == 4
    assert isinstance(layer, QATLinear)


# ---- dynamic -----------------------------------------------------------------------------------------------------


def test_dynamic_needs_no_calibration_and_leaves_the_model_alone():
    model = nn.Sequential(LinearReLU(nn.Linear(3, 4), nn.ReLU()), nn.Dropout(), nn.Linear(4, 2))
    quantized = quantize_dynamic(model)
    assert [type(m) for m in quantized] == [DynamicQuantizedLinearReLU, nn.Dropout, DynamicQuantizedLinear]
    assert not quantized.training and model.training and type(model[2]) is nn.Linear
    assert np.abs(quantized(X).data - model.eval()(X).data).max() < 0.05


def test_a_single_layer_can_be_the_model():
    assert type(quantize_dynamic(nn.Linear(3, 2))) is DynamicQuantizedLinear
    prepared = prepare_qat(QuantWrapper(nn.Linear(3, 2)).train(), get_default_qat_qconfig())
    prepared(X)
    assert type(convert(prepared).module) is QuantizedLinear


def test_dynamic_with_2_to_8_bits():
    for bits in (2, 3, 4, 8):
        quantized = quantize_dynamic(mlp(), default_dynamic_qconfig(weight_bits=bits))
        assert quantized.fc1.weight.qparams.spec.bits == bits


def test_stubs_stay_stubs_in_a_dynamic_model():
    quantized = quantize_dynamic(wrapped())
    assert type(quantized.quant) is QuantStub and type(quantized.module.fc1) is DynamicQuantizedLinear
    assert quantized(X).shape == (32, 2)


# ---- fusing ------------------------------------------------------------------------------------------------------


def test_fuse_modules():
    model = mlp()
    fused = fuse_modules(model, ["fc1", "relu"])
    assert [type(m) for m in fused] == [LinearReLU, nn.Identity, nn.Linear] and type(model.fc1) is nn.Linear
    assert np.array_equal(fused(X).data, model(X).data)
    both = fuse_modules(nn.Sequential(*copy.deepcopy([*model, nn.ReLU()])), [["0", "1"], ["2", "3"]])
    assert [type(m) for m in both] == [LinearReLU, nn.Identity] * 2


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["fc1", "fc2"], r"fuse_modules: expected a Linear or Conv, .*, got \['fc1', 'fc2'\] \(Linear, Linear\)"),
        (["relu", "fc1"], r"then a batch norm, a ReLU or both, got \['relu', 'fc1'\] \(ReLU, Linear\)"),
        (["fc1"], "expected a Linear or Conv, then a batch norm, a ReLU or both"),
        (["fc1", "rlu"], "fuse_modules: no module is named 'rlu'; did you mean 'relu'?"),
        ([], "fuse_modules: expected the paths of layers"),
    ],
)
def test_what_cannot_be_fused(pair, message):
    with pytest.raises(ValueError, match=message):
        fuse_modules(mlp(), pair)


# ---- bad input: data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["prepare", "prepare_qat"])
def test_nan_and_infinity_in_calibration(flow):
    if flow == "prepare":
        prepared = prepare(wrapped(), get_default_qconfig())
    else:
        prepared = prepare_qat(wrapped().train(), get_default_qat_qconfig())
    x = X.copy()
    x[0, :2], x[3, 1] = np.nan, -np.inf
    with pytest.raises(
        ValueError, match="the output of QuantStub 'quant' holds 2 NaN and 1 infinite values out of 96"
    ) as e:
        prepared(x)
    assert "no range, so no grid. Mend the data or the layers before it" in str(e.value)
    prepared.module.fc1.bias.data[0] = np.inf
    with pytest.raises(
        ValueError, match=r"the output of (QAT)?Linear 'module.fc1' holds 0 NaN and 32 infinite values out of"
    ):
        prepared(X)


def test_a_nan_weight_names_its_layer():
    model = wrapped()
    model.module.fc2.weight.data[1, 2] = np.nan
    for flow in (lambda: quantize_dynamic(model), lambda: prepare_qat(model.train(), get_default_qat_qconfig())(X)):
        with pytest.raises(ValueError, match="the weight of .*'module.fc2'.* 1 NaN and 0 infinite values out of 8"):
            flow()


def test_convert_before_calibration_names_every_layer():
    with pytest.raises(
        ValueError, match="convert: the observers of quant, module.fc1, module.fc2 have seen no data"
    ) as error:
        convert(prepare(wrapped(), get_default_qconfig()))
    assert "run calibration data through the prepared model" in str(error.value)
    with pytest.raises(ValueError, match="quant, module.fc1, module.fc2 have seen no data"):
        convert(prepare_qat(wrapped().train(), get_default_qat_qconfig()))


def test_an_empty_calibration_is_none():
    prepared = prepare(wrapped(), get_default_qconfig())
    prepared(np.zeros((0, 3), F32))
    with pytest.raises(ValueError, match="quant, module.fc1, module.fc2 have seen no data"):
        convert(prepared)


def test_empty_batches_run():
    assert convert(calibrated())(np.zeros((0, 3), F32)).shape == (0, 2)
    assert quantize_dynamic(mlp())(np.zeros((0, 3), F32)).shape == (0, 2)
    prepared = prepare_qat(wrapped().train(), get_default_qat_qconfig())
    prepared(X)
    out = prepared(np.zeros((0, 3), F32))
    out.sum().backward()
    assert out.shape == (0, 2) and not prepared.module.fc1.weight.grad.data.any()


def test_integer_data_is_refused():
    prepared = prepare(wrapped(), get_default_qconfig())
    with pytest.raises(TypeError, match="QuantStub 'quant'.*expected floating point values"):
        prepared(np.ones((2, 3), int))


# ---- bad input: models ---------------------------------------------------------------------------------------------


def test_a_float_tensor_into_an_integer_model_without_a_stub():
    class NoStub(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc = QuantStub(), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x)  # forgets self.quant

    prepared = prepare(NoStub(), {"fc": get_default_qconfig()})
    prepared(X)
    with pytest.raises(TypeError, match="QuantizedLinear 'fc': .*got plain real values: there is no QuantStub between"):
        convert(prepared)(X)
    with pytest.raises(ValueError, match="QATLinear 'fc': .*there is no QuantStub between"):
        prepare_qat(NoStub().train(), {"fc": get_default_qat_qconfig()})(X)


@pytest.mark.parametrize("flow", [prepare, prepare_qat])
def test_a_model_without_a_stub(flow):
    with pytest.raises(ValueError, match=rf"{flow.__name__}: the model has no QuantStub.*QuantWrapper\(model\)"):
        flow(mlp().train(), get_default_qconfig())


def test_converting_twice():
    converted = convert(calibrated())
    with pytest.raises(ValueError, match="convert: this model is converted already"):
        convert(converted)
    with pytest.raises(ValueError, match="convert: this model is converted already"):
        convert(quantize_dynamic(mlp()))


def test_converting_what_was_never_prepared():
    with pytest.raises(ValueError, match="convert: no layer was prepared; call prepare and calibrate the result"):
        convert(wrapped())


@pytest.mark.parametrize("flow", [prepare, prepare_qat, quantize_dynamic])
@pytest.mark.parametrize("state", ["prepared", "in training", "converted", "dynamic"])
def test_preparing_what_is_prepared_or_quantized(flow, state):
    model = {
        "prepared": lambda: calibrated(),
        "in training": lambda: prepare_qat(wrapped().train(), get_default_qat_qconfig()),
        "converted": lambda: convert(calibrated()),
        "dynamic": lambda: quantize_dynamic(wrapped()),
    }[state]()
    config = {
        prepare: get_default_qconfig,
        prepare_qat: get_default_qat_qconfig,
        quantize_dynamic: default_dynamic_qconfig,
    }
    message = rf"{flow.__name__}: this model is prepared or quantized already; start from the float model"
    with pytest.raises(ValueError, match=message):
        flow(model.train(), config[flow]())


def test_training_needs_training_mode():
    with pytest.raises(ValueError, match=r"prepare_qat expects a model in training mode.*call model.train\(\) first"):
        prepare_qat(wrapped().eval(), get_default_qat_qconfig())


@pytest.mark.parametrize("flow", [prepare, prepare_qat, quantize_dynamic, convert])
@pytest.mark.parametrize("model", [None, "model", np.ones(3), nn.Linear])
def test_what_is_no_model(flow, model):
    arguments = (model,) if flow is convert else (model, get_default_qconfig())
    with pytest.raises(TypeError, match=rf"{flow.__name__}: expected a Module, got"):
        flow(*arguments)


# ---- bad input: configs --------------------------------------------------------------------------------------------

WRONG_KIND = [
    (
        prepare,
        get_default_qat_qconfig(),
        "prepare: expected a QConfig whose activation makes an object of class Observer",
    ),
    (
        prepare,
        default_dynamic_qconfig(),
        "prepare: expected a QConfig whose activation makes an object of class Observer",
    ),
    (
        prepare_qat,
        get_default_qconfig(),
        "prepare_qat: expected a QConfig whose (weight|activation) makes .*FakeQuantize",
    ),
    (
        prepare_qat,
        default_dynamic_qconfig(),
        "prepare_qat: expected a QConfig whose (weight|activation) makes .*FakeQuantize",
    ),
    (quantize_dynamic, get_default_qconfig(), "quantize_dynamic: expected a QConfig whose activation is a QSpec"),
    (quantize_dynamic, get_default_qat_qconfig(), "quantize_dynamic: expected a QConfig whose activation is a QSpec"),
]


@pytest.mark.parametrize(("flow", "qconfig", "message"), WRONG_KIND)
def test_a_config_of_another_flow(flow, qconfig, message):
    with pytest.raises(TypeError, match=message) as error:
        flow(wrapped().train(), qconfig)
    assert "qconfig()" in str(error.value)


def test_a_weight_that_is_watched_by_the_wrong_thing():
    fake = QConfig(MinMaxObserver, FakeQuantize)
    with pytest.raises(TypeError, match="prepare: expected a QConfig whose weight makes an? Observer.*'module.fc1'"):
        prepare(wrapped(), fake)
    with pytest.raises(TypeError, match="quantize_dynamic: expected a QConfig whose weight makes an? Observer"):
        quantize_dynamic(wrapped(), QConfig(default_dynamic_qconfig().activation, FakeQuantize))


def test_a_weight_watched_along_the_wrong_axis():
    columns = PerChannelMinMaxObserver.with_args(ch_axis=1, dtype="qint8", qscheme="per_channel_symmetric")
    with pytest.raises(ValueError, match=r"the weight of a Linear.*got PerChannel\(axis=1\)"):
        prepare(wrapped(), QConfig(MinMaxObserver, columns))
    with pytest.raises(ValueError, match=r"the weight of a Linear.*got PerChannel\(axis=1\)"):
        quantize_dynamic(mlp(), QConfig(default_dynamic_qconfig().activation, columns))


def test_an_output_watched_per_channel():
    with pytest.raises(
        ValueError, match="prepare: the output of 'quant' needs one scale.*got uint8 affine per channel"
    ):
        prepare(wrapped(), QConfig(PerChannelMinMaxObserver, PerChannelMinMaxObserver))
    per_channel = FakeQuantize.with_args(observer=PerChannelMinMaxObserver)
    with pytest.raises(ValueError, match="prepare_qat: the output of 'quant' needs one scale"):
        prepare_qat(wrapped().train(), QConfig(per_channel, get_default_qat_qconfig().weight))


def test_every_watcher_was_made_for_its_layer():
    prepared = calibrated()
    watchers = [m for m in prepared.modules() if isinstance(m, Observer)]
    assert len(watchers) == len({id(w) for w in watchers}) == 3


# ---- checkpoints of a model in training ------------------------------------------------------------------------------


def test_a_fresh_model_takes_up_where_a_checkpoint_left_off():
    """Ranges per channel, whose shape a fresh observer does not know yet, and what was switched off, included."""
    prepared = prepare_qat(wrapped().train(), get_default_qat_qconfig(weight_bits=4))
    train(prepared, 3)
    prepared.apply(disable_observer)
    state = {name: tensor.data.copy() for name, tensor in prepared.state_dict().items()}
    fresh = prepare_qat(wrapped().train(), get_default_qat_qconfig(weight_bits=4))
    fresh.load_state_dict(state)
    for model in (prepared, fresh):
        model(3 * X)  # would widen the ranges, were they not frozen
    assert np.array_equal(fresh(X).data, prepared(X).data)
    assert np.array_equal(convert(fresh.eval())(X).data, convert(prepared.eval())(X).data)


def test_a_learned_scale_survives_a_checkpoint():
    qconfig = QConfig(
        LearnableFakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=255),
        LearnableFakeQuantize.with_args(observer=PerChannelMinMaxObserver, quant_min=-8, quant_max=7, dtype="qint8",
                                        qscheme="per_channel_symmetric"),
    )  # fmt: skip
    learning = prepare_qat(wrapped().train(), qconfig)
    train(learning, 1)
    for module in learning.modules():
        if isinstance(module, LearnableFakeQuantize):
            module.enable_param_learning()
    train(learning, 3, optim.SGD(learning.parameters(), lr=1e-4))
    state = {name: tensor.data.copy() for name, tensor in learning.state_dict().items()}
    fresh = prepare_qat(wrapped().train(), qconfig)
    fresh.load_state_dict(state)
    fresh(X)
    scales = {name: p.data for name, p in fresh.named_parameters() if name.endswith("scale")}
    assert scales and all(np.array_equal(scale, state[name]) for name, scale in scales.items())
    assert all(p.requires_grad for name, p in fresh.named_parameters() if name.endswith("scale"))


# ---- leaving the grid before the last stub ---------------------------------------------------------------------------


class SumBeforeTheStub(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.fc, self.dequant = QuantStub(), nn.Linear(3, 3), nn.DeQuantStub()

    def forward(self, x):
        x = self.quant(x)
        return self.dequant(x + self.fc(x))


def test_training_refuses_what_the_converted_model_could_not_run():
    prepared = prepare_qat(SumBeforeTheStub(), get_default_qat_qconfig())
    with pytest.raises(ValueError, match="DeQuantStub: expected values on a quantization grid, got plain real values"):
        prepared(X)
    prepared.apply(disable_fake_quant)
    assert prepared(X).shape == (32, 3)
