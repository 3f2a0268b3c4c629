from __future__ import annotations

import numpy as np
import pytest

import minquant
from minquant.lm import Llama, LlamaConfig, generate
from minquant.lm.generation import _draw
from minquant.quant import Int8DynamicActivationIntxWeightConfig, QATConfig, quantize_
from minquant.quant.spec import PerGroup

TEXT = np.random.default_rng(0).integers(0, 30, (2, 5))


@pytest.fixture
def model() -> Llama:
    minquant.manual_seed(0)
    sizes = dict(vocab_size=30, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    return Llama(LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3))


def without_a_cache(model: Llama, steps: int) -> np.ndarray:
    text = TEXT
    for _ in range(steps):
        with minquant.no_grad():
            text = np.concatenate([text, model(text).data[:, -1:].argmax(-1)], axis=1)
    return text


def test_the_likeliest_tokens_follow(model: Llama) -> None:
    out = generate(model, TEXT, 11)
    np.testing.assert_array_equal(out.data, without_a_cache(model, 11), strict=True)
    assert model.training


@pytest.mark.parametrize("converted", [False, True])
def test_prepared_and_converted_models_write_the_same(model: Llama, converted: bool) -> None:
    base = Int8DynamicActivationIntxWeightConfig(weight_dtype="int4", weight_granularity=PerGroup(32))
    quantize_(model, QATConfig(base, step="prepare"))
    prepared = generate(model, TEXT, 11)
    if converted:
        quantize_(model, QATConfig(base, step="convert"))
    np.testing.assert_array_equal(generate(model, TEXT, 11).data, prepared.data)
    np.testing.assert_array_equal(prepared.data, without_a_cache(model.eval(), 11))


def test_a_seed_decides_what_is_drawn(model: Llama) -> None:
    texts = []
    for seed in (1, 1, 2):
        minquant.manual_seed(seed)
        texts.append(generate(model, TEXT, 11, temperature=1.5, top_k=20, top_p=0.95).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_a_text_ends_with_its_token_and_is_filled_with_it(model: Llama) -> None:
    free = generate(model, TEXT, 11).data
    stop = int(free[0, 7])
    first = [int(np.flatnonzero(row[5:] == stop)[0]) + 6 if stop in row[5:] else 16 for row in free]
    out = generate(model, TEXT, 11, eos_token_id=stop).data
    assert out.shape[1] == max(first)
    for row, whole, length in zip(out, free, first, strict=True):
        np.testing.assert_array_equal(row[:length], whole[:length])
        assert (row[length:] == stop).all()


# ---- drawing ---------------------------------------------------------------------------------------------------------

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, [0, 1, 2, 3]), (2, None, [1, 3]), (9, None, [0, 1, 2, 3]), (None, 0.65, [1, 3]),
        (None, 0.75, [1, 2, 3]), (None, 0.01, [1]), (None, 1.0, [0, 1, 2, 3]), (3, 0.6, [1, 3]),
    ],
)  # fmt: skip
def test_tokens_are_drawn_as_often_as_they_are_likely(top_k: int | None, top_p: float | None, kept: list[int]) -> None:
    minquant.manual_seed(0)
    n = 20_000
    drawn = np.bincount(_draw(np.tile(LOGITS, (n, 1)), top_k, top_p), minlength=4) / n
    expected = np.zeros(4)
    expected[kept] = np.exp(LOGITS[kept].astype(np.float64))
    expected /= expected.sum()
    assert (drawn[expected == 0] == 0).all()
    assert np.abs(drawn - expected).max() <= 5 * 0.5 / np.sqrt(n)  # five standard deviations, at most


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (TEXT, {"max_new_tokens": 12}, ["5 tokens and 12", "max_position_embeddings=16"]),
        (TEXT, {"max_new_tokens": 0}, ["max_new_tokens", "0"]),
        (TEXT[0], {}, ["(B, T)", "(5,)"]),
        (TEXT[:, :0], {}, ["(2, 0)"]),
        (TEXT, {"temperature": -1}, ["temperature", "-1"]),
        (TEXT, {"top_k": 5}, ["top_k", "temperature"]),
        (TEXT, {"temperature": 1, "top_k": 0}, ["top_k", "0"]),
        (TEXT, {"temperature": 1, "top_p": 1.5}, ["top_p", "1.5"]),
    ],
)
def test_what_cannot_be_is_named(model: Llama, text: np.ndarray, options: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        generate(model, text, **{"max_new_tokens": 3} | options)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_a_token_outside_the_vocabulary_is_named(model: Llama) -> None:
    with pytest.raises(IndexError, match="index 30"):
        generate(model, TEXT + 30 - TEXT, 3)
