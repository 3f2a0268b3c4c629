"""Quantized convolutions: the integer layers and the fake-quantized one, against the formula written out in loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minquant import Tensor, nn
from minquant import functional as F
from minquant.functional.geometry import Geometry
from minquant.quant import (
    DynamicQuantizedConv2d,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QATConv1d,
    QATConv2d,
    QATConvReLU2d,
    QParams,
    QSpec,
    QTensor,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvReLU2d,
    QuantWrapper,
    choose_qparams,
    convert,
    default_dynamic_qconfig,
    fake_quantize,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    quantize,
    quantize_dynamic,
)

F32 = np.float32
UINT8 = QSpec(signed=False)
OUTPUT = QParams(0.05, 100, UINT8)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def grid_of(x: np.ndarray, spec: QSpec) -> QParams:
    return choose_qparams(*spec.granularity.min_max(x), spec)


def formula(x: QTensor, weight: QTensor, bias: np.ndarray, options: dict, relu: bool) -> np.ndarray:
    """``f(f(f(acc)·f(sx·sw)) + bias)``, place by place, in int64; what lies outside the image is real 0."""
    qx = x.int_repr().astype(np.int64) - x.qparams.zero_point
    qw = weight.int_repr().astype(np.int64) - weight.qparams.expand(weight.shape)[1]
    geometry = Geometry.of("conv", weight.shape[2:], **options)
    places = geometry.places(x.shape[2:])
    group_out, group_in = len(weight) // options["groups"], weight.shape[1]
    acc = np.zeros((len(x), len(weight), *places), np.int64)
    for n, m, *place in itertools.product(range(len(x)), range(len(weight)), *map(range, places)):
        for c, *tap in itertools.product(range(group_in), *map(range, weight.shape[2:])):
            at = [p * s + t * d - pad[0] for p, s, t, d, pad in
                  zip(place, geometry.stride, tap, geometry.dilation, geometry.padding, strict=True)]  # fmt: skip
            if all(0 <= i < size for i, size in zip(at, x.shape[2:], strict=True)):
                channel = m // group_out * group_in + c
                acc[n, m, *place] += qx[n, channel, *at] * qw[m, c, *tap]
    per_channel = (-1, *(1,) * len(places))
    scale = np.broadcast_to(x.qparams.scale * weight.qparams.scale, len(weight)).reshape(per_channel)
    y = acc.astype(F32) * scale + bias.reshape(per_channel)
    return np.maximum(y, F32(0)) if relu else y


OPTIONS = st.fixed_dictionaries({
    "stride": st.sampled_from([1, 2, 3]), "padding": st.sampled_from([0, 1, 2]), "dilation": st.sampled_from([1, 2]),
    "groups": st.sampled_from([1, 2, 4]),
})  # fmt: skip
SPECS = st.builds(
    QSpec, st.sampled_from([2, 4, 8]), st.booleans(), st.booleans(), st.sampled_from([PerTensor(), PerChannel()])
)


@given(axes=st.sampled_from([1, 2]), options=OPTIONS, spec=SPECS, relu=st.booleans(), batch=st.sampled_from([0, 1, 2]),
       seed=st.integers(0, 999))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_static_conv_is_its_formula(axes, options, spec, relu, batch, seed):
    w = random(seed, 4, 4 // options["groups"], *(3, 2)[:axes])
    x, bias = random(seed + 1, batch, 4, *(7, 6)[:axes]), random(seed + 2, 4)
    weight, qx = quantize(w, grid_of(w, spec)), quantize(x, choose_qparams(-2, 2.5, UINT8))
    kinds = {(1, False): QuantizedConv1d, (2, False): QuantizedConv2d, (2, True): QuantizedConvReLU2d}
    relu = relu and axes == 2
    layer = kinds[axes, relu](weight, bias, OUTPUT, "reference", **options)
    expected = quantize(formula(qx, weight, bias, options, relu), OUTPUT)
    y = layer(qx)
    assert y.shape == expected.shape and np.array_equal(y.int_repr(), expected.int_repr())


@given(options=OPTIONS, spec=SPECS, seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_dynamic_conv_is_its_formula(options, spec, seed):
    w, x = random(seed, 4, 4 // options["groups"], 3, 2), random(seed + 1, 2, 4, 7, 6)
    weight, bias = quantize(w, grid_of(w, spec)), random(seed + 2, 4)
    qx = quantize(x, grid_of(x, UINT8))
    layer = DynamicQuantizedConv2d(weight, bias, UINT8, "reference", **options)
    assert np.array_equal(layer(x).data, formula(qx, weight, bias, options, False))


@given(options=OPTIONS, relu=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_training_is_the_integer_layer_forward_and_the_float_one_backward(options, relu, seed):
    conv = nn.Conv2d(4, 4, (3, 2), **options)
    layer = (QATConvReLU2d if relu else QATConv2d)(conv, get_default_qat_qconfig().weight(), "reference")
    layer.activation_post_process = get_default_qat_qconfig().activation()
    grid = choose_qparams(-2, 2.5, UINT8)
    x = fake_quantize(Tensor(random(seed, 2, 4, 7, 6), requires_grad=True), grid)
    x.retain_grad()
    y = layer(x)
    qx, weight = quantize(x, grid), quantize(conv.weight, layer.weight_fake_quant.qparams())
    assert np.array_equal(y.data, formula(qx, weight, conv.bias.data, options, relu))
    upstream = random(seed + 1, *y.shape)
    y.backward(Tensor(upstream))
    x2, w2 = Tensor(x.data, requires_grad=True), Tensor(weight.dequantize(), requires_grad=True)
    real = F.conv2d(x2, w2, conv.bias.detach(), **options)
    real.backward(Tensor(upstream * (y.data > 0) if relu else upstream))
    assert np.allclose(x.grad.data, x2.grad.data, rtol=1e-6, atol=1e-6)
    assert np.allclose(conv.weight.grad.data, w2.grad.data, rtol=1e-6, atol=1e-6)
    assert layer.weight is conv.weight and layer.bias is conv.bias


def test_padding_is_real_zero_and_not_integer_zero():
    """The lesson's numbers: z 128, 3×3 ones over [-1, .5; .5, 1]; the integer 0 would be real -1."""
    grid = QParams(1 / 128, 128, UINT8)
    weight = quantize(np.ones((1, 1, 3, 3), F32), QParams(1.0, 0, QSpec(symmetric=True)))
    x = quantize(np.array([[[[-1, 0.5], [0.5, 1]]]], F32), grid)
    y = QuantizedConv2d(weight, None, QParams(1 / 64, 128, UINT8), "reference", padding=1)(x)
    assert y.dequantize().tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


