"""What static Linear and Conv2d are measured on: integers, grids of powers of two, and the right result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.bench.operation import Shape
from minquant.bench.operations.products import SAFE
from minquant.bench.torch_side import tensor
from minquant.quant import PerChannel, QParams, QSpec, QTensor

__all__ = ["StaticLayer", "draw_layer"]

UINT8 = QSpec(signed=False)
WEIGHT = QSpec(symmetric=True, granularity=PerChannel())
ZERO_POINT = 128
X_SCALE = 2.0**-5
LARGEST_BIAS = 1000
"""Steps of ``x_scale · w_scale``."""


@dataclass(frozen=True)
class StaticLayer:
    """An input, a weight with a scale a channel, a float32 bias, the grid of the result, and its integers."""

    x: QTensor
    weight: QTensor
    bias: np.ndarray
    output: QParams
    expected: np.ndarray

    def torch_input(self) -> Any:
        """The input as torch's quantized tensor."""
        import torch

        return torch._make_per_tensor_quantized_tensor(tensor(self.x.int_repr()), X_SCALE, ZERO_POINT)

    @property
    def torch_output(self) -> tuple[float, int]:
        """Scale and zero point of the result."""
        return float(self.output.scale), int(self.output.zero_point)


def draw_layer(x_shape: Shape, w_shape: Shape, product: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> StaticLayer:
    """Random integers, with which no engine's sums saturate.

    Args:
        x_shape: (N, …) of the input.
        w_shape: (M, …) of the weight.
        product: the layer's linear map of x and w in float64, channels on axis 1.
    """
    rng = np.random.default_rng((*x_shape, *w_shape))
    qx = rng.integers(0, 256, x_shape, np.uint8)
    qw = rng.integers(-SAFE, SAFE, w_shape, np.int8, endpoint=True)
    w_scale = (2.0 ** rng.integers(-8, -5, len(qw))).astype(np.float32)
    step = (X_SCALE * w_scale).astype(np.float32)
    bias = step * rng.integers(-LARGEST_BIAS, LARGEST_BIAS, len(qw)).astype(np.float32)
    acc = product(qx.astype(np.float64) - ZERO_POINT, qw.astype(np.float64))
    real = acc * _channels(step, acc.ndim) + _channels(bias, acc.ndim)
    scale = 2.0 ** np.ceil(np.log2(np.abs(real).max() / 127))
    expected = np.clip(np.rint(real / scale) + ZERO_POINT, 0, 255)
    weight = QTensor(qw, QParams(w_scale, np.zeros(len(qw), np.int32), WEIGHT))
    return StaticLayer(QTensor(qx, _grid(X_SCALE)), weight, bias, _grid(scale), expected)


def _grid(scale: float) -> QParams:
    return QParams(np.array(scale, np.float32), np.array(ZERO_POINT, np.int32), UINT8)


def _channels(values: np.ndarray, ndim: int) -> np.ndarray:
    return values.reshape(-1, *[1] * (ndim - 2))
