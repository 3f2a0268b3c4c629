"""What minquant says where torch and torchao say nothing; their silence: test_silent_failures_torch.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn, optim
from minquant import functional as F
from minquant.quant import (
    LearnableFakeQuantize,
    MovingAverageMinMaxObserver,
    QATLinear,
    QConfig,
    QParams,
    QSpec,
    QuantizedLinear,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize,
    quantize_dynamic,
    report,
)

F32 = np.float32
X = np.random.default_rng(0).standard_normal((16, 32), dtype=F32)


def mlp(bias: bool = True) -> nn.Sequential:
    manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32, bias), nn.ReLU(), nn.Linear(32, 32, bias))


def prepared_qat(**bits: int) -> nn.Module:
    return prepare_qat(QuantWrapper(mlp()).train(), get_default_qat_qconfig(**bits))


def notes(model: nn.Module) -> dict[str, str]:
    return {row["layer"]: row["note"] for row in report(model).rows}


# ---- layers that stay in float ---------------------------------------------------------------------------------------


def test_a_layer_type_without_integer_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="quantize_dynamic: the model has no layer that can be quantized.*Linear"):
        quantize_dynamic(nn.Sequential(nn.GELU(), nn.LayerNorm(4)))
    with pytest.raises(ValueError, match="quantize_dynamic: '1' holds no layer that can be quantized"):
        quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), {"1": default_dynamic_qconfig()})


def test_a_layer_type_without_integer_form_beside_others_has_its_reason_in_the_report() -> None:
    found = notes(quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))))
    assert found["1"].startswith("stays in float")


def test_a_convolution_is_quantized_dynamically_which_torch_ignores() -> None:
    (row,) = report(quantize_dynamic(nn.Sequential(nn.Conv2d(3, 3, 1)))).rows
    assert row["kind"] == "DynamicQuantizedConv2d" and row["weight"].startswith("int8")


def test_a_layer_left_out_by_a_filter_is_an_error_or_in_the_report() -> None:
    with pytest.raises(ValueError, match="quantize_dynamic: no module is named 'fc1'; there are 0, 1, 2"):
        quantize_dynamic(mlp(), {"fc1": default_dynamic_qconfig()})
    with pytest.raises(ValueError, match=r"leaves every layer in float \(0, 2\); name one to quantize"):
        quantize_dynamic(mlp(), {"": None})
    assert notes(quantize_dynamic(mlp(), {"0": default_dynamic_qconfig()}))["2"] == (
        "stays in float: not named in the qconfig"
    )


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_decides_nothing(bias: bool) -> None:
    """torchao's Int4WeightOnlyQATQuantizer skips the layers that have one."""
    prepared = prepare_qat(QuantWrapper(mlp(bias)).train(), get_default_qat_qconfig(weight_bits=4))
    assert [type(layer) for layer in prepared.module] == [QATLinear, nn.ReLU, QATLinear]


def test_a_functional_layer_is_in_the_report() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(3, 3), nn.Parameter(np.ones((3, 3), F32))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x), self.weight)

    rows = {row["layer"]: row for row in report(quantize_dynamic(Model())).rows}
    assert rows["(model)"]["weight"] == "float32" and rows["(model)"]["note"].startswith("stays in float")


# ---- the model that was trained is the model that runs ---------------------------------------------------------------


def test_no_observer_updates_in_eval() -> None:
    prepared = prepared_qat()
    prepared(X)
    prepared.eval()
    before = prepared(X).data
    prepared(100 * X)
    np.testing.assert_array_equal(prepared(X).data, before)
    np.testing.assert_array_equal(convert(prepared)(X).data, before)


def test_converting_twice_is_refused() -> None:
    prepared = prepared_qat()
    prepared(X)
    converted = convert(prepared)
    with pytest.raises(ValueError, match="convert: this model is converted already"):
        convert(converted)
    with pytest.raises(ValueError, match="convert: no layer was prepared; call prepare and calibrate"):
        convert(mlp())
    for again in (prepare, prepare_qat):
        for model in (prepared, converted):
            with pytest.raises(ValueError, match=f"{again.__name__}: this model is prepared or quantized already"):
                again(model, get_default_qconfig())


