"""Tokens a second of a language model at batch 1, float32 against int4: ``python -m minquant.bench.decoding``.

A Llama of 107 million random parameters, as wide as published ones of a billion, writes greedily, with its cache:
weights, embeddings included, in float32, and as int4 in groups of 32 with int8 inputs. In turn, some tokens each, so
that noise meets both alike.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from minquant import no_grad
from minquant.lm import Cache, Llama, LlamaConfig
from minquant.nn import Embedding, Module
from minquant.quant import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerGroup, quantize_

from .timing import in_turn, paired

__all__ = ["decoding", "int4", "model_bytes"]

CONFIG = LlamaConfig(
    vocab_size=8192,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=2,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
TOKENS, BUDGET = 8, 60.0


def int4(model: Llama) -> Llama:
    """A copy whose Linears and Embedding are int4 in groups of 32."""
    quantized = copy.deepcopy(model)
    quantize_(quantized, Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32)))
    quantize_(quantized, IntxWeightOnlyConfig("int4", PerGroup(32)), lambda module, _: isinstance(module, Embedding))
    return quantized


def model_bytes(model: Module) -> int:
    """Bytes of parameters and integers, with their scales; what is shared counts once."""
    arrays = {id(p): p.data.nbytes for p in model.parameters()}
    weights: list[Any] = [vars(module).get("weight") for module in model.modules()]
    arrays |= {id(weight): weight.nbytes for weight in weights if hasattr(weight, "int_repr")}
    return sum(arrays.values())


class Writer:
    """Writes greedily from one token on, and begins anew where the cache is full."""

    def __init__(self, model: Llama) -> None:
        self.model, self.cache = model.eval(), Cache(model.config)
        self.token = np.zeros((1, 1), np.int64)

    def __call__(self) -> None:
        """Writes `TOKENS` tokens."""
        if self.cache.length + TOKENS > self.cache.capacity:
            self.cache.length = 0
        with no_grad():
            for _ in range(TOKENS):
                logits = self.model(self.token, self.cache).data[0, -1]
                self.token = np.array([[logits.argmax()]])


def decoding(config: LlamaConfig = CONFIG, budget: float = BUDGET) -> dict[str, float]:
    """Tokens a second of both, the median of the rounds' ratios, and the ratio of their bytes."""
    model = Llama(config)
    quantized = int4(model)
    writers = {"int4": Writer(quantized), "float32": Writer(model)}
    for writer in writers.values():
        writer()
    runners = in_turn(writers, budget, always=writers)
    ours, theirs, speedup, _ = paired(runners["int4"], runners["float32"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "int4 tokens/s": TOKENS / ours,
        "float32 tokens/s": TOKENS / theirs,
        "speedup": speedup,
        "bytes": model_bytes(quantized) / model_bytes(model),
    }


def main() -> None:
    """Prints them."""
    found = decoding()
    print(f"{found['parameters']:,} random parameters, batch 1")
    print(
        f"float32 {found['float32 tokens/s']:.1f} tokens/s, int4 {found['int4 tokens/s']:.1f}: {found['speedup']:.2f} ×"
    )
    print(f"bytes: {found['bytes']:.4f} of float32")


if __name__ == "__main__":
    main()
