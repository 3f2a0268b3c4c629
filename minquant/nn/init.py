"""Initial values, written in place without a gradient.

Bit-equal to torch.nn.init after the same seed; normal_ within 2e-6 standard deviations. `quant_aware_` is not torch's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minquant import random
from minquant.tensor import Tensor, no_grad

if TYPE_CHECKING:
    from minquant.nn.module import Module
    from minquant.quant.spec import QParams


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


def quant_aware_(layer: Module, bits: int) -> QParams:
    """Moves the weight of a layer, as it is, to the nearest points of the symmetric grid on which it loses least.

    ``w = f(q · s)`` with ``q = clip(rint(w · f(1/s)), -2^(bits-1), 2^(bits-1) - 1)``. Each index of axis 0 (an output
    channel, or a row of a table) has the scale s that minimises ``Σ (w - s·q)²``; the search for it is exact, see
    `minquant.quant.optimal_scale`.

    Fake-quantizing the result on the grid that is returned changes no bit: the three roundings between q and
    ``w · f(1/s)`` move it by less than 2⁻¹⁵, far from the half step that would change it. The grid of an observer is
    another one. It puts amax at ``qmax + ½``, between two grid points, so that the default fake quantizer of weights,
    which observes at every step, leaves *no* channel unchanged, however it was initialised (but zeros). To train on the
    grid that is returned, let a learned scale start from it::

        grid = nn.init.quant_aware_(layer, 4)
        kind = {"dtype": "qint8", "qscheme": "per_channel_symmetric", "channel_len": len(grid.scale)}
        fake_quantizer = quant.LearnableFakeQuantize(quant.PerChannelMinMaxObserver, -8, 7, **kind)
        fake_quantizer.scale.data = grid.scale.copy()
        fake_quantizer.enable_param_learning()

    Args:
        layer: Linear, Conv1d, Conv2d, Embedding or EmbeddingBag. Its bias stays as it is.
        bits: 2 to 8.

    Returns:
        The grid: QParams per channel of axis 0.

    Raises:
        TypeError: a layer of another kind.
        ValueError: other bits; NaN or infinity in the weight.
    """
    from minquant import nn, quant
    from minquant.quant.optimal_scale import optimal_qparams

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.EmbeddingBag)
    if not isinstance(layer, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"quant_aware_: expected a layer with a weight ({names}), got {type(layer).__name__}")
    if bits not in range(2, 9):
        raise ValueError(f"quant_aware_: bits must be 2 to 8, got {bits!r}: integer layers have no other widths")
    grid = optimal_qparams(layer.weight.data, quant.QSpec(bits, symmetric=True, granularity=quant.PerChannel(0)))
    _fill(layer.weight, quant.fake_quantize(layer.weight.data, grid))
    return grid