def test_preparing_int4_and_converting_int2_has_no_way_to_be_said() -> None:
    """prepare_qat decides the grid and convert takes none; another flow refuses what is prepared already."""
    prepared = prepared_qat(weight_bits=4)
    prepared(X)
    int2: Any = get_default_qconfig(weight_bits=2)
    with pytest.raises(TypeError, match="convert"):
        convert(prepared, int2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="quantize_dynamic: this model is prepared or quantized already"):
        quantize_dynamic(prepared, default_dynamic_qconfig(weight_bits=2))
    assert {layer.weight.qparams.spec.bits for layer in convert(prepared).module if hasattr(layer, "weight")} == {4}


LEARNED = QConfig(
    activation=LearnableFakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
    weight=LearnableFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=-8, quant_max=7, dtype="qint8", qscheme="per_tensor_symmetric"
    ),
)


def test_a_learned_scale_is_in_the_checkpoint_and_missed_where_it_is_not() -> None:
    def prepared() -> nn.Module:
        return prepare_qat(QuantWrapper(mlp()).train(), LEARNED)

    model = prepared()
    model(X)
    learners = [m for m in model.modules() if isinstance(m, LearnableFakeQuantize)]
    for learner in learners:
        learner.enable_param_learning()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) ** 2).mean().backward()
        optimizer.step()
    state, loaded = model.state_dict(), prepared()
    loaded.load_state_dict(state)
    np.testing.assert_array_equal(loaded.eval()(X).data, model.eval()(X).data)
    for name in state:
        if name.endswith(("scale", "zero_point", "min_val", "max_val")):
            with pytest.raises(ValueError, match=f"missing: {name}"):
                loaded.load_state_dict({n: value for n, value in state.items() if n != name})


# ---- operations ------------------------------------------------------------------------------------------------------


class Between(nn.Module):
    """An operation of `function` between two layers."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        manual_seed(0)
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.first, self.last, self.function = nn.Linear(32, 32), nn.Linear(32, 32), function

    def forward(self, x: Any) -> Any:
        return self.dequant(self.last(self.function(self.first(self.quant(x)))))


OPERATIONS = {
    "x + x": (lambda x: x + x, "arithmetic on a quantized tensor is refused.*FloatFunctional"),
    "2 * x": (lambda x: 2 * x, "arithmetic on a quantized tensor is refused"),
    "sigmoid": (F.sigmoid, "sigmoid has no form on integers.*DeQuantStub"),
    "gelu": (F.gelu, "gelu has no form on integers.*DeQuantStub"),
    "softmax": (lambda x: F.softmax(x, -1), "softmax has no form on integers.*DeQuantStub"),
    "cat": (lambda x: F.cat([x, x], 0), "cat has no form on integers.*DeQuantStub"),
}
each_operation = pytest.mark.parametrize(("function", "words"), OPERATIONS.values(), ids=OPERATIONS)


@each_operation
def test_an_uncovered_operation_is_refused_in_the_first_step_of_training(function: Any, words: str) -> None:
    prepared = prepare_qat(Between(function).train(), get_default_qat_qconfig())
    with pytest.raises(ValueError, match=r"QATLinear 'last': expected values on a quantization grid.*left the grid"):
        prepared(X)


@each_operation
def test_an_uncovered_operation_is_refused_on_integers(function: Any, words: str) -> None:
    prepared = prepare(Between(function), get_default_qconfig())
    prepared(X)
    with pytest.raises(TypeError, match=words):
        convert(prepared)(X)


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_a_bias_without_its_scale_is_refused(dtype: type) -> None:
    weight = quantize(np.ones((2, 3), F32), QParams(F32(0.125), np.int32(0), QSpec(symmetric=True)))
    output = QParams(F32(0.125), np.int32(0), QSpec(signed=False))
    with pytest.raises(TypeError, match=f"QuantizedLinear: expected a float32 bias, got {np.dtype(dtype)}.*its scale"):
        QuantizedLinear(weight, np.array([64, 128], dtype), output, "reference")
