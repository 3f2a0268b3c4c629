"""LoRA-QAT's light form beside full QAT, and full QAT beside float: ``python -m minquant.bench.lora``.

The same Llama and batch, a step being forward, loss, backward and AdamW, in turn: medians over the rounds (see
``timing.py``). Peak memory is what NumPy and Python allocate within a step (tracemalloc), the model included.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from minquant import manual_seed
from minquant.bench.timing import in_turn, paired
from minquant.lm import Llama, LlamaConfig, load_tokenizer
from minquant.optim import AdamW
from minquant.quant import Int8DynamicActivationIntxWeightConfig, PerGroup, QATConfig, quantize_
from minquant.train.config import Config
from minquant.train.loop import next_token_loss
from minquant.train.lora import add_lora_

__all__ = ["KINDS", "SIZES", "Size", "peak_bytes", "step_of"]

CONFIG = Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32))
RANK, ALPHA = 8, 16.0
KINDS = ("light LoRA-QAT", "full QAT", "float")
BUDGET = 15.0
"""Seconds a size."""


class Size(NamedTuple):
    """A model and its batch."""

    config: LlamaConfig
    windows: int
    tokens: int


def _of_the_table() -> Size:
    config = Config()
    sizes: dict[str, Any] = asdict(config.model)
    vocab = load_tokenizer(config.tokenizer).vocab_size
    longest = config.context
    return Size(LlamaConfig(vocab, **sizes, max_position_embeddings=longest), config.batch_size, longest)


def _wide(windows: int, tokens: int) -> Size:
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
    return Size(LlamaConfig(vocab_size=2048, **sizes, max_position_embeddings=tokens), windows, tokens)  # type: ignore[arg-type]


SIZES = {"width 512": _wide(4, 32), "width 512, four times the batch": _wide(8, 64), "the table's": _of_the_table()}


def step_of(kind: str, size: Size) -> Callable[[], object]:
    """A step of training on a model of that kind."""
    manual_seed(0)
    model = Llama(size.config)
    if kind == "light LoRA-QAT":
        add_lora_(model, RANK, ALPHA, form="light", config=CONFIG)
    elif kind == "full QAT":
        quantize_(model, QATConfig(CONFIG, step="prepare"))
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(0, size.config.vocab_size, (size.windows, size.tokens)) for _ in range(2))

    def step() -> object:
        optimizer.zero_grad()
        loss = next_token_loss(model, inputs, targets)
        loss.backward()
        optimizer.step()
        return loss

    return step


def peak_bytes(kind: str, size: Size) -> int:
    """The most memory that training on a model of that kind takes, once all is compiled and the optimizer has begun."""
    step_of(kind, size)()
    tracemalloc.start()
    step = step_of(kind, size)
    step()  # until here the float model was there, too
    tracemalloc.reset_peak()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def main() -> None:
    """Prints the ratios."""
    for name, size in SIZES.items():
        steps = {kind: step_of(kind, size) for kind in KINDS}
        for step in steps.values():
            step()
        runners = in_turn(steps, BUDGET, always=KINDS)
        light, full, real = (runners[kind] for kind in KINDS)
        parameters = sum(p.numel() for p in Llama(size.config).parameters())
        print(f"{name}: {parameters / 1e6:.1f} M parameters, {size.windows} × {size.tokens} tokens, rank {RANK}")
        for (one, a), (other, b) in ((("light", light), ("full", full)), (("full", full), ("float", real))):
            ours, theirs, _, rounds = paired(a, b)
            print(f"  {one} {1e3 * ours:.1f} ms, {other} {1e3 * theirs:.1f} ms, median of {rounds} rounds")
        print(f"  light is {paired(light, full)[2]:.2f} × as fast as full QAT (to reach: 1.89; 1.3 on the table's)")
        print(f"  full QAT takes {1 / paired(full, real)[2]:.2f} × a float step (to stay within, on the table's: 1.25)")
        less = 1 - peak_bytes(KINDS[0], size) / peak_bytes(KINDS[1], size)
        print(f"  light takes {100 * less:.1f}% less memory than full QAT at the peak (to reach: 36.1%)")


if __name__ == "__main__":
    main()
