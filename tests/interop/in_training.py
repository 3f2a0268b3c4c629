"""Layers in training, run by minquant and by torch on the same input: operands equal, sums within their bound."""

from __future__ import annotations

import numpy as np
import torch

from minquant import Tensor

UNIT = 2.0**-24


def gamma(n: int) -> float:
    """How far n roundings to float32 can move a sum, as a share of the sum of its terms' sizes (Higham 2002, 3.1)."""
    return n * UNIT / (1 - n * UNIT)


def host(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def operands(module, kinds) -> list[np.ndarray]:
    """What every fake quantizer of a minquant or torch module returns, in order; a call of it fills the list."""
    heard: list[np.ndarray] = []

    def hear(module, inputs, output):
        heard.append(output.data.copy() if isinstance(output, Tensor) else host(output))

    for child in module.modules():
        if type(child).__name__ in kinds:
            child.register_forward_hook(hear)
    return heard


def run(module, x: np.ndarray, gradient: np.ndarray):
    """Output, and the gradients of the input and of every parameter by name."""
    wrap = Tensor if not isinstance(module, torch.nn.Module) else torch.tensor
    given = wrap(x) if x.dtype.kind == "i" else wrap(x, requires_grad=True)
    y = module(given)
    y.backward(wrap(gradient))
    by = {name: p.grad for name, p in module.named_parameters()} | {"input": given.grad}
    arrays = {name: None if g is None else (g.data if isinstance(g, Tensor) else host(g)) for name, g in by.items()}
    return (y.data if isinstance(y, Tensor) else host(y)), arrays
