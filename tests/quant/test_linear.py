"""The integer layers and the fake-quantized one, against the formula of the reference dialect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import Tensor, nn
from minquant.quant import (
    DeQuantize,
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
    LinearReLU,
    PerChannel,
    PerChannelMinMaxObserver,
    PerGroup,
    PerTensor,
    PerToken,
    QATLinear,
    QParams,
    QSpec,
    QTensor,
    Quantize,
    QuantizedLinear,
    QuantizedLinearReLU,
    WeightFakeQuantize,
    choose_qparams,
    fake_quantize,
    get_default_qat_qconfig,
    quantize,
)

F32 = np.float32
UINT8 = QSpec(signed=False)
OUTPUT = QParams(0.05, 100, UINT8)
WEIGHT = quantize(np.eye(3, dtype=F32), QParams(1 / 127, 0, QSpec(symmetric=True)))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def grid_of(x: np.ndarray, spec: QSpec) -> QParams:
    return choose_qparams(*spec.granularity.min_max(x), spec)


def formula(x: QTensor, weight: QTensor, bias: np.ndarray | None, relu: bool) -> np.ndarray:
    """y = Σ_g f(f(acc_g)·f(sx·sw_g)) + bias, written out channel by channel and group by group in int64."""
    qx, sx = x.int_repr().astype(np.int64) - x.qparams.expand(x.shape)[1], x.qparams.scale
    sx = sx[..., None] if sx.ndim else sx
    scale, zero_point = (np.broadcast_to(a, weight.shape) for a in weight.qparams.expand(weight.shape))
    qw = weight.int_repr().astype(np.int64) - zero_point
    granularity = weight.qparams.spec.granularity
    size = granularity.group_size if isinstance(granularity, PerGroup) else weight.shape[1]
    y = np.zeros((*x.shape[:-1], len(weight)), F32)
    for k in range(0, weight.shape[1], size):
        acc = qx[..., k : k + size] @ qw[:, k : k + size].T
        y = (y + acc.astype(F32) * (sx * scale[:, k])).astype(F32)
    y = y if bias is None else y + bias
    return np.maximum(y, F32(0)) if relu else y


WEIGHT_SPECS = st.builds(
    QSpec, st.sampled_from([2, 3, 4, 5, 8]), st.booleans(), st.booleans(),
    st.sampled_from([PerTensor(), PerChannel(), PerGroup(4), PerGroup(8)]),
)  # fmt: skip


@given(spec=WEIGHT_SPECS, act_bits=st.sampled_from([2, 4, 8]), signed=st.booleans(), relu=st.booleans(),
       bias=st.booleans(), rows=st.sampled_from([(), (1,), (5,), (0,), (2, 3)]), seed=st.integers(0, 999))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_static_linear_is_its_formula(spec, act_bits, signed, relu, bias, rows, seed):
    w, b, x = random(seed, 5, 16), random(seed + 1, 5) if bias else None, random(seed + 2, *rows, 16)
    weight, grid = quantize(w, grid_of(w, spec)), choose_qparams(-2, 2.5, QSpec(act_bits, signed))
    qx = quantize(x, grid)
    expected = quantize(formula(qx, weight, b, relu), OUTPUT)
    layer = (QuantizedLinearReLU if relu else QuantizedLinear)(weight, b, OUTPUT, "reference")
    y = layer(qx)
    assert y.shape == (*rows, 5) and y.qparams is OUTPUT
    assert np.array_equal(y.int_repr(), expected.int_repr())


@given(spec=WEIGHT_SPECS, token=st.booleans(), signed=st.booleans(), relu=st.booleans(), bias=st.booleans(),
       rows=st.sampled_from([(), (1,), (5,), (0,), (2, 3), (2, 0)]), seed=st.integers(0, 999))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_dynamic_linear_is_its_formula(spec, token, signed, relu, bias, rows, seed):
    w, b, x = random(seed, 5, 16), random(seed + 1, 5) if bias else None, random(seed + 2, *rows, 16)
    input_spec = QSpec(8, signed, False, PerToken() if token else PerTensor())
    weight = quantize(w, grid_of(w, spec))
    layer = (DynamicQuantizedLinearReLU if relu else DynamicQuantizedLinear)(weight, b, input_spec, "reference")
    y = layer(x)
    assert isinstance(y, Tensor) and y.shape == (*rows, 5) and y.dtype == F32
    if x.size:
        assert np.array_equal(y.data, formula(quantize(x, grid_of(x, input_spec)), weight, b, relu))


def test_the_error_of_a_whole_layer():
    """|y - ŷ| ≤ Σ|x|·sw/2 + Σ|ŵ|·sx/2, plus float32 rounding of K products."""
    w, x = random(0, 6, 64), random(1, 20, 64)
    spec = QSpec(symmetric=True, granularity=PerChannel())
    weight = quantize(w, grid_of(w, spec))
    y = DynamicQuantizedLinear(weight, None, UINT8, "reference")(x).data
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    bound = np.abs(x).sum(1)[:, None] * weight.qparams.scale / 2
    bound = bound + np.abs(weight.dequantize()).sum(1) * grid_of(x, UINT8).scale / 2
    error = np.abs(y - exact)
    assert (error <= bound * (1 + 2.0**-14)).all() and error.max() > bound.max() / 1000


def test_weight_and_bias_kinds():
    assert QuantizedLinear(WEIGHT, None, OUTPUT, "reference").bias is None
    layer = QuantizedLinear(WEIGHT, np.ones(3, F32), OUTPUT, "x86")
    assert repr(layer) == (
        "QuantizedLinear(in_features=3, out_features=3, bias=True, weight=int8 symmetric per tensor, backend='x86', "
        "output=QParams(scale=0.05, zero_point=100, uint8 affine per tensor))"
    )


# ---- in training ---------------------------------------------------------------------------------------------------


def qat(linear: nn.Linear, backend: str = "reference") -> QATLinear:
    return QATLinear(linear, get_default_qat_qconfig(backend).weight(), backend)


def on_grid(x: np.ndarray) -> Tensor:
    tensor = Tensor(x, requires_grad=True)
    return fake_quantize(tensor, grid_of(x, UINT8), *PerTensor().min_max(x))


def test_forward_is_the_integer_layer_and_backward_the_float_one():
    linear, x = nn.Linear(16, 5), random(3, 7, 16)
    layer, xq = qat(linear), on_grid(x)
    y = layer(xq)
    spec = QSpec(symmetric=True, granularity=PerChannel())
    weight = quantize(linear.weight, grid_of(linear.weight.data, spec))
    assert np.array_equal(y.data, formula(quantize(x, xq.qparams), weight, linear.bias.data, False))
    grad = random(4, 7, 5)
    y.backward(Tensor(grad))
    assert np.allclose(linear.weight.grad.data, grad.T @ xq.data, rtol=1e-6, atol=1e-6)
    assert np.allclose(linear.bias.grad.data, grad.sum(axis=0), rtol=1e-6, atol=1e-6)
    assert layer.weight is linear.weight and layer.bias is linear.bias


def test_it_simulates_in_float_where_rounding_is_switched_off():
    linear, x = nn.Linear(16, 5), random(3, 7, 16)
    layer = qat(linear)
    layer.activation_post_process = WeightFakeQuantize()
    layer.activation_post_process.disable_fake_quant()
    layer.weight_fake_quant.disable_fake_quant()
    assert np.array_equal(layer(Tensor(x)).data, linear(x).data)


# ---- bad input -----------------------------------------------------------------------------------------------------

STATIC = QuantizedLinear(WEIGHT, None, OUTPUT, "reference")
DYNAMIC = DynamicQuantizedLinear(WEIGHT, None, UINT8, "reference")


@pytest.mark.parametrize("x", [np.ones((2, 3), F32), Tensor(np.ones((2, 3), F32))])
def test_real_values_into_an_integer_layer(x):
    with pytest.raises(
        TypeError, match=r"QuantizedLinear: expected values on a quantization grid, got plain real"
    ) as error:
        STATIC(x)
    assert "there is no QuantStub between" in str(error.value) and "QuantWrapper(model)" in str(error.value)


def test_real_values_into_a_layer_in_training():
    layer = qat(nn.Linear(3, 2))
    layer.activation_post_process = WeightFakeQuantize()
    layer.path = "fc1"
    with pytest.raises(ValueError, match=r"QATLinear 'fc1': .*there is no QuantStub"):
        layer(Tensor(np.ones((2, 3), F32)))


def test_integers_into_a_dynamic_layer():
    with pytest.raises(
        TypeError, match="DynamicQuantizedLinear: expected real values, got a QTensor; put a DeQuantStub"
    ):
        DYNAMIC(quantize(np.ones((2, 3), F32), OUTPUT))


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), ()])
def test_another_number_of_features(shape):
    x = np.ones(shape, F32)
    for layer, value in ((STATIC, quantize(x, OUTPUT)), (DYNAMIC, x)):
        with pytest.raises(ValueError, match=r"Linear: the last axis must have 3 features, got shape \("):
            layer(value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_grid_for_nan_and_infinity_at_run_time(bad):
    layer = DynamicQuantizedLinear(WEIGHT, None, UINT8, "x86")
    layer.path = "encoder.fc1"
    x = np.array([[1, bad, 2], [0, 0, bad]], F32)
    counts = "2 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 2 infinite"
    with pytest.raises(
        ValueError, match=f"the input of DynamicQuantizedLinear 'encoder.fc1' holds {counts} values out of 6"
    ):
        layer(x)


def test_integers_into_the_stub():
    q = quantize(np.ones((2, 3), F32), OUTPUT)
    with pytest.raises(TypeError, match="got a QTensor: is there a QuantStub too many?"):
        Quantize(OUTPUT, "reference")(q)
    with pytest.raises(TypeError, match="expects a quantized tensor, got real values.*Put a QuantStub where"):
        DeQuantize()(Tensor(np.ones(3, F32)))


def test_float_inputs_must_be_float():
    with pytest.raises(TypeError, match="DynamicQuantizedLinear: expected floating point values.*got int64"):
        DYNAMIC(np.ones((2, 3), int))


@pytest.mark.parametrize("backend", ["fbgemm", "x86", "qnnpack", "onednn"])
def test_groups_are_the_reference_dialects(backend):
    w = random(0, 3, 4)
    weight = quantize(w, grid_of(w, QSpec(granularity=PerGroup(2))))
    with pytest.raises(ValueError, match=r'has no Linear for a weight int8 affine per group of 2.*backend="reference"'):
        QuantizedLinear(weight, None, OUTPUT, backend)


def test_tokens_are_no_weight():
    w = random(0, 3, 4)
    weight = quantize(w, grid_of(w, QSpec(granularity=PerToken())))
    with pytest.raises(ValueError, match=r"the weight of a Linear .*got PerToken\(\)"):
        QuantizedLinear(weight, None, OUTPUT, "reference")


def test_a_weights_channels_are_its_rows():
    w = random(0, 4, 4)
    weight = quantize(w, grid_of(w, QSpec(granularity=PerChannel(1))))
    with pytest.raises(ValueError, match=r"one for each output channel, PerChannel\(0\).*got PerChannel\(axis=1\)"):
        QuantizedLinear(weight, None, OUTPUT, "reference")


def test_training_refuses_what_cannot_be_converted():
    columns = WeightFakeQuantize(
        observer=PerChannelMinMaxObserver, ch_axis=1, dtype="qint8", qscheme="per_channel_symmetric"
    )
    with pytest.raises(ValueError, match=r"the weight of a Linear .*got PerChannel\(axis=1\)"):
        QATLinear(nn.Linear(3, 3), columns, "reference")
    layer, x = qat(nn.Linear(3, 3)), random(0, 3, 3)
    with pytest.raises(
        ValueError, match="QATLinear: the input needs one scale for all values, got uint8 affine per token"
    ):
        layer(fake_quantize(Tensor(x), grid_of(x, QSpec(signed=False, granularity=PerToken()))))


@pytest.mark.parametrize("backend", ["reference", "x86", "qnnpack", "onednn"])
def test_nan_never_becomes_an_integer(backend):
    with pytest.raises(ValueError, match="1 of 3 values are NaN, for which a grid has no integer"):
        Quantize(OUTPUT, backend)(np.array([1, np.nan, np.inf], F32))


def test_sixteen_bits_are_for_fake_quantize():
    w = random(0, 3, 3)
    wide = quantize(w, grid_of(w, QSpec(16)))
    message = "integer layers take 2 to 8 bits, got .*int16 affine per tensor for the {}; 16 bits are for fake_quantize"
    with pytest.raises(ValueError, match=message.format("weight")):
        QuantizedLinear(wide, None, OUTPUT, "reference")
    with pytest.raises(ValueError, match=message.format("output")):
        QuantizedLinear(WEIGHT, None, wide.qparams, "reference")
    with pytest.raises(ValueError, match=message.format("input")):
        DynamicQuantizedLinear(WEIGHT, None, QSpec(16), "reference")
    with pytest.raises(ValueError, match=message.format("input")):
        STATIC(wide)


def test_other_grids_that_do_not_fit():
    per_row = QParams(np.ones(2), 0, QSpec(granularity=PerChannel()))
    with pytest.raises(ValueError, match="the output needs one scale for all values, got int8 affine per channel"):
        QuantizedLinear(WEIGHT, None, per_row, "reference")
    with pytest.raises(ValueError, match="the input's grid is per tensor or per token, got int8 affine per channel"):
        DynamicQuantizedLinear(WEIGHT, None, QSpec(granularity=PerChannel()), "reference")
    with pytest.raises(ValueError, match="the input needs one scale for all values, got int8 affine per channel"):
        STATIC(QTensor(np.ones((2, 3), int), per_row))
    with pytest.raises(ValueError, match=r"expected a bias of shape \(3,\), got \(2,\)"):
        QuantizedLinear(WEIGHT, np.ones(2, F32), OUTPUT, "reference")
    with pytest.raises(ValueError, match="expected one of reference, fbgemm, .*; got 'fbgem'"):
        QuantizedLinear(WEIGHT, None, OUTPUT, "fbgem")


def test_only_a_linear_and_a_relu_are_fused():
    assert LinearReLU(nn.Linear(2, 2), nn.ReLU()).layer.in_features == 2
    with pytest.raises(TypeError, match="LinearReLU: expected a Linear and a ReLU, got ReLU and Linear"):
        LinearReLU(nn.ReLU(), nn.Linear(2, 2))
