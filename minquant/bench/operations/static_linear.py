"""Static Linear: uint8 in and out.

All scales are powers of two and the bias is a whole number of steps, so that every dialect and every engine rounds the
same exact number, once: the right integers are known.
"""

from __future__ import annotations

from functools import lru_cache, partial

from minquant.bench.job import Job
from minquant.bench.operation import Operation, Shape, Work
from minquant.bench.operations.dynamic_linear import SHAPES, VARIANTS
from minquant.bench.operations.static_layer import StaticLayer, draw_layer
from minquant.bench.torch_side import on_each_engine, packed_linear, values
from minquant.quant import QuantizedLinear

__all__ = ["OPERATIONS"]


@lru_cache(maxsize=1)
def draw(shape: Shape) -> StaticLayer:
    """``(M, K)`` and ``(N, K)``."""
    M, K, N = shape
    return draw_layer((M, K), (N, K), lambda x, w: x @ w.T)


def work(shape: Shape) -> Work:
    """``2·M·K·N`` operations; a byte for every number."""
    M, K, N = shape
    return Work(2 * M * K * N, M * K + K * N + M * N)


def ours(layer: StaticLayer, variant: str) -> Job:
    """`QuantizedLinear`, as a model calls it."""
    module = QuantizedLinear(layer.weight, layer.bias, layer.output, variant)
    return Job(partial(module, layer.x), lambda y: y.int_repr(), layer.expected)  # type: ignore[attr-defined]


def _torch(engine: str, layer: StaticLayer, threads: int) -> Job:
    import torch

    weight = packed_linear(engine, layer.weight.int_repr(), layer.weight.qparams.scale, layer.bias)
    call = partial(torch.ops.quantized.linear, layer.torch_input(), weight, *layer.torch_output)
    return Job(call, values, layer.expected)


OPERATIONS = (
    Operation(
        "static Linear",
        "M×K×N",
        SHAPES,
        draw,
        VARIANTS,
        ours,
        on_each_engine("torch quantized::linear", _torch),
        work,
    ),
)
