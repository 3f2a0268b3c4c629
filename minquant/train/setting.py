"""What a run works on: the text, its tokens, the model it starts from; and what is measured of a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minquant
from minquant.lm import Llama, LlamaConfig, load_llama, load_tokenizer
from minquant.lm.evaluate import Perplexity, Question, accuracy, ask, perplexity
from minquant.lm.text import Corpus, RandomWindows, Tokenizer, encode, load_text, load_topics
from minquant.nn import Module
from minquant.quant import FakeQuantizedLinear
from minquant.quant.weighted import IntegerWeight
from minquant.train.config import Config, Quantization

__all__ = ["Measured", "Setting", "load_model", "new_model"]


@dataclass(frozen=True)
class Setting:
    """The text, its tokens and the questions of a run."""

    corpus: Corpus
    tokenizer: Tokenizer
    questions: list[Question]
    context: int

    @classmethod
    def of(cls, config: Config) -> Setting:
        """What the config names; ValueError for a context that is too short for the questions."""
        corpus = load_topics() if config.text == "topics" else load_text(config.text)
        tokenizer, questions = load_tokenizer(config.tokenizer), ask(corpus.heldout, config.questions)
        longest = max(len(tokenizer.encode(ending)) for question in questions for ending in question.endings)
        if longest > config.context:
            raise ValueError(f"context={config.context} is shorter than a question's ending; make it {longest} or more")
        return cls(corpus, tokenizer, questions, config.context)

    def batches(self, config: Config, vocab_size: int) -> RandomWindows:
        """Random windows of the pages to train on."""
        tokens = encode("\n".join(self.corpus.train), self.tokenizer, vocab_size)
        return RandomWindows(tokens, config.context, config.batch_size, config.seed)

    def measure(self, model: Module) -> Measured:
        """How well a model predicts the pages that are held out."""
        right, right_norm = accuracy(model, self.tokenizer, self.questions, self.context)
        return Measured(perplexity(model, self.tokenizer, self.corpus.heldout, self.context), right, right_norm)


@dataclass(frozen=True)
class Measured:
    """What was measured of a model: the loss of each token, and which questions it answered right."""

    perplexity: Perplexity
    right: np.ndarray
    right_norm: np.ndarray

    def row(self, stage: str, seed: int, quantization: Quantization | None) -> dict[str, Any]:
        """As a row of the table."""
        q = quantization
        return {
            "scheme": q.scheme if q else "float32",
            "weight_bits": q.weight_bits if q else 32,
            "group_size": q.group_size or None if q else None,
            "stage": stage,
            "seed": seed,
            "nll": self.perplexity.nll,
            "word_ppl": self.perplexity.word_perplexity,
            "byte_ppl": self.perplexity.byte_perplexity,
            "bits_per_byte": self.perplexity.bits_per_byte,
            "acc": float(self.right.mean()),
            "acc_norm": float(self.right_norm.mean()),
        }


def new_model(config: Config, vocab_size: int) -> Llama:
    """A model of the config's sizes with random weights, those of its seed."""
    minquant.manual_seed(config.seed)
    sizes = dataclasses.asdict(config.model)
    return Llama(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=config.context, **sizes))


def load_model(path: str) -> Llama:
    """A model that minquant.save wrote, or a published one's folder.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: a file that is damaged, or holds something else than a float Llama.
    """
    model = load_llama(path) if Path(path).is_dir() else minquant.load(path)
    if not isinstance(model, Llama) or any(isinstance(m, IntegerWeight | FakeQuantizedLinear) for m in model.modules()):
        raise ValueError(f"finetune: {path} holds no float Llama; start from the model that was quantized")
    return model
