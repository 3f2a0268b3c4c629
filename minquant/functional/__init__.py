"""The differentiable operations: each a small class, its gradient beside it, and a function to call it by."""

from __future__ import annotations

from minquant.functional.attention import rotary_embedding, scaled_dot_product_attention
from minquant.functional.binary import add, compare, div, matmul, mul, pow, sub, where
from minquant.functional.conv import conv1d, conv2d
from minquant.functional.embedding import embedding
from minquant.functional.embedding_bag import embedding_bag
from minquant.functional.movement import (
    array_index,
    assign,
    cat,
    expand,
    flatten,
    getitem,
    permute,
    reshape,
    setitem,
    split,
    squeeze,
    stack,
    transpose,
    unsqueeze,
)
from minquant.functional.nn import cross_entropy, dropout, linear, log_softmax, mse_loss, softmax
from minquant.functional.norm import batch_norm, layer_norm, rms_norm
from minquant.functional.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minquant.functional.reduce import argmax, max, mean, min, sum, var
from minquant.functional.unary import (
    abs,
    cast,
    clip,
    clone,
    exp,
    gelu,
    log,
    neg,
    relu,
    sigmoid,
    silu,
    sqrt,
    tanh,
)

__all__ = [
    "abs", "adaptive_avg_pool2d", "add", "argmax", "array_index", "assign", "avg_pool2d", "batch_norm", "cast", "cat",
    "clip", "clone", "compare", "conv1d", "conv2d", "cross_entropy", "div", "dropout", "embedding", "embedding_bag",
    "exp", "expand", "flatten", "gelu", "getitem", "layer_norm", "linear", "log", "log_softmax", "matmul", "max",
    "max_pool2d", "mean", "min", "mse_loss", "mul", "neg", "permute", "pow", "relu", "reshape", "rms_norm",
    "rotary_embedding", "scaled_dot_product_attention", "setitem", "sigmoid", "silu", "softmax", "split", "sqrt",
    "squeeze", "stack", "sub", "sum", "tanh", "transpose", "unsqueeze", "var", "where",
]  # fmt: skip
