from __future__ import annotations

import copy

import numpy as np
import pytest

import minquant
from minquant import nn, optim
from minquant.lm import Cache, Llama, LlamaConfig
from tests.gradcheck import gradcheck

SIZES = dict(
    vocab_size=30, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=24,
)  # fmt: skip
TEXT = np.random.default_rng(0).integers(0, 30, (3, 20))
ROUNDINGS = 200
"""Of a logit: 2 layers of some 10 operations, whose sums have up to 20 terms."""


def llama(seed: int = 0, **options) -> Llama:
    minquant.manual_seed(seed)
    return Llama(LlamaConfig(**SIZES | {"initializer_range": 0.3} | options))


def logits(model: Llama, *parts: np.ndarray) -> np.ndarray:
    cache = Cache(model.config, batch_size=len(TEXT)) if len(parts) > 1 else None
    with minquant.no_grad():
        return np.concatenate([model(part, cache).data for part in parts], axis=1)


def test_parameters_have_their_published_names() -> None:
    model = llama(tie_word_embeddings=True)
    layer = [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
    ]  # fmt: skip
    names = {f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in layer}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert {name for name, _ in model.named_parameters()} == names
    assert {name for name, _ in llama().named_parameters()} == names | {"lm_head.weight"}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert copy.deepcopy(model).lm_head.weight.shape == (30, 16)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (8, 16)  # 2 heads of 4


@pytest.mark.parametrize("parts", [[1] * 20, [5, 1, 1, 13], [7, 6, 7], [19, 1]])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_with_a_cache_the_logits_are_those_of_the_whole_text(parts: list[int], shared: int) -> None:
    model = llama(num_key_value_heads=shared)
    whole = logits(model, TEXT)
    pieces = np.split(TEXT, np.cumsum(parts)[:-1], axis=1)
    assert np.abs(logits(model, *pieces) - whole).max() <= ROUNDINGS * 2.0**-24 * np.abs(whole).max()


def test_a_token_changes_no_earlier_logit() -> None:
    model, changed = llama(), TEXT.copy()
    changed[:, 12:] = 29 - changed[:, 12:]
    before, after = logits(model, TEXT), logits(model, changed)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert (before[:, 12] != after[:, 12]).any()


def test_positions_matter_and_scaled_ones_differ() -> None:
    model, stretched = llama(), llama(rope_scaling=(8.0, 1.0, 4.0, 8.0))
    twice = np.tile(TEXT[:, :1], 8)  # one token over and over: only positions could tell copies apart, and softmax does
    np.testing.assert_allclose(logits(model, twice)[:, 1], logits(model, twice)[:, 7], atol=1e-5)
    assert np.abs(logits(model, TEXT) - logits(stretched, TEXT)).max() > 0.01


def test_gradients() -> None:
    model = llama(hidden_size=8, intermediate_size=6, num_hidden_layers=1, vocab_size=5, tie_word_embeddings=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    model.model.rotary = (4, *model.model.rotary[1:])
    text = TEXT[:2, :3] % 5
    names = ["model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.0.input_layernorm"]
    modules = [model.get_submodule(name) for name in names]

    def loss(*weights):
        for module, weight in zip(modules, weights, strict=True):
            module._parameters["weight"] = weight
        model.lm_head._parameters["weight"] = weights[0]
        return model(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minquant.lm.model.rotary_tables", tables64)
        gradcheck("Llama", loss, [module.weight.data for module in modules])


def tables64(positions: int, width: int, theta: float, scaling: None) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(positions)[:, None] * theta ** -(np.arange(0, width, 2) / width)
    return np.cos(angles), np.sin(angles)


def test_it_learns_a_text_by_heart() -> None:
    model = llama(initializer_range=0.05, tie_word_embeddings=True)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(TEXT[:, :-1]).reshape(-1, 30), TEXT[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # uniform guessing: ln 30 = 3.4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_key_value_heads": 3}, ["num_attention_heads=4", "num_key_value_heads=3"]),
        ({"hidden_size": 18}, ["hidden_size=18", "head_dim"]),
        ({"head_dim": 5}, ["head_dim", "even", "5"]),
        ({"vocab_size": 0}, ["vocab_size", "0"]),
    ],
)
def test_sizes_that_do_not_go_together_are_named(options: dict[str, int], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        llama(**options)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_texts_that_do_not_fit_are_named() -> None:
    model = llama()
    with pytest.raises(ValueError, match=r"25 tokens .* max_position_embeddings=24"):
        model(np.zeros((1, 25), int))
    with pytest.raises(ValueError, match=r"\(B, T\), got shape \(3,\)"):
        model(np.zeros(3, int))
    with pytest.raises(IndexError, match="index 30"):
        model(np.full((1, 2), 30))
    with pytest.raises(TypeError, match="float32"):
        model(np.zeros((1, 2), np.float32))
    cache = Cache(model.config, 1, capacity=4)
    with pytest.raises(RuntimeError, match=r"no_grad\(\)"):
        model(np.zeros((1, 2), int), cache)
    with minquant.no_grad(), pytest.raises(ValueError, match=r"5 tokens .* capacity=4"):
        model(np.zeros((1, 5), int), cache)
    with minquant.no_grad(), pytest.raises(ValueError, match="batch_size=1, .* 2 texts"):
        model(np.zeros((2, 2), int), cache)
