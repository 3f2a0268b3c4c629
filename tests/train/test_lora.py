"""LoRA-QAT: what adapters change and what they leave, that merging keeps or re-rounds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import minquant
from minquant import Tensor, nn, no_grad, optim
from minquant.quant import (
    DynamicQuantizedLinear,
    FakeQuantizedLinear,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    QATConfig,
    WeightOnlyQuantizedLinear,
    quantize_,
)
from minquant.train.lora import add_lora_, load_lora_, lora_parameters, merge_lora_, save_lora

INT4 = Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32))
CONFIGS = {
    "int4 groups": INT4,
    "int2 affine": Int8DynamicActivationIntxWeightConfig("int2", PerGroup(16), "asymmetric"),
    "int8 tokens": Int8DynamicActivationInt8WeightConfig(),
    "weights int3": IntxWeightOnlyConfig("int3", PerGroup(32)),
    "tinygemm": Int4WeightOnlyConfig(32),
}
X = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)


def make_model() -> nn.Sequential:
    minquant.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 64, bias=False))


def adapted(form: str, config=INT4, rank: int = 4, alpha: float = 8) -> nn.Sequential:
    model = make_model()
    add_lora_(model, rank, alpha, form=form, config=config)
    return model


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = optim.AdamW(lora_parameters(model), lr=0.02)
    target = Tensor(np.roll(X, 1, -1))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.MSELoss()(model(X), target).backward()
        optimizer.step()


def outputs(model: nn.Module) -> np.ndarray:
    with no_grad():
        return model.eval()(X).data


# ---- at the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_new_adapter_changes_no_bit(config):
    light, quantized = adapted("light", config), make_model()
    quantize_(quantized, config)
    np.testing.assert_array_equal(outputs(light), outputs(quantized), strict=True)
    merged, prepared = adapted("merged", config), make_model()
    quantize_(prepared, QATConfig(config, step="prepare"))
    np.testing.assert_array_equal(outputs(merged), outputs(prepared), strict=True)


@pytest.mark.parametrize("form", ["light", "merged"])
def test_adapters_alone_are_trained(form):
    model = adapted(form)
    shapes = [p.shape for p in lora_parameters(model)]
    assert shapes == [(4, 64), (32, 4), (4, 32), (64, 4)]
    assert [p for p in model.parameters() if p.requires_grad] == lora_parameters(model)
    before = {name: value.data.copy() for name, value in model.state_dict().items()}
    base = model[1].frozen().copy()
    train(model, 1)
    assert not model[1].lora_a.grad.data.any() and model[1].lora_b.grad.data.any()  # B is 0, so A learns nothing yet
    train(model)
    changed = [name for name, value in model.state_dict().items() if (value.data != before[name]).any()]
    assert changed == [f"{i}.{name}" for i in (1, 3) for name in ("lora_a", "lora_b")]
    np.testing.assert_array_equal(model[1].frozen(), base, strict=True)


def test_a_light_layer_holds_no_float_weight():
    model = adapted("light")
    assert {name for name, _ in model[1].named_parameters()} == {"lora_a", "lora_b"}
    floats = [v for v in vars(model[1].base).values() if isinstance(v, np.ndarray) and v.ndim == 2]
    assert not floats and model[1].base.weight.storage.nbytes == 64 * 32 // 2


# ---- the light form's arithmetic -------------------------------------------------------------------------------------


def test_train_and_eval_compute_the_same():
    model = adapted("light")
    train(model)
    np.testing.assert_array_equal(model.train()(X).data, outputs(model), strict=True)


def test_gradients_are_those_of_the_float_product():
    layer = adapted("light")[1]
    layer.lora_b.data[:] = np.random.default_rng(1).standard_normal(layer.lora_b.shape)
    x = Tensor(X, requires_grad=True)
    grad = np.random.default_rng(2).standard_normal((2, 5, 32)).astype(np.float32)
    layer(x).backward(grad)
    g, rows, weight = grad.reshape(-1, 32).astype(np.float64), X.reshape(-1, 64).astype(np.float64), layer.base.weight
    a, b = (p.data.astype(np.float64) for p in (layer.lora_a, layer.lora_b))
    for ours, wanted in (
        (x.grad.data.reshape(-1, 64), g @ (weight.dequantize() + 2 * b @ a)),
        (layer.lora_b.grad.data, 2 * g.T @ (rows @ a.T)),
        (layer.lora_a.grad.data, 2 * b.T @ g.T @ rows),
    ):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


# ---- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_merged_form_converts_without_loss(config):
    model = adapted("merged", config)
    train(model)
    before = outputs(model)
    merge_lora_(model)
    assert not any(isinstance(module, FakeQuantizedLinear) for module in model.modules())
    np.testing.assert_array_equal(outputs(model), before, strict=True)


def test_the_merged_form_is_a_prepared_layer():
    one, other = adapted("merged"), adapted("merged")
    train(one)
    train(other)
    merge_lora_(one)
    quantize_(other, QATConfig(INT4, step="convert"))
    np.testing.assert_array_equal(one[1].weight.storage, other[1].weight.storage, strict=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_merging_the_light_form_rounds_to_the_grid_of_its_base(config):
    model = adapted("light", config)
    integers = model[1].base.weight.int_repr()
    model[1].lora_a.data[:], model[1].lora_b.data[:] = 0, 0
    merge_lora_(model)
    assert type(model[1]) is (DynamicQuantizedLinear if "Dynamic" in str(config) else WeightOnlyQuantizedLinear)
    np.testing.assert_array_equal(model[1].weight.int_repr(), integers, strict=True)  # nothing learned, nothing moved


def test_what_merging_the_light_form_undoes():
    model = adapted("light", rank=1, alpha=1)
    base, scale = model[1].base.weight, model[1].base.weight.qparams.scale.min()
    model[1].lora_a.data[:], model[1].lora_b.data[:] = 1, 0.4 * scale
    merge_lora_(model)
    np.testing.assert_array_equal(model[1].weight.int_repr(), base.int_repr(), strict=True)
    other = adapted("light", rank=1, alpha=1)
    other[1].lora_a.data[:], other[1].lora_b.data[:] = 1, other[1].base.weight.qparams.scale.max()
    merge_lora_(other)
    moved = other[1].weight.int_repr() - base.int_repr()
    assert set(np.unique(moved)) <= {0, 1, 2, 3} and (moved[base.int_repr() < 4] > 0).all()


# ---- adapters by themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["light", "merged"])
def test_adapters_are_saved_alone(form, tmp_path):
    model, fresh = adapted(form), adapted(form)
    train(model)
    save_lora(model, tmp_path / "adapter.safetensors")
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4 * (4 * 64 + 32 * 4 + 4 * 32 + 64 * 4) + 1500
    load_lora_(fresh, tmp_path / "adapter.safetensors")
    np.testing.assert_array_equal(outputs(fresh), outputs(model), strict=True)


def test_adapters_are_not_read_into_another_model(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_lora(adapted("light"), path)
    for form, rank, alpha in (("merged", 4, 8), ("light", 2, 8), ("light", 4, 9)):
        with pytest.raises(ValueError, match="other adapters"):
            load_lora_(adapted(form, rank=rank, alpha=alpha), path)
    other = make_model()
    other[1].weight.data[0, 0] = 5
    add_lora_(other, 4, 8, form="light", config=INT4)
    with pytest.raises(ValueError, match="beside other weights"):
        load_lora_(other, path)
    with pytest.raises(ValueError, match="has no adapter"):
        load_lora_(make_model(), path)


@pytest.mark.parametrize("form", ["light", "merged"])
def test_a_model_with_adapters_is_saved_whole(form, tmp_path):
    model = adapted(form)
    train(model)
    minquant.save(model, tmp_path / "model.safetensors")
    loaded = minquant.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(outputs(loaded), outputs(model), strict=True)
    assert [p.requires_grad for p in lora_parameters(loaded)] == [True] * 4


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    model = adapted("light")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_lora_(model, path)
    save_lora(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="truncated"):
        load_lora_(model, path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="altered"):
        load_lora_(model, path)
    minquant.save(make_model(), path)
    with pytest.raises(ValueError, match="not one that save_lora wrote"):
        load_lora_(model, path)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rank": 0}, ValueError, "rank must be 1 or more"),
        ({"rank": 33}, ValueError, "rank=33 is above 32, the smaller side of '1'"),
        ({"alpha": 0}, ValueError, "alpha must be above 0"),
        ({"form": "lite"}, ValueError, "form must be 'light' or 'merged'"),
        ({"config": QATConfig(INT4, step="prepare")}, TypeError, "expected a config"),
        ({"config": Int8DynamicActivationIntxWeightConfig("int4", PerGroup(48))}, ValueError, "'1'.*48"),
        ({"config": Int8StaticActivationInt8WeightConfig()}, ValueError, 'observes or clips its input.*form="merged"'),
        ({"filter_fn": lambda module, path: False}, ValueError, "picked no module; the Linears are 1, 3"),
        ({"filter_fn": lambda module, path: path == "2"}, ValueError, "'2' is a SiLU"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(change, error, says):
    model = make_model()
    with pytest.raises(error, match=says):
        add_lora_(model, **{"rank": 4, "alpha": 8, "form": "light", "config": INT4} | change)
    assert type(model[1]) is nn.Linear and model[1].weight.requires_grad


def test_nothing_is_adapted_or_merged_twice():
    model = adapted("light")
    with pytest.raises(ValueError, match="adapted already"):
        add_lora_(model, 4, 8, form="light", config=INT4)
    with pytest.raises(ValueError, match="'1' has an adapter already"):
        add_lora_(model, 4, 8, form="light", config=INT4, filter_fn=lambda module, path: path == "1")
    model[3].lora_b.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        merge_lora_(model)
    model[3].lora_b.data[0, 0] = 0
    merge_lora_(model)
    with pytest.raises(ValueError, match="merge_lora_ was already"):
        merge_lora_(model)
    with pytest.raises(ValueError, match="has no adapter"):
        lora_parameters(model)


def test_nan_in_the_input_is_refused_with_the_layers_path():
    model, x = adapted("light"), X.copy()
    x[0, 0, 0] = np.nan
    for training in (True, False):
        with pytest.raises(ValueError, match="LoraLinear '1' holds"):
            model.train(training)(x)
