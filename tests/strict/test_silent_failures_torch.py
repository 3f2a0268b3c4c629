"""What torch 2.13.0 and torchao 0.18.0 do without a word, a test each; what minquant says: test_silent_failures.py.

Every warning fails a test here (but for the notices that these modules are deprecated), so that a test which passes
shows the silence too. Where a test fails on a newer version, torch may have mended it: then docs/silent-failures.md
is to be told.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
torchao = pytest.importorskip("torchao")
import torch.ao.quantization as tq
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig, initialize_fake_quantizers

T = torch.nn


def test_the_versions_that_this_file_speaks_of() -> None:
    assert torch.__version__.split("+")[0] == "2.13.0"
    assert torchao.__version__.split("+")[0] == "0.18.0"


@pytest.fixture(autouse=True)
def x86_and_a_seed() -> Any:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    torch.manual_seed(0)
    yield
    torch.backends.quantized.engine = engine


def mlp() -> Any:
    return T.Sequential(T.Linear(32, 32), T.ReLU(), T.Linear(32, 32))


def prepared_qat(model: Any) -> Any:
    model.train().qconfig = tq.get_default_qat_qconfig("x86")
    return tq.prepare_qat(model)


# ---- layers that stay in float ---------------------------------------------------------------------------------------


def test_a_layer_type_without_integer_form_is_ignored() -> None:
    """torch 2.13.0, torchao 0.18.0: a model asked to be quantized has nothing quantized in it."""
    model = T.Sequential(T.Conv2d(3, 3, 1), T.LayerNorm(4))
    quantized = tq.quantize_dynamic(model, {T.Conv2d, T.LayerNorm})
    assert [type(layer) for layer in quantized] == [T.Conv2d, T.LayerNorm]
    quantize_(model, Int8WeightOnlyConfig(version=2))
    assert type(model[0].weight) is T.Parameter and model[0].weight.dtype == torch.float32


def test_a_layer_left_out_by_a_filter_is_not_mentioned() -> None:
    """torch 2.13.0, torchao 0.18.0: a misspelt name selects nothing."""
    quantized = tq.quantize_dynamic(mlp(), {"fc1": tq.default_dynamic_qconfig})
    assert [type(layer) for layer in quantized] == [T.Linear, T.ReLU, T.Linear]
    model = mlp()
    quantize_(model, Int8WeightOnlyConfig(version=2), filter_fn=lambda module, name: name == "fc1")
    assert all(type(layer.weight) is T.Parameter for layer in (model[0], model[2]))


def test_a_linear_with_a_bias_is_skipped() -> None:
    """torchao 0.18.0: Int4WeightOnlyQATQuantizer trains the layer with a bias in float, the other one on 4 bits."""
    from torchao.quantization.qat.linear import Int4WeightOnlyQATLinear, Int4WeightOnlyQATQuantizer

    model = T.Sequential(T.Linear(256, 256), T.Linear(256, 256, bias=False))
    prepared = Int4WeightOnlyQATQuantizer(groupsize=32).prepare(model)
    assert [type(layer) for layer in prepared] == [T.Linear, Int4WeightOnlyQATLinear]


def test_a_functional_layer_stays_in_float() -> None:
    """torch 2.13.0: dynamic quantization sees modules only; the weight used by a function is left as it was."""

    class Model(T.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = T.Linear(3, 3), T.Parameter(torch.randn(3, 3))

        def forward(self, x: Any) -> Any:
            return T.functional.linear(self.first(x), self.weight)

    quantized = tq.quantize_dynamic(Model())
    assert isinstance(quantized.first, torch.ao.nn.quantized.dynamic.Linear)
    assert type(quantized.weight) is T.Parameter and quantized.weight.dtype == torch.float32


# ---- the model that was trained is not the model that runs -----------------------------------------------------------


def test_an_observer_goes_on_updating_in_eval() -> None:
    """torch 2.13.0: in eval, one batch changes what the next one gives."""
    prepared = prepared_qat(tq.QuantWrapper(mlp()))
    x = torch.randn(16, 32)
    prepared(x)
    prepared.eval()
    before = prepared(x)
    prepared(100 * x)
    assert not torch.equal(prepared(x), before)


def test_converting_twice_does_nothing_the_second_time() -> None:
    """torch 2.13.0: convert of a converted model, or of one that was never prepared, returns it unchanged."""
    model = tq.QuantWrapper(mlp()).eval()
    model.qconfig = tq.get_default_qconfig("x86")
    prepared = tq.prepare(model)
    prepared(torch.randn(16, 32))
    once = tq.convert(prepared)
    twice = tq.convert(once)
    assert [type(m) for m in twice.modules()] == [type(m) for m in once.modules()]
    assert type(tq.convert(mlp())[0]) is T.Linear


def test_preparing_int4_and_converting_int2() -> None:
    """torchao 0.18.0: the config of "convert" need not be that of "prepare"; the trained grid is not the one used."""
    prepare, convert = (
        IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(32)) for dtype in (torch.int4, torch.int2)
    )
    model, x = T.Sequential(T.Linear(32, 32)), torch.randn(4, 32)
    quantize_(model, QATConfig(prepare, step="prepare"))
    trained, same = model(x), copy.deepcopy(model)
    quantize_(same, QATConfig(prepare, step="convert"))
    assert torch.equal(same(x), trained)
    quantize_(model, QATConfig(convert, step="convert"))
    assert model[0].weight.qdata.unique().tolist() == [-2, -1, 0, 1]
    assert (model(x) - trained).abs().max() > 0.3


def test_a_checkpoint_drops_a_scale() -> None:
    """torchao 0.18.0: a scale chosen once (is_dynamic=False) is in no state_dict; a loaded model chooses another.

    A learned scale (range_learning=True) is in the state_dict, and load_state_dict names it where it does not fit.
    """

    def prepared() -> Any:
        model = T.Sequential(T.Linear(32, 32))
        weight_config = IntxFakeQuantizeConfig(torch.int4, group_size=32, is_dynamic=False)
        quantize_(model, QATConfig(weight_config=weight_config, step="prepare"))
        return model

    model, x = prepared(), torch.randn(8, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    state = model.state_dict()
    assert list(state) == ["0.weight", "0.bias"]
    loaded = prepared()
    loaded.load_state_dict(state)  # strictly
    assert (loaded(x) - model(x)).abs().max() > 0.1


# ---- operations ------------------------------------------------------------------------------------------------------


class Skip(T.Module):
    """x + f(x) by an operator, where FloatFunctional belongs."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.fc, self.dequant = tq.QuantStub(), T.Linear(32, 32), tq.DeQuantStub()

    def forward(self, x: Any) -> Any:
        x = self.quant(x)
        return self.dequant(x + self.fc(x))


