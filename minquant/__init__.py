"""Neural-network quantization from scratch, on a NumPy autograd core."""

from __future__ import annotations

# Tensors and their operations need each other: tensor.py, loaded first, brings in the rest.
from minquant.tensor import Tensor, no_grad

# isort: split
from minquant import functional, nn, optim
from minquant.random import manual_seed, rand, randn

__all__ = ["Tensor", "functional", "manual_seed", "nn", "no_grad", "optim", "rand", "randn"]
