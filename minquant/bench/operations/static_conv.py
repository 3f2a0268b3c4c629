"""Static Conv2d: uint8 in and out, on layers of a ResNet, a depthwise one, and one of a small network for digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from minquant.bench.job import Job
from minquant.bench.operation import Operation, Shape, Work
from minquant.bench.operations.dynamic_linear import VARIANTS
from minquant.bench.operations.static_layer import StaticLayer, draw_layer
from minquant.bench.torch_side import on_each_engine, packed_conv, values
from minquant.functional.geometry import Geometry
from minquant.quant import QuantizedConv2d

__all__ = ["OPERATIONS"]

AXES = "N×C×H×W×M×k×s×g"
SHAPES: dict[str, tuple[Shape, ...]] = {
    "ResNet": (
        (1, 64, 56, 56, 64, 3, 1, 1),
        (1, 256, 56, 56, 64, 1, 1, 1),
        (1, 512, 7, 7, 512, 3, 1, 1),
        (1, 3, 224, 224, 64, 7, 2, 1),
        (8, 64, 56, 56, 64, 3, 1, 1),
        (8, 256, 14, 14, 256, 3, 1, 1),
    ),
    "depthwise": ((1, 128, 28, 28, 128, 3, 1, 128),),
    "digits": ((64, 16, 8, 8, 32, 3, 1, 1),),
}
"""s: stride, g: groups; the padding is ``k // 2``."""


@dataclass(frozen=True)
class Conv:
    """A layer, and how its kernel slides: stride, padding, groups."""

    layer: StaticLayer
    stride: int
    padding: int
    groups: int


@lru_cache(maxsize=1)
def draw(shape: Shape) -> Conv:
    """(N, C, H, W) and (M, C/groups, k, k)."""
    N, C, H, W, M, k, stride, groups = shape
    geometry = Geometry.of("conv", (k, k), stride, k // 2, 1, groups)

    def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        columns, filters = geometry.columns(x, 0), geometry.filters(w)  # (G, R, K), (G, M/G, K)
        sums = columns @ filters.swapaxes(1, 2)  # (G, R, M/G)
        return geometry.images(np.concatenate(list(sums), axis=1), x.shape)

    return Conv(draw_layer((N, C, H, W), (M, C // groups, k, k), product), stride, k // 2, groups)


def work(shape: Shape) -> Work:
    """``2·N·M·H'·W'·(C/groups)·k²`` operations; a byte for every number."""
    N, C, H, W, M, k, stride, groups = shape
    places = N * -(-H // stride) * -(-W // stride)
    window = C // groups * k * k
    return Work(2 * places * M * window, N * C * H * W + M * window + places * M)


def ours(conv: Conv, variant: str) -> Job:
    """`QuantizedConv2d`, as a model calls it."""
    layer = conv.layer
    slides = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
    module = QuantizedConv2d(layer.weight, layer.bias, layer.output, variant, **slides)
    return Job(partial(module, layer.x), lambda y: y.int_repr(), layer.expected)  # type: ignore[attr-defined]


def _torch(engine: str, conv: Conv, threads: int) -> Job:
    """On an input with its channels last, as torch's engines like it best."""
    import torch

    layer = conv.layer
    slides = conv.stride, conv.padding, conv.groups
    weight = packed_conv(engine, layer.weight.int_repr(), layer.weight.qparams.scale, layer.bias, *slides)
    x = layer.torch_input().contiguous(memory_format=torch.channels_last)
    return Job(partial(torch.ops.quantized.conv2d, x, weight, *layer.torch_output), values, layer.expected)


OPERATIONS = (
    Operation(
        "static Conv2d",
        AXES,
        SHAPES,
        draw,
        VARIANTS,
        ours,
        on_each_engine("torch quantized::conv2d", _torch),
        work,
    ),
)
