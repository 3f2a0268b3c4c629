"""What of `minquant.lm.Llama` torch runs by functions of its own: attention, and the decoder that turns positions.

Its other modules' forward torch runs as it stands. There is no cache: a further token costs all tokens before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minquant.lm.rotary import rotary_tables

from .twin import Twin

__all__ = ["Attention", "Decoder"]


class Attention(Twin):
    """minquant's: grouped-query attention, (B, T, hidden_size) -> the same shape."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: None) -> Tensor:
        q, k = (turned(self.heads(project(x)), cos, sin) for project in (self.q_proj, self.k_proj))
        v = self.heads(self.v_proj(x))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, H·D)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, H·D) -> (B, H, T, D)."""
        return x.unflatten(-1, (-1, self.shell.head_dim)).transpose(1, 2)


class Decoder(Twin):
    """minquant's: all but the head, (B, T) integers -> (B, T, hidden_size)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, own: Any, path: str) -> None:
        super().__init__(own, path)
        for name, table in zip(("cos", "sin"), rotary_tables(*own.rotary), strict=True):
            self.register_buffer(name, torch.tensor(table.copy()), persistent=False)

    def forward(self, tokens: Tensor, cache: None = None) -> Tensor:
        """The hidden state of each token.

        Raises:
            ValueError: tokens that are not (B, T), or more than the model has positions for.
            TypeError: a cache.
        """
        if cache is not None:
            raise TypeError(f"{self.where}: in torch there is no cache; hand over all tokens")
        if tokens.ndim != 2 or tokens.shape[1] > len(self.cos):
            raise ValueError(
                f"{self.where}: tokens must be (B, T) with T at most max_position_embeddings={len(self.cos)}, got "
                f"shape {tuple(tokens.shape)}"
            )
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, None)
        return self.norm(x)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b of each row."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
