"""Attention: each position takes a mean of values, weighted by how its query fits their keys; and rotary positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minquant.autograd import Function, total
from minquant.kernels.choice import compiled
from minquant.kernels.exponential import exp_below
from minquant.tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class ScaledDotProductAttention(Function):
    """y = p v, p = softmax(q kᵀ / √D) over the keys that the mask leaves.

    dL/dv = pᵀ g; with dp = g vᵀ and ds = p (dp − Σ p dp): dL/dq = ds k / √D and dL/dk = dsᵀ q / √D.
    """

    floats_only = True

    def forward(
        self, query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None, is_causal: bool
    ) -> np.ndarray:
        *batch, heads, steps, width = query.shape
        groups, keys = heads // (key.shape[-3] or 1), key.shape[-2]
        self.scale = query.dtype.type(1 / math.sqrt(width))
        rows = query.reshape(*batch, -1, groups * steps, width) * self.scale  # (…, H, T, D) -> (…, KV, G·T, D)
        # (…, KV, G·T, D) @ (…, KV, D, S) -> (…, KV, G·T, S), which is written over
        scores = np.ascontiguousarray(rows @ key.swapaxes(-1, -2))
        if mask is not None:
            by_step = scores.reshape(*scores.shape[:-2], groups, steps, keys)
            np.copyto(by_step, -np.inf, where=~mask)
        self.seen = np.minimum(np.arange(1, steps + 1), keys) if is_causal else np.array([keys])
        shares = _softmax(scores, self.seen)
        self.save(rows, key, value, shares)
        return (shares @ value).reshape(*batch, heads, steps, value.shape[-1])  # (…, KV, G·T, Dv) -> (…, H, T, Dv)

    def backward(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, key, value, shares = self.saved
        grads = grad.reshape(*shares.shape[:-1], value.shape[-1])  # (…, H, T, Dv) -> (…, KV, G·T, Dv)
        by_value = shares.swapaxes(-1, -2) @ grads
        by_scores = _softmax_gradient(shares, np.ascontiguousarray(grads @ value.swapaxes(-1, -2)), self.seen)
        by_query = (by_scores @ key * self.scale).reshape(*grad.shape[:-1], key.shape[-1])
        return by_query, by_scores.swapaxes(-1, -2) @ rows, by_value


def _softmax(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Over the first seen[r mod T] values of row r, 0 behind them; may be written over x."""
    kernels = compiled("attention", x.size) if x.dtype == np.float32 else None
    if kernels and x.size:
        kernels.softmax(x.reshape(-1, x.shape[-1]), seen)
        return x
    by_step = x.reshape(*x.shape[:-2], -1, len(seen), x.shape[-1])  # (…, G·T, S) -> (…, G, T, S)
    np.copyto(by_step, -np.inf, where=np.arange(x.shape[-1]) >= seen[:, None])
    x = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
    z = exp_below(x) if x.dtype == np.float32 else np.exp(x)
    return z / total(z, -1, keepdims=True)


