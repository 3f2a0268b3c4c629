"""The differentiable operations: each a small class, its gradient beside it, and a function to call it by."""

from __future__ import annotations

from minquant.functional.binary import add, compare, div, matmul, mul, pow, sub, where
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
    "abs", "add", "argmax", "array_index", "assign", "cast", "cat", "clip", "clone", "compare", "cross_entropy", "div",
    "dropout", "exp", "expand", "flatten", "gelu", "getitem", "linear", "log", "log_softmax", "matmul", "max",
    "mean", "min", "mse_loss", "mul", "neg", "permute", "pow", "relu", "reshape", "setitem", "sigmoid",
    "silu", "softmax", "split", "sqrt", "squeeze", "stack", "sub", "sum", "tanh", "transpose", "unsqueeze",
    "var", "where",
]  # fmt: skip
