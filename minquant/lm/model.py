"""Llama: a decoder of RMSNorm, rotary positions, grouped-query attention and SwiGLU, named as its checkpoints are.

    x  = embed(tokens)
    x += o_proj(attention(rotate(q_proj(n)), rotate(k_proj(n)), v_proj(n)))    n = input_layernorm(x)
    x += down_proj(silu(gate_proj(n)) · up_proj(n))                            n = post_attention_layernorm(x)
    logits = lm_head(norm(x))

Sources: Touvron et al. 2023 (LLaMA); transformers 5.24, modeling_llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.lm.rotary import rotary_tables
from minquant.nn import Embedding, Linear, Module, ModuleList, RMSNorm, init
from minquant.savable import savable
from minquant.tensor import Tensor, as_tensor, is_grad_enabled

if TYPE_CHECKING:
    from minquant.tensor import TensorLike

__all__ = ["Cache", "Llama", "LlamaConfig"]


@savable
@dataclass
class LlamaConfig:
    """What makes a Llama, under the names of its config.json; the defaults are those of transformers.

    Raises:
        ValueError: sizes below 1, heads that do not divide, an odd head_dim.
    """

    vocab_size: int = 32000  # tokens that there are
    hidden_size: int = 4096  # width of the residual stream
    intermediate_size: int = 11008  # width inside an MLP
    num_hidden_layers: int = 32
    num_attention_heads: int = 32  # heads of queries
    num_key_value_heads: int = None  # type: ignore[assignment] # heads of keys and values; None: as many as of queries
    head_dim: int = None  # type: ignore[assignment] # width of a head; None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048  # tokens that a text may have
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0  # base of the rotary angles
    rope_scaling: tuple[float, ...] | None = None  # llama3's factor, low_, high_freq_factor, original positions
    tie_word_embeddings: bool = False  # the head's weight is the embedding's table
    initializer_range: float = 0.02  # standard deviation of initial weights

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._check_sizes()
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"LlamaConfig: num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"LlamaConfig: hidden_size={self.hidden_size} is no multiple of "
                    f"num_attention_heads={self.num_attention_heads}: give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim < 1 or self.head_dim % 2:
            raise ValueError(f"LlamaConfig: head_dim must be even, rotary positions turn pairs; got {self.head_dim}")

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"LlamaConfig: {name} must be positive, got {getattr(self, name)}")


class Cache:
    """Keys and values of the tokens so far, so that a further token costs one position's work.

    Args:
        config: of the model that it is for.
        batch_size: texts side by side.
        capacity: tokens that there is room for; None: max_position_embeddings.
    """

    def __init__(self, config: LlamaConfig, batch_size: int = 1, capacity: int | None = None) -> None:
        self.capacity = config.max_position_embeddings if capacity is None else capacity
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, self.capacity, config.head_dim)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Write what comes after `length` tokens, (B, KV, T, D); return all, (B, KV, length + T, D)."""
        if is_grad_enabled() and key.requires_grad:
            raise RuntimeError("a Cache holds values without gradients: call the model inside no_grad()")
        if len(key.data) != self.keys.shape[1]:
            raise ValueError(f"a Cache with batch_size={self.keys.shape[1]}, but there are {len(key.data)} texts")
        end = self.length + key.shape[-2]
        for kept, new in ((self.keys, key), (self.values, value)):
            kept[layer, :, :, self.length : end] = new.data
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@savable
class Attention(Module):
    """Grouped-query attention: (B, T, hidden_size) -> the same shape."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, shared = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, queries, bias=False)
        self.k_proj = Linear(config.hidden_size, shared, bias=False)
        self.v_proj = Linear(config.hidden_size, shared, bias=False)
        self.o_proj = Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: np.ndarray, sin: np.ndarray, cache: Cache | None) -> Tensor:
        steps = x.shape[1]
        q = F.rotary_embedding(self._heads(self.q_proj(x)), cos, sin)
        k = F.rotary_embedding(self._heads(self.k_proj(x)), cos, sin)
        v = self._heads(self.v_proj(x))
        seen = steps
        if cache is not None:
            k, v = map(Tensor, cache.extend(self.layer, k, v))
            seen = cache.length + steps
        mask = np.tri(steps, seen, seen - steps, dtype=bool) if 1 < steps < seen else None
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=1 < steps == seen, enable_gqa=True)
        return self.o_proj(out.permute(0, 2, 1, 3).reshape(*x.shape[:2], -1))  # (B, H, T, D) -> (B, T, H·D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, self.head_dim).permute(0, 2, 1, 3)  # (B, T, H·D) -> (B, H, T, D)


@savable
class MLP(Module):
    """SwiGLU: down(silu(gate(x)) · up(x)), (B, T, hidden_size) -> the same shape."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@savable
class DecoderLayer(Module):
    """Attention and an MLP, each beside the residual stream: (B, T, hidden_size) -> the same shape."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: np.ndarray, sin: np.ndarray, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


@savable
class Decoder(Module):
    """All but the head: (B, T) integers -> (B, T, hidden_size)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = config.max_position_embeddings, config.head_dim, config.rope_theta, config.rope_scaling

    def forward(self, tokens: TensorLike, cache: Cache | None = None) -> Tensor:
        tokens = as_tensor(tokens)
        if tokens.ndim != 2:
            raise ValueError(f"Llama: tokens must be (B, T), got shape {tokens.shape}: add an axis for one text")
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        self._check_length(end, cache)
        cos, sin = (table[start:end] for table in rotary_tables(*self.rotary))
        x = self.embed_tokens(tokens)  # (B, T) -> (B, T, hidden_size)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def _check_length(self, end: int, cache: Cache | None) -> None:
        longest = self.rotary[0]
        if end > longest:
            raise ValueError(f"Llama: a text of {end} tokens is longer than max_position_embeddings={longest}")
        if cache is not None and end > cache.capacity:
            raise ValueError(f"Llama: a text of {end} tokens does not fit into a Cache with capacity={cache.capacity}")


@savable
class Llama(Module):
    """A language model: (B, T) integers -> logits (B, T, vocab_size) of the token that comes next.

    Args:
        config: sizes and constants.

    Initial weights are normal, with standard deviation config.initializer_range.

    Raises:
        IndexError: in forward, a token outside the vocabulary.
        ValueError: in forward, a text longer than max_position_embeddings or than the cache's capacity.
        TypeError: in forward, tokens that are not integers.
        RuntimeError: in forward, a cache while gradients are recorded.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        for parameter in self.parameters():
            if parameter.ndim == 2:  # the others are norms' weights, which start at 1
                init.normal_(parameter, std=self.config.initializer_range)
            else:
                init.ones_(parameter)

    def forward(self, tokens: Any, cache: Cache | None = None) -> Tensor:
        """With a cache, `tokens` come after those that it holds, and are added to it."""
        return self.lm_head(self.model(tokens, cache))

    def extra_repr(self) -> str:
        return str(self.config)
