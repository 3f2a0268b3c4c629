"""Linear with int4 weights in groups of 32: one token through the layers of a language model.

minquant quantizes the token to int8, the libraries' int4 products keep it in float. All weights are numbers that
bfloat16 has, so that everybody multiplies with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from minquant.bench.job import Job
from minquant.bench.operation import Operation, Peer, Shape, Work
from minquant.bench.threads import environment
from minquant.bench.torch_side import tensor, values
from minquant.quant import DynamicQuantizedLinear, PerGroup, PerToken, QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect

__all__ = ["OPERATIONS"]

GROUP = 32
WEIGHT = QSpec(bits=4, symmetric=True, granularity=PerGroup(GROUP))
INPUT = QSpec(granularity=PerToken())
SHAPES: dict[str, tuple[Shape, ...]] = {
    "one token": ((1, 768, 3072), (1, 4096, 4096), (1, 4096, 11008), (1, 11008, 4096))
}
FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-8


@dataclass(frozen=True)
class Layer:
    """A token ``(1, K)``, an int4 weight ``(N, K)`` and its scales ``(N, K / 32)``."""

    x: np.ndarray
    qw: np.ndarray
    w_scale: np.ndarray

    @cached_property
    def real(self) -> np.ndarray:
        """The weight's real values, exact in float32 and in bfloat16: four bits times three."""
        return self.qw * np.repeat(self.w_scale, GROUP, axis=1)

    @cached_property
    def size(self) -> np.ndarray:
        """``Σ_k |x[k]| |w[n, k]|``, (1, N)."""
        return np.abs(self.x.astype(np.float64)) @ np.abs(self.real).T.astype(np.float64)


@lru_cache(maxsize=1)
def draw(shape: Shape) -> Layer:
    """A normal token; both ends of the grid in each group, with which torchao chooses the same grid."""
    M, K, N = shape
    rng = np.random.default_rng(shape)
    qw = rng.integers(-8, 8, (N, K), np.int8)
    qw[:, ::GROUP], qw[:, 1::GROUP] = -8, 7
    w_scale = (rng.integers(4, 8, (N, K // GROUP)) * 2.0**-10).astype(np.float32)
    return Layer(rng.standard_normal((M, K)).astype(np.float32), qw, w_scale)


def work(shape: Shape) -> Work:
    """``2·M·K·N`` operations; half a byte for a weight, four for each other number."""
    M, K, N = shape
    return Work(2 * M * K * N, K * N // 2 + 4 * (K // GROUP) * N + 4 * M * K + 4 * M * N)


def ours(layer: Layer, variant: str) -> Job:
    """`DynamicQuantizedLinear`, as a model calls it: the sums of each group exact, rescaled and added in turn."""
    weight = QTensor(layer.qw, QParams(layer.w_scale, np.zeros(layer.w_scale.shape, np.int32), WEIGHT))
    module = DynamicQuantizedLinear(weight, None, INPUT, variant)
    with environment("MINQUANT_BACKEND", "numpy"):
        q, x_scale, zero_point = get_dialect(variant).quantize_at_run_time(layer.x, INPUT)
    expected = np.zeros((len(layer.x), len(layer.qw)), np.float32)
    for g, columns in enumerate(range(0, layer.x.shape[1], GROUP)):
        part = slice(columns, columns + GROUP)
        acc = (q[:, part].astype(np.float32) - zero_point.astype(np.float32)) @ layer.qw[:, part].T.astype(np.float32)
        expected += acc * (x_scale * layer.w_scale[:, g])
    return Job(partial(module, layer.x), lambda y: y.data, expected)  # type: ignore[attr-defined]


# ---- float -----------------------------------------------------------------------------------------------------------


def _float_job(call: Callable[[], object], get: Callable[[Any], np.ndarray], layer: Layer) -> Job:
    """A sum of K products in float32, in any order, and its addition to 0."""
    exact = layer.x.astype(np.float64) @ layer.real.T.astype(np.float64)
    return Job(call, get, exact, (layer.x.shape[1] + 1) * FLOAT32 * layer.size)


def _numpy(layer: Layer, threads: int) -> Job:
    weight = layer.real
    return _float_job(lambda: layer.x @ weight.T, np.asarray, layer)


def _torch_float32(layer: Layer, threads: int) -> Job:
    import torch

    return _float_job(partial(torch.nn.functional.linear, tensor(layer.x), tensor(layer.real)), values, layer)


def _bfloat16_job(call: Callable[[], object], layer: Layer) -> Job:
    """The token and the result are rounded to bfloat16, the sum is one of float32."""
    x = values(tensor(layer.x).bfloat16()).astype(np.float64)
    exact = x @ layer.real.T.astype(np.float64)
    sums = (layer.x.shape[1] + 1) * FLOAT32 * (1 + BFLOAT16) * layer.size
    return Job(call, values, exact, BFLOAT16 * np.abs(exact) + (1 + BFLOAT16) * sums)


# ---- int4 ------------------------------------------------------------------------------------------------------------


def _tinygemm(dtype: str, layer: Layer, threads: int) -> Job:
    import torch

    kind, (N, K) = getattr(torch, dtype), layer.qw.shape
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(tensor(layer.qw.astype(np.int32) + 8), 1)
    grid = torch.zeros(K // GROUP, N, 2, dtype=kind)  # of each group and channel: scale, and the real value of code 8
    grid[..., 0] = tensor(layer.w_scale.T)
    call = partial(torch.ops.aten._weight_int4pack_mm_for_cpu, tensor(layer.x).to(kind), packed, GROUP, grid)
    return _float_job(call, values, layer) if dtype == "float32" else _bfloat16_job(call, layer)


def _torchao(layer: Layer, threads: int) -> Job:
    """PrototypeInt4WeightOnlyConfig: of torchao's int4 configurations the one that runs on a CPU."""
    import torch

    from minquant.crosscheck.quiet import import_torchao

    linear = torch.nn.Linear(*layer.qw.shape[::-1], bias=False)
    linear.load_state_dict({"weight": tensor(layer.real)})
    model = torch.nn.Sequential(linear).bfloat16().requires_grad_(False)
    config = import_torchao("torchao.prototype.quantization.int4").PrototypeInt4WeightOnlyConfig
    import_torchao("torchao.quantization").quantize_(model, config(group_size=GROUP, set_inductor_config=False))
    return _bfloat16_job(partial(model, tensor(layer.x).bfloat16()), layer)


def _peer(name: str, needs: tuple[str, ...], prepare: Any, integers: bool = False) -> Peer:
    return Peer(name, name.split(", ")[0], needs, prepare, None, integers)


OPERATIONS = (
    Operation(
        "int4 Linear",
        "M×K×N",
        SHAPES,
        draw,
        ("reference",),
        ours,
        (
            _peer("torchao int4, bfloat16", ("torch", "torchao"), _torchao, integers=True),
            _peer("torch _weight_int4pack_mm, bfloat16", ("torch",), partial(_tinygemm, "bfloat16"), integers=True),
            _peer("torch _weight_int4pack_mm, float32", ("torch",), partial(_tinygemm, "float32"), integers=True),
            _peer("numpy float32", ("threadpoolctl",), _numpy),
            _peer("torch float32", ("torch",), _torch_float32),
        ),
        work,
    ),
)