def test_without_a_batch_axis():
    weight = quantize(random(0, 2, 3, 2, 2), QParams(0.02, 0, QSpec(symmetric=True)))
    x = quantize(random(1, 3, 5, 5), choose_qparams(-2, 2, UINT8))
    layer = QuantizedConv2d(weight, None, OUTPUT, "reference", padding="same")
    assert layer(x).shape == (2, 5, 5)
    assert np.array_equal(layer(x).int_repr(), layer(x.reshape(1, 3, 5, 5)).int_repr()[0])
    dynamic = DynamicQuantizedConv2d(weight, None, UINT8, "reference")
    assert np.array_equal(dynamic(random(1, 3, 5, 5)).data, dynamic(random(1, 1, 3, 5, 5)).data[0])
    qat = QATConv1d(nn.Conv1d(3, 2, 2), get_default_qat_qconfig().weight(), "reference")
    qat.activation_post_process = get_default_qat_qconfig().activation()
    assert qat(fake_quantize(Tensor(random(1, 3, 5)), choose_qparams(-2, 2, UINT8))).shape == (2, 4)


# ---- flows -----------------------------------------------------------------------------------------------------------


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


X = random(5, 8, 1, 8, 8)


def test_static_flow():
    model = QuantWrapper(convnet())
    prepared = prepare(model, get_default_qconfig())
    prepared(X)
    integers = convert(prepared)
    assert isinstance(integers.module[0], QuantizedConv2d) and integers.module[0].weight.qparams.scale.shape == (4,)
    assert integers.module[3].groups == 2 and integers.module[3].bias is None
    error = np.abs(integers(X).data - model(X).data)
    assert error.max() <= 0.1 * np.abs(model(X).data).max()