def test_an_uncovered_operation_is_trained_in_float_and_converted() -> None:
    """torch 2.13.0: no fake quantizer sees the sum in training, convert is content, and the model cannot run.

    The error then names an operator, not the line or the remedy.
    """
    prepared = prepared_qat(Skip())
    x = torch.randn(4, 32)
    prepared(x).sum().backward()
    converted = tq.convert(prepared.eval())
    with pytest.raises(NotImplementedError, match=r"Could not run 'aten::add\.out'") as error:
        converted(x)
    assert "FloatFunctional" not in str(error.value)


def test_an_operation_writes_to_the_grid_of_its_input() -> None:
    """torch 2.13.0: leaky_relu has no observer, and beyond the integer 255 of its input's grid all is cut off."""

    class Model(T.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc, self.dequant = tq.QuantStub(), T.Linear(1, 1), tq.DeQuantStub()

        def forward(self, x: Any) -> Any:
            return self.dequant(T.functional.leaky_relu(self.fc(self.quant(x)), -4.0))

    model = Model().eval()
    model.fc.weight.data.fill_(1.0), model.fc.bias.data.zero_()
    model.qconfig = tq.get_default_qconfig("x86")
    prepared = tq.prepare(model)
    x = torch.linspace(-1, 1, 101)[:, None]
    prepared(x)
    assert prepared(x).max() == 4
    assert tq.convert(prepared)(x).max() < 3.1


def test_a_bias_without_its_scale_is_read_as_another_number() -> None:
    """torch 2.13.0, onednn: an int32 bias passes, and its bits are taken for those of a float32: it vanishes."""
    torch.backends.quantized.engine = "onednn"
    weight = torch.quantize_per_tensor(torch.ones(2, 3), 0.125, 0, torch.qint8)
    x = torch.quantize_per_tensor(torch.ones(1, 3), 0.125, 0, torch.quint8)
    bias = torch.tensor([64, 128])  # 1 and 2, in steps of the accumulator
    outputs = [
        torch.ops.quantized.linear(x, torch.ops.quantized.linear_prepack(weight, b), 0.125, 0).dequantize()
        for b in (bias.to(torch.int32), bias.float() / 64)
    ]
    assert outputs[0].tolist() == [[3, 3]]
    assert outputs[1].tolist() == [[4, 5]]


# ---- what is not silent ----------------------------------------------------------------------------------------------


def test_a_model_without_qconfig_has_a_warning() -> None:
    """torch 2.13.0: `model.config` for `model.qconfig`."""
    model = tq.QuantWrapper(mlp()).eval()
    model.config = tq.get_default_qconfig("x86")
    with pytest.warns(UserWarning, match="None of the submodule got qconfig applied"):
        prepared = tq.prepare(model)
    assert type(tq.convert(prepared).module[0]) is T.Linear


def test_a_learned_scale_that_a_model_has_no_place_for_is_an_error() -> None:
    """torchao 0.18.0."""
    config = QATConfig(
        weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32, is_dynamic=False, range_learning=True)
    )
    model, fresh = (T.Sequential(T.Linear(32, 32)) for _ in range(2))
    for one in (model, fresh):
        quantize_(one, config)
    initialize_fake_quantizers(model, (torch.randn(4, 32),))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*weight_fake_quantizer\.scale"):
        fresh.load_state_dict(model.state_dict())