def _softmax_gradient(shares: np.ndarray, grad: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Of `_softmax`; may be written over grad."""
    kernels = compiled("attention", grad.size) if shares.dtype == np.float32 else None
    if kernels and grad.size:
        kernels.softmax_gradient(shares.reshape(-1, shares.shape[-1]), grad.reshape(-1, grad.shape[-1]), seen)
        return grad
    return shares * (grad - total(shares * grad, -1, keepdims=True))


class RotaryEmbedding(Function):
    """(a, b) -> (a cos − b sin, b cos + a sin) for the halves a and b of each row; the gradient turns back."""

    floats_only = True

    def forward(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        self.cos, self.sin = cos, sin
        return _turned(x, cos, sin)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return _turned(grad, self.cos, -self.sin)


def _turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    kernels = compiled("attention", x.size) if x.dtype == np.float32 and x.ndim == 4 else None
    if kernels:
        return kernels.turn(x, cos, sin)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    out = np.empty(x.shape, x.dtype)
    out[..., :half] = a * cos - b * sin
    out[..., half:] = b * cos + a * sin
    return out


# ---- as functions ------------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: TensorLike,
    key: TensorLike,
    value: TensorLike,
    attn_mask: TensorLike | None = None,
    *,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q·kᵀ / √D)·v, over the keys that a query may see.

    Args:
        query: (…, H, T, D), float32 or float64.
        key: (…, H, S, D), of query's dtype.
        value: (…, H, S, Dv), of query's dtype.
        attn_mask: bool, True where the query may see the key; broadcasts against (T, S).
        is_causal: query t sees the keys 0 to t; without attn_mask.
        enable_gqa: key and value may have fewer heads, KV: H/KV queries share each.

    Returns:
        (…, H, T, Dv).

    Raises:
        ValueError: shapes that do not fit, a query that may see no key, both masks at once.
        TypeError: integers, more than one dtype, a mask that is not of bools.

    Source: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (grouped queries);
    torch.nn.functional.scaled_dot_product_attention, torch 2.13.
    """
    query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
    _check_attention(query.data, key.data, value.data, enable_gqa)
    mask = None if attn_mask is None else as_tensor(attn_mask).data
    if mask is not None:
        if is_causal:
            raise ValueError("scaled_dot_product_attention: attn_mask and is_causal exclude each other: pass one")
        _check_mask(mask, (query.shape[-2], key.shape[-2]))
    return ScaledDotProductAttention.apply(query, key, value, mask=mask, is_causal=is_causal)


def _check_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, enable_gqa: bool) -> None:
    shapes = f"query has shape {query.shape}, key {key.shape}, value {value.shape}"
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise TypeError(
            "scaled_dot_product_attention: query, key and value must have one dtype, "
            f"got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    ndim = query.ndim
    fits = ndim >= 3 and key.ndim == value.ndim == ndim and query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
    if not fits or key.shape[-3:-1] != value.shape[-3:-1] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"scaled_dot_product_attention: {shapes}, expected (…, H, T, D), (…, H, S, D) and (…, H, S, Dv)"
        )
    heads, shared = query.shape[-3], key.shape[-3]
    if heads != shared and not (enable_gqa and shared and heads % shared == 0):
        raise ValueError(
            f"scaled_dot_product_attention: {shapes}: {heads} and {shared} heads do not fit: "
            "they must be equal, or, with enable_gqa=True, the first a multiple of the second"
        )


def _check_mask(mask: np.ndarray, shape: tuple[int, int]) -> None:
    if mask.dtype != bool:
        raise TypeError(f"scaled_dot_product_attention: attn_mask must be bool, got {mask.dtype}")
    try:
        blind = ~np.broadcast_to(mask, shape).any(-1)
    except ValueError:
        raise ValueError(
            f"scaled_dot_product_attention: attn_mask {mask.shape} does not broadcast to {shape} (T, S)"
        ) from None
    if blind.any():
        raise ValueError(f"scaled_dot_product_attention: attn_mask leaves query {blind.argmax()} no key to see")


def rotary_embedding(input: TensorLike, cos: np.ndarray, sin: np.ndarray) -> Tensor:
    """Each row turned by its position's angles: pair i, (xᵢ, xᵢ₊D/2), by angle i, whose cosine and sine are given.

    Args:
        input: (…, T, D), float32 or float64.
        cos: (T, D/2), of input's dtype.
        sin: (T, D/2), of input's dtype.

    Returns:
        As input.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: integers, more than one dtype.

    Source: Su et al. 2021, eq. 34; the halves are paired as in transformers' Llama.
    """
    x = as_tensor(input)
    expected = (*x.shape[-2:-1], x.shape[-1] // 2) if x.ndim else ()
    if x.ndim < 2 or x.shape[-1] % 2 or not cos.shape == sin.shape == expected:
        raise ValueError(
            f"rotary_embedding: input has shape {x.shape}, cos {cos.shape}, sin {sin.shape}, "
            "expected (…, T, D) with an even D, and (T, D/2) twice"
        )
    if not x.dtype == cos.dtype == sin.dtype:
        raise TypeError(f"rotary_embedding: one dtype is needed, got {x.dtype}, {cos.dtype} and {sin.dtype}")
    return RotaryEmbedding.apply(x, cos=cos, sin=sin)
