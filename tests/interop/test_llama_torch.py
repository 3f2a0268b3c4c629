"""Language models in torch and with torchao's tensors: float, on integers, and in training."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from minquant import Tensor, manual_seed, nn
from minquant.interop import from_torch, to_torch, to_torchao
from minquant.lm import Llama, LlamaConfig
from minquant.quant import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerChannel,
    PerGroup,
    PerTensor,
    QATConfig,
    quantize_,
)
from tests.interop.in_training import gamma

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 40, (3, 9))
TABLE = IntxWeightOnlyConfig("int4", PerGroup(8))
CONFIGS = {
    "int4 groups": Int8DynamicActivationIntxWeightConfig("int4", PerGroup(16)),
    "int3 rows, affine": Int8DynamicActivationIntxWeightConfig("int3", PerChannel(0), "asymmetric"),
    "int8, nothing clipped": Int8DynamicActivationIntxWeightConfig("int8", PerGroup(8), "symmetric_no_clipping_error"),
    "int2 weights": IntxWeightOnlyConfig("int2", PerGroup(16)),
    "int8 weights": Int8WeightOnlyConfig(),
    "tinygemm": Int4WeightOnlyConfig(16),
    "int8 by int8": Int8DynamicActivationInt8WeightConfig(),
    "int8 by int8, one scale": Int8DynamicActivationInt8WeightConfig((PerTensor(), PerTensor())),
    "static": Int8StaticActivationInt8WeightConfig(0.02),
}
IN_FLOAT = {"int2 weights", "int8 weights", "tinygemm"}
"""Whose products are float32's in torch as in minquant."""


def llama(tied: bool = True) -> Llama:
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    manual_seed(1)
    return Llama(config)


def is_table(module, path):
    return isinstance(module, nn.Embedding)


def converted(name: str) -> Llama:
    model = llama()
    quantize_(model, CONFIGS[name])
    quantize_(model, TABLE, is_table)
    return model


def linears(model) -> dict:
    return {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "weight") and len(module.weight.shape) == 2 and not path.endswith("embed_tokens")
    }


def test_float_logits_and_the_way_back():
    for tied in (True, False):
        model = llama(tied)
        theirs = to_torch(model)
        assert list(theirs.state_dict()) == list(model.state_dict())
        wanted = model(TOKENS).data
        np.testing.assert_allclose(theirs(torch.tensor(TOKENS)).detach().numpy(), wanted, rtol=0, atol=1e-5)
        assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tied
        back = from_torch(theirs)
        assert type(back) is Llama and back.config == model.config
        np.testing.assert_array_equal(back(TOKENS).data, wanted)


def test_gradients_are_minquants():
    model = llama()
    theirs = to_torch(model)
    nn.CrossEntropyLoss()(model(TOKENS).reshape(-1, 40), Tensor(TOKENS.reshape(-1))).backward()
    given = torch.tensor(TOKENS)
    torch.nn.functional.cross_entropy(theirs(given).reshape(-1, 40), given.reshape(-1)).backward()
    mine = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        near = 1e-5 * max(1, np.abs(mine[name].grad.data).max())
        np.testing.assert_allclose(parameter.grad.numpy(), mine[name].grad.data, rtol=0, atol=near, err_msg=name)


