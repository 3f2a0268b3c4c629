"""The libraries' products: what each needs, and how it is called at its best.

Nothing but the call that does the work is timed. Layers get scales of powers of two, with which their results are known
exactly.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minquant.bench.job import Job
from minquant.bench.onnx_side import session
from minquant.bench.operation import Peer
from minquant.bench.operations.products import Operands
from minquant.bench.torch_side import on_each_engine, packed_linear, tensor, values

__all__ = ["KEEPING", "NUMPY", "WHOLE"]

FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-8
"""Half the distance from 1 to the next number: the relative error of one rounding."""


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def _rounding(data: Operands) -> np.ndarray:
    """``K·2⁻²⁴·max|a|·Σ_k |b[k, n]|``: the error of a sum of K products in float32, in any order."""
    return data.a.shape[1] * FLOAT32 * data.columns


def _numpy_float32(data: Operands, threads: int) -> Job:
    a, b = data.a.astype(np.float32), data.b.astype(np.float32)
    return Job(lambda: a @ b, np.asarray, data.product, _rounding(data))


# ---- torch -----------------------------------------------------------------------------------------------------------


def _torch_float32(data: Operands, threads: int) -> Job:
    a, b = (tensor(x.astype(np.float32)) for x in (data.a, data.b))
    return Job(lambda: a @ b, values, data.product, _rounding(data))


def _torch_bfloat16(data: Operands, threads: int) -> Job:
    """Integers up to 256 are bfloat16 numbers; the sum is rounded to one at the end."""
    a, b = (tensor(x.astype(np.float32)).bfloat16() for x in (data.a, data.b))
    bound = BFLOAT16 * np.abs(data.product) + (1 + BFLOAT16) * _rounding(data)
    return Job(lambda: a @ b, values, data.product, bound)


def _int_mm(data: Operands, threads: int) -> Job:
    import torch

    given = data.left("int8")
    a, b = tensor(given.a), tensor(given.b)
    return Job(lambda: torch._int_mm(a, b), values, given.product)


def _linear(engine: str, data: Operands, threads: int) -> Job:
    """uint8 in and out: the sum is divided by a power of two, rounded to the nearest integer, ties to even, and cut."""
    import torch

    weight = _weight(engine, data)
    x = torch._make_per_tensor_quantized_tensor(tensor(data.a), 1.0, 0)
    scale = 2.0 ** np.ceil(np.log2(max(1.0, np.abs(data.product).max() / 127)))
    expected = np.clip(np.rint(data.product / scale) + 128, 0, 255)
    call = partial(torch.ops.quantized.linear, x, weight, scale, 128)
    return Job(call, values, expected)


def _linear_dynamic(engine: str, data: Operands, threads: int) -> Job:
    """float32 in and out, the step chosen in between. It is 1, and nothing is lost but by rounding to float32: of the
    step, the sum, and their products with each other and with the weight's scale.
    """
    import torch

    weight = _weight(engine, data)
    x = tensor(data.a.astype(np.float32))
    call = partial(torch.ops.quantized.linear_dynamic, x, weight, False)  # no reduce_range
    return Job(call, values, data.product, 4 * FLOAT32 * data.columns)


def _weight(engine: str, data: Operands) -> Any:
    return packed_linear(engine, np.ascontiguousarray(data.b.T), np.ones((), np.float32), None)  # (K, N) -> (N, K)


# ---- onnxruntime -----------------------------------------------------------------------------------------------------

PRODUCT = """
<ir_version: 10, opset_import: ["" : 21]>
product (uint8[M,K] A) => (int32[M,N] Y) { Y = MatMulInteger(A, B) }
"""


def _matmul_integer(data: Operands, threads: int) -> Job:
    """With the right operand as a constant, which it packs."""
    call = partial(session(PRODUCT, {"B": data.b}, threads).run, None, {"A": data.a})
    return Job(call, lambda outputs: outputs[0], data.product)  # type: ignore[index]


# ---- all of them -----------------------------------------------------------------------------------------------------


def _plain(name: str, needs: tuple[str, ...], prepare: Any, left: str = "uint8", integers: bool = False) -> Peer:
    return Peer(name, name, needs, prepare, left, integers)


NUMPY = _plain("numpy float32", ("threadpoolctl",), _numpy_float32)

KEEPING = (
    *on_each_engine("torch quantized::linear", _linear, "uint8"),
    *on_each_engine("torch quantized::linear_dynamic", _linear_dynamic, "uint8"),
    _plain("onnxruntime MatMulInteger", ("onnxruntime", "onnx"), _matmul_integer, integers=True),
)
"""Those that keep their right operand prepared, in whatever way."""

WHOLE = (
    _plain("torch._int_mm", ("torch",), _int_mm, "int8", integers=True),
    NUMPY,
    _plain("torch float32", ("torch",), _torch_float32),
    _plain("torch bfloat16", ("torch",), _torch_bfloat16),
)
"""Those that do all their work in the call."""
