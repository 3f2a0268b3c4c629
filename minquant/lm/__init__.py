"""Language models: a Llama-style decoder, its tokenizers and checkpoints, and how to write with it."""

from __future__ import annotations

from minquant.lm.model import Cache, Llama, LlamaConfig

__all__ = ["Cache", "Llama", "LlamaConfig"]
