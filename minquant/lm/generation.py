"""`generate`: a model writes on, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from minquant.lm.model import Cache, Llama
from minquant.nn import Module
from minquant.random import rand
from minquant.tensor import Tensor, as_tensor, no_grad

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

__all__ = ["generate"]


@no_grad()
def generate(
    model: Llama,
    tokens: TensorLike,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
) -> Tensor:
    """The texts, each with up to max_new_tokens more; a key-value cache makes a token cost one position's work.

    Args:
        model: float, prepared or converted; it runs in eval().
        tokens: (B, T) integers, T >= 1.
        max_new_tokens: how many to add.
        temperature: 0: always the likeliest token, the first of equals. Otherwise one drawn from softmax(logits /
            temperature), by `manual_seed`'s numbers.
        top_k: draw from the k likeliest only.
        top_p: draw from the fewest likeliest tokens only whose probabilities reach p together.
        eos_token_id: ends a text, and fills it up while others go on; when all have ended, so does this.

    Returns:
        (B, T + at most max_new_tokens) int64, the given tokens first.

    Raises:
        ValueError: an empty text, one that would be longer than max_position_embeddings, options out of range.
        IndexError: a token outside the vocabulary.
        TypeError: tokens that are not integers.

    Source: Holtzman et al. 2020 (top_p); Fan et al. 2018 (top_k).
    """
    text = as_tensor(tokens).data
    _check(model, text, max_new_tokens, temperature, top_k, top_p)
    batch, length = text.shape
    cache = Cache(model.config, batch, length + max_new_tokens)
    out = np.empty((batch, length + max_new_tokens), np.int64)
    out[:, :length], new, ended = text, text, np.zeros(batch, bool)
    with _evaluating(model):
        for position in range(length, length + max_new_tokens):
            logits = model.lm_head(model.model(new, cache)[:, -1:]).data[:, 0]  # (B, T) -> (B, vocab_size)
            chosen = logits.argmax(-1) if temperature == 0 else _draw(logits / temperature, top_k, top_p)
            if eos_token_id is not None:
                chosen = np.where(ended, eos_token_id, chosen)
                ended |= chosen == eos_token_id
            out[:, position] = chosen
            if ended.all():
                return Tensor(out[:, : position + 1].copy())
            new = out[:, position : position + 1]
    return Tensor(out)


def _draw(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """One token a row: (B, vocab_size) -> (B,)."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    wide = np.take_along_axis(logits, order, -1).astype(np.float64)
    shares = np.exp(wide - wide[:, :1])
    if top_k is not None:
        shares[:, top_k:] = 0
    shares /= shares.sum(-1, keepdims=True)
    if top_p is not None:
        shares[np.cumsum(shares, -1) - shares >= top_p] = 0  # those before it reach p already
    ends = np.cumsum(shares, -1)
    drawn = rand(len(logits)).data[:, None] * ends[:, -1:]
    place = np.argmax(ends > drawn, -1)
    return np.take_along_axis(order, place[:, None], -1)[:, 0]


def _check(
    model: Llama, text: np.ndarray, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if text.ndim != 2 or 0 in text.shape:
        raise ValueError(f"generate: tokens must be (B, T) with a token at least, got shape {text.shape}")
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens must be positive, got {max_new_tokens}")
    longest = model.config.max_position_embeddings
    if text.shape[1] + max_new_tokens > longest:
        raise ValueError(
            f"generate: {text.shape[1]} tokens and {max_new_tokens} new ones are more than "
            f"max_position_embeddings={longest}"
        )
    if not 0 <= temperature < np.inf:
        raise ValueError(f"generate: temperature must be 0 or more, and finite, got {temperature}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("generate: top_k and top_p choose among drawn tokens: give a temperature above 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be positive, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must lie above 0 and up to 1, got {top_p}")


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """In eval(); afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
