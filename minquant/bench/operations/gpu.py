"""On a GPU: the integer product and the dynamic Linear, beside torchao's and bfloat16.

Every call ends when the GPU has done its work. Of a result, some rows are compared with what they should be: enough to
find a wrong kernel, and few enough for the CPU to compute.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minquant.bench.job import Job
from minquant.bench.operation import Operation, Peer, Shape
from minquant.bench.operations.dynamic_linear import WEIGHT, Layer
from minquant.bench.operations.dynamic_linear import draw as draw_layer
from minquant.bench.operations.products import Operands, operands
from minquant.bench.torch_side import values
from minquant.quant import DynamicQuantizedLinear, PerToken, QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect

__all__ = ["DEVICE", "OPERATIONS", "SHAPES"]

DEVICE = "cuda"
SHAPES: dict[str, tuple[Shape, ...]] = {"square": tuple((n, n, n) for n in (1024, 2048, 4096, 8192))}
ROWS = 64
"""How many rows of a result are compared, at most."""

FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-8
INPUT = {"per token": QSpec(symmetric=True, granularity=PerToken()), "per tensor": QSpec(signed=False)}


def obstacle() -> str:
    """Why nothing can be measured on a GPU here; "" if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch not installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


def rows_of(count: int) -> np.ndarray:
    """Which rows are compared: the first, the last, and some between."""
    return np.unique(np.linspace(0, count - 1, ROWS).astype(int))


def on_gpu(array: np.ndarray) -> Any:
    """A tensor there."""
    import torch

    return torch.tensor(np.ascontiguousarray(array), device=DEVICE)


def timed(call: Callable[[], Any]) -> Any:
    """What it returns, once it is there."""
    import torch

    result = call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


def job(call: Callable[[], Any], rows: np.ndarray, expected: np.ndarray, bound: np.ndarray | float = 0.0) -> Job:
    """A contestant, of whose result these rows are compared."""
    return Job(partial(timed, call), lambda y: values(y[rows].cpu()), expected, bound)  # type: ignore[index]


# ---- the integer product ---------------------------------------------------------------------------------------------


def product_job(call: Callable[[], Any], given: Operands, rounding: float = 0.0) -> Job:
    """Exact, or in bfloat16, whose sums are of float32 and rounded at the end."""
    rows = rows_of(len(given.a))
    exact = given.a[rows].astype(np.float64) @ given.b.astype(np.float64)
    sums = given.a.shape[1] * FLOAT32 * given.columns if rounding else 0.0
    return job(call, rows, exact, rounding * np.abs(exact) + (1 + rounding) * sums)


def our_product(given: Operands, variant: str) -> Job:
    """With the right operand laid out once, as a layer keeps its weight."""
    from minquant.kernels import cuda

    left = given.left(variant)
    a, b = on_gpu(left.a), cuda.columns_of(on_gpu(left.b.T).T)
    return product_job(partial(cuda.product, a, b), left)


def _int_mm(given: Operands, threads: int) -> Job:
    import torch

    left = given.left("int8")
    a, b = on_gpu(left.a), on_gpu(left.b.T).T
    return product_job(partial(torch._int_mm, a, b), left)


def _bfloat16_product(given: Operands, threads: int) -> Job:
    """Integers up to 256 are bfloat16 numbers."""
    a, b = on_gpu(given.a).bfloat16(), on_gpu(given.b).bfloat16()
    return product_job(lambda: a @ b, given, BFLOAT16)


# ---- dynamic Linear --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """The real result of some rows, and how large the terms are that it is the sum of."""

    rows: np.ndarray
    exact: np.ndarray
    size: np.ndarray
    steps: np.ndarray


def in_real_values(layer: Layer) -> Expected:
    """Of the unrounded input: `steps` is what half a step in every input value changes, at most."""
    rows, weight = rows_of(len(layer.x)), (layer.qw * layer.w_scale[:, np.newaxis]).astype(np.float64)
    x, bias = layer.x[rows].astype(np.float64), layer.bias.astype(np.float64)
    half_step = np.abs(x).max(axis=1, keepdims=True) / 254
    return Expected(rows, x @ weight.T + bias, np.abs(x) @ np.abs(weight).T + np.abs(bias),
                    half_step * np.abs(weight).sum(axis=1))  # fmt: skip


