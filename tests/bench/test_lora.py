"""The comparison of LoRA-QAT with full QAT, on a model that takes no time."""

from __future__ import annotations

import numpy as np

from minquant.bench.lora import KINDS, SIZES, Size, peak_bytes, step_of
from minquant.lm import LlamaConfig

SIZE = Size(LlamaConfig(50, 64, 96, 1, 2, max_position_embeddings=8), windows=2, tokens=8)


def test_every_kind_learns():
    for kind in KINDS:
        step = step_of(kind, SIZE)
        losses = [step().item() for _ in range(5)]
        assert np.isfinite(losses).all() and losses[-1] < losses[0], kind


def test_the_light_form_takes_the_least_memory():
    light, full, real = (peak_bytes(kind, SIZE) for kind in KINDS)
    assert light < real < full


def test_sizes_are_those_of_the_figures():
    config = SIZES["width 512"].config
    assert config.hidden_size >= 512 and config.num_hidden_layers * 4 * 512 * (512 + 1152) >= 20e6
