"""Initial weights on a grid: fake-quantizing them there changes no bit; an observer's grid leaves none unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn
from minquant.quant import (
    LearnableFakeQuantize,
    PerChannel,
    PerChannelMinMaxObserver,
    QSpec,
    fake_quantize,
    get_default_qat_qconfig,
    quantize,
)

LAYERS = {
    "Linear": lambda: nn.Linear(40, 7),
    "Conv1d": lambda: nn.Conv1d(4, 6, 3),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "Embedding": lambda: nn.Embedding(9, 12, padding_idx=3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(9, 12),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fake_quantizing_on_the_grid_changes_no_bit(kind, bits):
    manual_seed(bits)
    layer = LAYERS[kind]()
    drawn, bias = layer.weight.data.copy(), getattr(layer, "bias", None)
    bias = None if bias is None else bias.data.copy()
    grid = nn.init.quant_aware_(layer, bits)
    weight = layer.weight.data
    assert grid.spec == QSpec(bits, symmetric=True, granularity=PerChannel(0)) and len(grid.scale) == len(drawn)
    assert fake_quantize(weight, grid).tobytes() == weight.tobytes() == fake_quantize(drawn, grid).tobytes()
    assert np.array_equal(quantize(drawn, grid).int_repr(), quantize(weight, grid).int_repr())
    assert layer.weight.requires_grad and layer.weight.grad is None
    if bias is not None:
        assert np.array_equal(layer.bias.data, bias)
    assert kind != "Embedding" or not weight[3].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_learned_scale_may_start_from_the_grid(bits):
    layer = nn.Linear(40, 7)
    grid = nn.init.quant_aware_(layer, bits)
    kind = {"dtype": "qint8", "qscheme": "per_channel_symmetric", "channel_len": len(grid.scale)}
    fake_quantizer = LearnableFakeQuantize(PerChannelMinMaxObserver, grid.spec.qmin, grid.spec.qmax, **kind)
    fake_quantizer.scale.data = grid.scale.copy()
    fake_quantizer.enable_param_learning()
    assert fake_quantizer(layer.weight).data.tobytes() == layer.weight.data.tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_observed_grid_leaves_no_channel_unchanged(bits):
    layer = nn.Linear(40, 50)
    nn.init.quant_aware_(layer, bits)
    observed = get_default_qat_qconfig(weight_bits=bits).weight()(layer.weight).data
    assert (observed != layer.weight.data).any(axis=1).all()


def test_what_is_refused():
    for layer in (nn.LayerNorm((2, 3)), nn.ReLU(), Tensor(np.ones((2, 2), np.float32))):
        with pytest.raises(TypeError, match=f"Linear, Conv1d.*got {type(layer).__name__}"):
            nn.init.quant_aware_(layer, 4)
    for bits in (1, 9, 16, 4.5):
        with pytest.raises(ValueError, match="bits must be 2 to 8"):
            nn.init.quant_aware_(nn.Linear(2, 2), bits)
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        nn.init.quant_aware_(layer, 4)
