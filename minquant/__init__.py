"""Neural-network quantization from scratch, on a NumPy autograd core."""

from __future__ import annotations

# Tensors and their operations need each other: tensor.py, loaded first, brings in the rest.
from minquant.tensor import Tensor, no_grad

# isort: split
from minquant import functional, nn, optim, quant
from minquant.loading import load
from minquant.random import manual_seed, rand, randn
from minquant.saving import save

__all__ = [
    "Tensor", "functional", "load", "manual_seed", "nn", "no_grad", "optim", "quant", "rand", "randn", "save",
]  # fmt: skip
