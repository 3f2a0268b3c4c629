"""Language models: a Llama-style decoder, its tokenizers and checkpoints, and how to write with it."""

from __future__ import annotations

from minquant.lm.checkpoint import load_llama
from minquant.lm.generation import generate
from minquant.lm.model import Cache, Llama, LlamaConfig
from minquant.lm.tokenizers import BPETokenizer, ByteTokenizer, load_tokenizer

__all__ = [
    "BPETokenizer", "ByteTokenizer", "Cache", "Llama", "LlamaConfig", "generate", "load_llama", "load_tokenizer",
]  # fmt: skip
