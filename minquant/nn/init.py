"""Initial values, written in place without a gradient.

Bit-equal to torch.nn.init after the same seed; normal_ within 2e-6 standard deviations.
"""

from __future__ import annotations

import math

import numpy as np

from minquant import random
from minquant.tensor import Tensor, no_grad


def _fill(tensor: Tensor, values: np.ndarray | float) -> Tensor:
    with no_grad():
        return tensor.copy_(np.asarray(values, tensor.dtype))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform in [a, b)."""
    if b < a:
        raise ValueError(f"uniform_: expected a <= b, got a={a}, b={b}")
    return _fill(tensor, random.uniform(tensor.shape, a, b))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal, with this mean and standard deviation."""
    if std < 0:
        raise ValueError(f"normal_: std must not be negative, got {std}")
    return _fill(tensor, random.randn(*tensor.shape).data * np.float32(std) + np.float32(mean))


def zeros_(tensor: Tensor) -> Tensor:
    """All 0."""
    return _fill(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """All 1."""
    return _fill(tensor, 1.0)


def kaiming_uniform_(tensor: Tensor, a: float = 0.0) -> Tensor:
    """Uniform within ±√3 · √(2 / (1 + a²)) / √fan_in, fan_in being the size of an output's input.

    It keeps the variance of activations from layer to layer behind a leaky ReLU of slope a.
    Source: He et al. 2015, eq. 14.
    """
    if tensor.ndim < 2:
        raise ValueError(f"kaiming_uniform_: expected a weight of 2 or more axes, got shape {tensor.shape}")
    std = math.sqrt(2 / (1 + a**2)) / math.sqrt(math.prod(tensor.shape[1:]))
    bound = math.sqrt(3) * std
    return uniform_(tensor, -bound, bound)
