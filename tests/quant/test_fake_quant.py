"""Fake quantizers: the range they watch, the grid they choose, the gradient they let pass, and their switches."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, nn
from minquant.quant import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannel,
    PerChannelMinMaxObserver,
    QSpec,
    WeightFakeQuantize,
    choose_qparams,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    fake_quantize,
    get_default_qat_qconfig,
)
from minquant.quant.dialects.fused_fake_quant import FusedMovingAvgObsFakeQuantize

X = np.array([[-1.0, 0.25, 0.5], [0.1, 1.5, 3.0]], np.float32)
CHANNEL = {"dtype": "qint8", "qscheme": "per_channel_symmetric"}


def minmax() -> FakeQuantize:
    return FakeQuantize(observer=MinMaxObserver)


def values(fake_quant: FakeQuantize, x: np.ndarray) -> np.ndarray:
    return fake_quant(Tensor(x)).data


def test_first_watch_then_round():
    fake_quant = minmax()
    out = fake_quant(Tensor(X))
    qparams = choose_qparams(-1, 3, QSpec(signed=False))
    assert np.array_equal(out.data, fake_quantize(X, qparams))
    assert out.qparams.scale == qparams.scale and out.qparams.zero_point == qparams.zero_point
    scale, zero_point = fake_quant.calculate_qparams()
    assert scale == qparams.scale and zero_point == qparams.zero_point


def test_the_range_is_the_widest_seen():
    fake_quant = minmax()
    values(fake_quant, X)
    values(fake_quant, X / 2)
    assert fake_quant.qparams().scale == np.float32(4) / np.float32(255)
    values(fake_quant, X * 2)
    assert fake_quant.qparams().scale == np.float32(8) / np.float32(255)


def test_moving_average_is_the_default_as_in_torch():
    assert isinstance(FakeQuantize().activation_post_process, MovingAverageMinMaxObserver)


def test_the_range_stands_still_in_eval():
    fake_quant = minmax()
    values(fake_quant, X)
    fake_quant.eval()
    assert values(fake_quant, X * 9).max() == fake_quantize(X * 9, choose_qparams(-1, 3, QSpec(signed=False))).max()
    assert fake_quant.qparams().scale == np.float32(4) / np.float32(255)
    fake_quant.train()
    values(fake_quant, X * 9)
    assert fake_quant.qparams().scale == np.float32(36) / np.float32(255)


def test_nothing_seen():
    for fake_quant in (minmax().eval(), FakeQuantize().eval()):
        with pytest.raises(ValueError, match="MinMaxObserver: saw no data; run the model on calibration data first"):
            fake_quant(Tensor(X))
        with pytest.raises(ValueError, match="saw no data"):
            fake_quant.qparams()


def test_with_args_makes_factories():
    factory = FakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=15)
    one, other = factory(), factory.with_args(dtype="quint8")()
    assert one is not other and one.activation_post_process.spec == QSpec(4, signed=False)


# ---- gradients ---------------------------------------------------------------------------------------------------


def gradient(fake_quant: FakeQuantize, x: np.ndarray) -> list:
    tensor = Tensor(np.asarray(x, np.float32), requires_grad=True)
    fake_quant(tensor).sum().backward()
    return tensor.grad.data.tolist()


def test_the_element_that_set_the_range_is_never_frozen():
    assert gradient(minmax(), X) == [[1] * 3] * 2
    weight = WeightFakeQuantize(observer=PerChannelMinMaxObserver, **CHANNEL)
    random = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    assert np.all(gradient(weight, random))
    fused = FusedMovingAvgObsFakeQuantize(
        observer=MovingAverageMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype="qint8",
        qscheme="per_tensor_symmetric",
    )
    negative_end = np.array([-1.0, 1.0], np.float32)  # torch's: one more step below zero than above
    assert gradient(fused, negative_end) == [1, 1]


def test_outside_the_range_nothing_passes():
    fake_quant = minmax()
    values(fake_quant, X)
    fake_quant.eval()
    above, below = np.nextafter(np.float32(3), np.float32(4)), np.nextafter(np.float32(-1), np.float32(-2))
    assert gradient(fake_quant, [-1, 3, above, below, 0, 100]) == [1, 1, 0, 0, 1, 0]


def test_switched_off_everything_passes():
    fake_quant = minmax()
    values(fake_quant, X)
    fake_quant.eval()
    fake_quant.disable_fake_quant()
    assert gradient(fake_quant, [-50, 50]) == [1, 1]


# ---- weights -----------------------------------------------------------------------------------------------------


def test_a_weights_range_is_its_current_one():
    fake_quant = WeightFakeQuantize(observer=PerChannelMinMaxObserver, **CHANNEL)
    spec = QSpec(symmetric=True, granularity=PerChannel())
    for factor in (4, 1, 0.25):
        weight = X * np.float32(factor)
        grid = choose_qparams(weight.min(axis=1), weight.max(axis=1), spec)
        assert np.array_equal(values(fake_quant, weight), fake_quantize(weight, grid))
    fake_quant.eval()  # in eval too, so that a weight loaded later finds its grid
    assert np.array_equal(
        fake_quant.weight_qparams(Tensor(X * 8)).scale, choose_qparams([-8, 0.8], [4, 24], spec).scale
    )


def test_a_weights_range_can_be_frozen():
    fake_quant = WeightFakeQuantize(observer=PerChannelMinMaxObserver, **CHANNEL)
    values(fake_quant, X)
    frozen = fake_quant.qparams().scale.copy()
    fake_quant.disable_observer()
    values(fake_quant, X * 4)
    assert np.array_equal(fake_quant.qparams().scale, frozen)
    assert np.array_equal(fake_quant.weight_qparams(Tensor(X * 4)).scale, frozen)


# ---- switches ----------------------------------------------------------------------------------------------------


def test_disable_observer_keeps_the_range():
    fake_quant = minmax()
    values(fake_quant, X)
    fake_quant.disable_observer()
    rounded = values(fake_quant, X * 5)
    assert rounded.max() <= 3.01 and fake_quant.qparams().scale == np.float32(4) / np.float32(255)
    fake_quant.enable_observer()
    assert values(fake_quant, X * 5).max() > 14


def test_disable_fake_quant_still_watches():
    fake_quant = minmax()
    fake_quant.disable_fake_quant()
    x = Tensor(X * 5)
    assert fake_quant(x) is x and x.qparams is None
    assert fake_quant.qparams().scale == np.float32(20) / np.float32(255)
    fake_quant.enable_fake_quant()
    assert fake_quant(x).qparams is not None


def test_switches_for_whole_models():
    model = nn.Sequential(minmax(), nn.ReLU(), nn.Sequential(FakeQuantize()))
    state = [(False, True), (True, True), (True, False), (True, True)]
    for switch, expected in zip(
        [disable_observer, enable_observer, disable_fake_quant, enable_fake_quant], state, strict=True
    ):
        model.apply(switch)
        for fake_quant in (model[0], model[2][0]):
            assert (fake_quant.observer_enabled, fake_quant.fake_quant_enabled) == expected
    assert "observer_enabled=True, fake_quant_enabled=True" in repr(model[0])


# ---- torch's fused one ---------------------------------------------------------------------------------------------


def test_the_fused_one_goes_on_observing_in_eval():
    fused = get_default_qat_qconfig("onednn").activation().eval()
    values(fused, X)
    before = fused.activation_post_process.max_val.data.copy()
    values(fused, X * 2)
    assert fused.activation_post_process.max_val.data == before + np.float32(0.01) * (np.float32(6) - before)


def test_the_fused_ones_grid_is_not_the_observers():
    fused = get_default_qat_qconfig("qnnpack").weight()
    rounded = fused(Tensor(np.array([-1.0, 0.5], np.float32)))
    assert rounded.qparams.scale == np.float32(1 / 128)  # (h + 1) steps below zero
    assert fused.calculate_qparams()[0] == np.float32(1) / np.float32(127.5)


def test_the_fused_ones_gradient_stops_at_the_grids_end():
    fused = get_default_qat_qconfig("onednn").activation()
    values(fused, np.array([0, 255], np.float32))
    fused.disable_observer()
    assert gradient(fused, [-0.5, -0.6, 255.4, 255.6, 7]) == [1, 0, 1, 0, 1]
