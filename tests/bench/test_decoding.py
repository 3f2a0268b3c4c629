"""`minquant.bench.decoding`: the figures of a tiny model."""

from __future__ import annotations

from minquant.bench.decoding import decoding, int4, model_bytes
from minquant.lm import Llama, LlamaConfig

TINY = LlamaConfig(64, 32, 64, 1, 2, 1, max_position_embeddings=16, tie_word_embeddings=True)


def test_decoding_of_a_tiny_model():
    found = decoding(TINY, budget=0.05)
    assert found["parameters"] == 64 * 32 + 32 * 32 * 2 + 32 * 16 * 2 + 3 * 64 * 32 + 3 * 32
    assert all(value > 0 for value in found.values())


def test_bytes_are_five_bits_a_weight_and_tied_weights_count_once():
    model = Llama(TINY)
    norms = 3 * 32
    weights = sum(p.numel() for p in model.parameters()) - norms
    assert model_bytes(model) == 4 * (weights + norms)
    assert model_bytes(int4(model)) == weights * 5 // 8 + 4 * norms