def test_what_torch_lacks_is_refused():
    theirs = to_torch(llama())
    with pytest.raises(TypeError, match="in torch there is no cache"):
        theirs(torch.tensor(TOKENS), cache=1)
    with pytest.raises(ValueError, match=r"max_position_embeddings=16, got shape \(1, 17\)"):
        theirs(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("name", CONFIGS)
def test_on_integers(name):
    """Layer by layer on the same input: float32 products within their bound, all others to the last bit."""
    model = converted(name)
    theirs, checked = to_torch(model), 0

    def check(layer, inputs, output):
        nonlocal checked
        own, x = layer.own, inputs[0].detach().numpy()
        y, found = own(Tensor(x)).data, output.detach().numpy()
        if name in IN_FLOAT:
            weight = own.weight.dequantize()
            np.testing.assert_array_equal(layer.real_weight().numpy(), weight)
            assert (np.abs(y - found) <= 2 * gamma(x.shape[-1] + 1) * (np.abs(x) @ np.abs(weight).T)).all()
        else:
            np.testing.assert_array_equal(found, y)
        checked += 1

    for path, layer in linears(theirs).items():
        layer.own = model.get_submodule(path)
        layer.register_forward_hook(check)
    rows = theirs.model.embed_tokens(torch.tensor(TOKENS))
    np.testing.assert_array_equal(rows.numpy(), model.model.embed_tokens(TOKENS).data)
    assert torch.isfinite(theirs(torch.tensor(TOKENS))).all() and checked == len(linears(model)) == 8


@pytest.mark.parametrize("name", CONFIGS)
def test_with_torchaos_tensors(name):
    """Integers, scales and zero points equal; outputs of each layer as promised."""
    model = converted(name)
    if name == "tinygemm":
        with pytest.raises(
            ValueError, match=r"'model.layers.0.self_attn.q_proj'.*bfloat16 on a GPU only(?s:.*)lm_head"
        ):
            to_torchao(model)
        return
    theirs, exact = to_torchao(model), name.startswith(("int8 by", "static"))
    for path, layer in [*linears(theirs).items(), ("model.embed_tokens", theirs.model.embed_tokens)]:
        own, weight = model.get_submodule(path), layer.weight
        grid = own.weight.qparams
        np.testing.assert_array_equal(weight.qdata.numpy(), own.weight.int_repr())
        np.testing.assert_array_equal(weight.scale.numpy().reshape(grid.scale.shape), grid.scale)
        np.testing.assert_array_equal(weight.zero_point.numpy().reshape(grid.scale.shape), grid.zero_point)
        np.testing.assert_array_equal(weight.dequantize().numpy(), own.weight.dequantize())
        if path.endswith("embed_tokens"):
            np.testing.assert_array_equal(layer(torch.tensor(TOKENS)).numpy(), own(TOKENS).data)
            continue
        for shape in ((1, 7), (2, 3)):
            x = RNG.normal(size=(*shape, own.in_features)).astype(np.float32)
            with torch.no_grad():
                found, y = layer(torch.tensor(x)).numpy(), own(Tensor(x)).data
            if exact:
                np.testing.assert_array_equal(found, y)
            else:
                size = (np.abs(x) + np.abs(x).max(-1, keepdims=True) / 127) @ np.abs(own.weight.dequantize()).T
                assert (np.abs(found - y) <= 2 * gamma(own.in_features + 12) * size).all()


@pytest.mark.parametrize("name", ["int4 groups", "static", "tinygemm"])
def test_trained_in_torch_it_comes_back_to_be_converted(name):
    model = llama()
    quantize_(model, QATConfig(CONFIGS[name], step="prepare"))
    quantize_(model, QATConfig(TABLE, step="prepare"), is_table)
    theirs, given = to_torch(model), torch.tensor(TOKENS)
    optimizer, losses = torch.optim.AdamW(theirs.parameters(), lr=0.01), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(given)[:, :-1].flatten(0, 1), given[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    back = from_torch(theirs).eval()
    assert back.lm_head.weight is back.model.embed_tokens.weight
    wanted = back(TOKENS).data
    quantize_(back, QATConfig(step="convert"))
    np.testing.assert_array_equal(back(TOKENS).data, wanted)


def test_a_model_in_training_or_between_grids_has_no_form_in_torchao():
    model = nn.Sequential(nn.Linear(32, 4))
    quantize_(model, QATConfig(CONFIGS["int8 weights"], step="prepare"))
    with pytest.raises(ValueError, match=r"'0' \(FakeQuantizedLinear\): is prepared, not converted: convert it first"):
        to_torchao(model)
    with pytest.raises(TypeError, match="expected a minquant Module, got Linear"):
        to_torchao(torch.nn.Linear(2, 2))
