"""Dynamic Linear: float32 in and out, and integers, on a grid chosen from the input, in between.

Everybody is compared with the exact sum of its own integers, which its dialect knows to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from minquant.bench.job import Job
from minquant.bench.onnx_side import session
from minquant.bench.operation import Operation, Peer, Shape, Work
from minquant.bench.operations.products import SAFE
from minquant.bench.threads import environment
from minquant.bench.torch_side import on_each_engine, packed_linear, tensor, values
from minquant.quant import DynamicQuantizedLinear, PerChannel, PerToken, QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect

__all__ = ["OPERATIONS", "SHAPES", "VARIANTS"]

VARIANTS = ("reference", "fbgemm")
"""minquant's own dialect, and that of torch's default engine."""

SHAPES: dict[str, tuple[Shape, ...]] = {
    "few rows": ((1, 4096, 4096), (16, 4096, 4096)),
    "transformer": ((128, 768, 768), (128, 768, 3072), (128, 3072, 768)),
    "digits": ((64, 784, 512),),
}

WEIGHT = QSpec(symmetric=True, granularity=PerChannel())
INPUT = {
    "reference": QSpec(signed=False),
    "fbgemm": QSpec(signed=False, qmax=127),
    "x86": QSpec(signed=False, qmax=127),
    "onednn": QSpec(signed=False, qmax=127),
    "qnnpack": QSpec(signed=False),
    "onnxruntime": QSpec(signed=False),
    "torchao": QSpec(symmetric=True, granularity=PerToken()),
}
"""The kind of grid that each gives the input. torch's modules ask for reduce_range, which qnnpack ignores."""

ROUNDINGS = 8
"""Of the sum, of the scales' product, of their product, and of the bias's addition, by each side, at most."""


@dataclass(frozen=True)
class Layer:
    """An input ``(M, K)``, a weight ``(N, K)`` with a scale a channel, and a bias ``(N,)``."""

    x: np.ndarray
    qw: np.ndarray
    w_scale: np.ndarray
    bias: np.ndarray


@lru_cache(maxsize=1)
def draw(shape: Shape) -> Layer:
    """Normal inputs, and weights with which no engine's sums saturate."""
    M, K, N = shape
    rng = np.random.default_rng(shape)
    qw = rng.integers(-SAFE, SAFE, (N, K), np.int8, endpoint=True)
    x, bias = (rng.standard_normal(size).astype(np.float32) for size in ((M, K), N))
    return Layer(x, qw, rng.uniform(5e-4, 1e-3, N).astype(np.float32), bias)


def work(shape: Shape) -> Work:
    """``2·M·K·N`` operations; float32 inputs and results, int8 weights."""
    M, K, N = shape
    return Work(2 * M * K * N, 4 * M * K + K * N + 4 * M * N)


def job(
    call: Callable[[], object], get: Callable[[Any], np.ndarray], name: str, layer: Layer, exactly: bool = False
) -> Job:
    """A contestant that speaks the dialect of that name, to the last bit or but for its roundings."""
    dialect = get_dialect(name)
    with environment("MINQUANT_BACKEND", "numpy"):
        q, x_scale, zero_point = dialect.quantize_at_run_time(layer.x, INPUT[name])
        acc = (q.astype(np.float64) - zero_point) @ layer.qw.T.astype(np.float64)  # exact
        expected = dialect.rescale(acc.astype(np.int32), x_scale, layer.w_scale, layer.bias)
    size = np.abs(acc) * x_scale * layer.w_scale + np.abs(layer.bias)
    return Job(call, get, expected, 0.0 if exactly else ROUNDINGS * 2.0**-24 * size)


def ours(layer: Layer, variant: str) -> Job:
    """`DynamicQuantizedLinear`, as a model calls it."""
    weight = QTensor(layer.qw, QParams(layer.w_scale, np.zeros(len(layer.qw), np.int32), WEIGHT))
    module = DynamicQuantizedLinear(weight, layer.bias, INPUT[variant], variant)
    return job(partial(module, layer.x), lambda y: y.data, variant, layer, exactly=True)


# ---- the libraries ---------------------------------------------------------------------------------------------------


def _torch(engine: str, layer: Layer, threads: int) -> Job:
    import torch

    weight, x = packed_linear(engine, layer.qw, layer.w_scale, layer.bias), tensor(layer.x)
    reduce_range = engine != "qnnpack"
    return job(partial(torch.ops.quantized.linear_dynamic, x, weight, reduce_range), values, engine, layer)


def _torchao(layer: Layer, threads: int) -> Job:
    """Int8DynamicActivationInt8WeightConfig, which quantizes the weight itself."""
    import torch

    from minquant.crosscheck.quiet import import_torchao

    linear = torch.nn.Linear(*layer.qw.shape[::-1])
    real = layer.qw * layer.w_scale[:, np.newaxis]
    linear.load_state_dict({"weight": tensor(real), "bias": tensor(layer.bias)})
    model, ao = torch.nn.Sequential(linear).requires_grad_(False), import_torchao("torchao.quantization")
    ao.quantize_(model, ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    qw, w_scale = model[0].weight.qdata.numpy(), model[0].weight.scale.numpy().reshape(-1)
    x, theirs = tensor(layer.x), Layer(layer.x, qw, w_scale, layer.bias)
    return job(partial(model, x), values, "torchao", theirs)


GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
dynamic_linear (float[M,K] x) => (float[M,N] y) {
    q, x_scale, x_zero_point = DynamicQuantizeLinear(x)
    acc = MatMulInteger(q, w, x_zero_point)
    real = Cast<to = 1>(acc)
    scale = Mul(x_scale, w_scale)
    rescaled = Mul(real, scale)
    y = Add(rescaled, bias)
}
"""
"""Which onnxruntime makes one operation of."""


def _onnxruntime(layer: Layer, threads: int) -> Job:
    constants = {
        "w": np.ascontiguousarray(layer.qw.T),
        "w_scale": layer.w_scale,
        "bias": layer.bias,
    }  # (N, K) -> (K, N)
    call = partial(session(GRAPH, constants, threads).run, None, {"x": layer.x})
    return job(call, lambda outputs: outputs[0], "onnxruntime", layer)


def _numpy(layer: Layer, threads: int) -> Job:
    """The float layer that all of this replaces."""
    weight = layer.qw * layer.w_scale[:, np.newaxis]
    x, w = layer.x.astype(np.float64), weight.astype(np.float64)
    bound = (len(w[0]) + 1) * 2.0**-24 * (np.abs(x) @ np.abs(w).T + np.abs(layer.bias))
    return Job(lambda: layer.x @ weight.T + layer.bias, np.asarray, x @ w.T + layer.bias, bound)


ONNXRUNTIME, TORCHAO = "onnxruntime dynamic Linear", "torchao int8 dynamic Linear"

OPERATIONS = (
    Operation(
        "dynamic Linear",
        "M×K×N",
        SHAPES,
        draw,
        VARIANTS,
        ours,
        (
            *on_each_engine("torch quantized::linear_dynamic", _torch),
            Peer(ONNXRUNTIME, ONNXRUNTIME, ("onnxruntime", "onnx"), _onnxruntime),
            Peer(TORCHAO, TORCHAO, ("torch", "torchao"), _torchao),
            Peer("numpy float32", "numpy float32", ("threadpoolctl",), _numpy, integers=False),
        ),
        work,
    ),
)