def test_dynamic_flow_quantizes_conv_which_torch_ignores():
    model = convnet()
    dynamic = quantize_dynamic(model)
    assert isinstance(dynamic[0], DynamicQuantizedConv2d) and isinstance(dynamic[3], DynamicQuantizedConv2d)
    assert np.abs(dynamic(X).data - model(X).data).max() <= 0.05 * np.abs(model(X).data).max()
    assert isinstance(quantize_dynamic(model, default_dynamic_qconfig("x86"))[0], DynamicQuantizedConv2d)


# ---- what is refused -------------------------------------------------------------------------------------------------

WEIGHT = quantize(random(0, 4, 2, 3, 3), QParams(0.02, 0, QSpec(symmetric=True)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "QuantizedConv2d: groups=3 must be 1 or more and divide out_channels=4"),
        ({"stride": 0}, "QuantizedConv2d: stride must be 1 or more"),
        ({"padding": "full"}, 'padding must be "valid", "same" or integers'),
    ],
)
def test_shapes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuantizedConv2d(WEIGHT, None, OUTPUT, "reference", **arguments)


def test_grids_that_have_no_arithmetic():
    groups = QSpec(granularity=PerGroup(3))
    with pytest.raises(ValueError, match=r"the weight of a Conv .* takes one scale in all, or one|PerChannel\(0\)"):
        QuantizedConv2d(quantize(random(0, 4, 2, 3, 3), grid_of(random(0, 4, 2, 3, 3), groups)), None, OUTPUT, "x86")
    with pytest.raises(ValueError, match="the input's grid is per tensor, got"):
        DynamicQuantizedConv2d(WEIGHT, None, QSpec(granularity=PerToken()), "reference")
    with pytest.raises(ValueError, match="expected a weight of 3 axes"):
        QuantizedConv1d(WEIGHT, None, OUTPUT, "reference")
    with pytest.raises(ValueError, match=r"expected a bias of shape \(4,\), got \(2,\)"):
        QuantizedConv2d(WEIGHT, random(0, 2), OUTPUT, "reference")


def test_inputs_that_do_not_fit():
    layer = QuantizedConv2d(WEIGHT, None, OUTPUT, "reference")
    layer.path = "features.0"
    grid = choose_qparams(-1, 1, UINT8)
    with pytest.raises(TypeError, match=r"QuantizedConv2d 'features.0': expected values on a quantization grid"):
        layer(random(0, 1, 2, 5, 5))
    with pytest.raises(ValueError, match=r"'features.0': input has shape \(1, 3, 5, 5\), that is 3 channels, expected"):
        layer(quantize(random(0, 1, 3, 5, 5), grid))
    with pytest.raises(ValueError, match="the kernel spans"):
        layer(quantize(random(0, 1, 2, 2, 5), grid))
    dynamic = DynamicQuantizedConv2d(WEIGHT, None, UINT8, "reference")
    with pytest.raises(TypeError, match="expected real values, got a QTensor"):
        dynamic(quantize(random(0, 1, 2, 5, 5), grid))
    with pytest.raises(ValueError, match="holds 1 NaN"):
        dynamic(np.where(np.arange(50).reshape(1, 2, 5, 5) == 7, np.nan, 0).astype(F32))