def our_linear(layer: Layer, variant: str) -> Job:
    """A converted model on the GPU, and minquant's own result of it in NumPy: the same to the last bit."""
    from minquant.interop import to_torch

    weight = QTensor(layer.qw, QParams(layer.w_scale, np.zeros(len(layer.qw), np.int32), WEIGHT))
    model = to_torch(DynamicQuantizedLinear(weight, layer.bias, INPUT[variant], "reference"), DEVICE)
    rows, dialect = rows_of(len(layer.x)), get_dialect("reference")
    q, x_scale, zero_point = dialect.quantize_at_run_time(layer.x, INPUT[variant])
    x_scale, zero_point = (v[rows] if v.ndim else v for v in (x_scale, zero_point))
    acc = (q[rows].astype(np.float64) - zero_point) @ layer.qw.T.astype(np.float64)  # exact
    expected = dialect.rescale(acc.astype(np.int32), x_scale, layer.w_scale, layer.bias)
    return job(partial(model, on_gpu(layer.x)), rows, expected)


def _torchao(dtype: str, compiled: bool, layer: Layer, threads: int) -> Job:
    """Int8DynamicActivationInt8WeightConfig, which quantizes the weight itself."""
    import torch

    from minquant.crosscheck.quiet import import_torchao

    linear = torch.nn.Linear(*layer.qw.shape[::-1])
    real = layer.qw * layer.w_scale[:, np.newaxis]
    linear.load_state_dict({"weight": torch.tensor(real), "bias": torch.tensor(layer.bias)})
    kind = getattr(torch, dtype)
    model = torch.nn.Sequential(linear).to(DEVICE, kind).requires_grad_(False)
    ao = import_torchao("torchao.quantization")
    ao.quantize_(model, ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    held = model[0].weight
    theirs = replace(layer, qw=held.qdata.cpu().numpy(), w_scale=held.scale.float().cpu().numpy().reshape(-1))
    right, rounding = in_real_values(theirs), FLOAT32 if dtype == "float32" else BFLOAT16
    run = torch.compile(model) if compiled else model
    return job(partial(run, on_gpu(layer.x).to(kind)), right.rows, right.exact, right.steps + 8 * rounding * right.size)


def _bfloat16_linear(layer: Layer, threads: int) -> Job:
    """The layer that all of this replaces: input, weight and result rounded to bfloat16."""
    import torch

    weight = on_gpu(layer.qw * layer.w_scale[:, np.newaxis]).bfloat16()
    x, bias, right = on_gpu(layer.x).bfloat16(), on_gpu(layer.bias).bfloat16(), in_real_values(layer)
    return job(partial(torch.nn.functional.linear, x, weight, bias), right.rows, right.exact, 4 * BFLOAT16 * right.size)


TORCHAO, BFLOAT16_ON_GPU = "torchao int8 dynamic Linear on CUDA", "torch bfloat16 on CUDA"


def _torchao_peer(dtype: str, compiled: bool) -> Peer:
    """As it is, or compiled, which is how torchao means to be used."""
    name = f"{TORCHAO}, {dtype}{', compiled' * compiled}"
    needs = ("torch", "torchao", *(["triton"] * compiled))
    return Peer(name, TORCHAO, needs, partial(_torchao, dtype, compiled), "per token")


OPERATIONS = (
    Operation(
        "GPU int8_matmul",
        "M×K×N",
        SHAPES,
        operands,
        ("int8", "uint8"),
        our_product,
        (
            Peer("torch._int_mm on CUDA", "torch._int_mm on CUDA", ("torch",), _int_mm, "int8"),
            Peer(BFLOAT16_ON_GPU, BFLOAT16_ON_GPU, ("torch",), _bfloat16_product, integers=False),
        ),
        threads=(1,),
        obstacle=obstacle,
    ),
    Operation(
        "GPU dynamic Linear",
        "M×K×N",
        SHAPES,
        draw_layer,
        tuple(INPUT),
        our_linear,
        (
            *(_torchao_peer(dtype, compiled) for dtype in ("float32", "bfloat16") for compiled in (False, True)),
            Peer(BFLOAT16_ON_GPU, BFLOAT16_ON_GPU, ("torch",), _bfloat16_linear, integers=False),
        ),
        threads=(1,),
        obstacle=obstacle,
    ),
)
