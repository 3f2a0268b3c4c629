"""The libraries that are measured beside minquant: what each needs, and how it is called at its best.

A library is imported when it is prepared; nothing but the call that does the work is timed. Layers get scales of powers
of two, with which their results are known exactly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minquant.bench.operands import Job, Operands

__all__ = ["PEERS", "Peer", "present"]

ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-8
"""Half the distance from 1 to the next number: the relative error of one rounding."""


@dataclass(frozen=True)
class Peer:
    """A library's way to the product.

    Args:
        name: its package and function.
        family: `name` without the engine.
        needs: modules that must be installed.
        left: dtype of the left operand that it takes; minquant gets the same.
        prepare: ``prepare(operands, threads)``.
        keeps: whether it keeps its right operand prepared, in whatever way; if not, it does all its work in the call.
        integers: whether it multiplies integers.
        engine: torch's engine that it needs, if any.
    """

    name: str
    family: str
    needs: tuple[str, ...]
    left: str
    prepare: Callable[[Operands, int], Job]
    keeps: bool
    integers: bool
    engine: str = ""


def present() -> tuple[list[Peer], dict[str, str]]:
    """Those that are installed; and of the others, why not."""
    missing = {peer.name: why for peer in PEERS if (why := _obstacle(peer))}
    return [peer for peer in PEERS if peer.name not in missing], missing


def _obstacle(peer: Peer) -> str:
    absent = [module for module in peer.needs if importlib.util.find_spec(module) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if peer.engine:
        import torch

        if peer.engine not in torch.backends.quantized.supported_engines:
            return f"this torch was built without {peer.engine}"
    return ""


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def _rounding(operands: Operands) -> np.ndarray:
    """``K·2⁻²⁴·max|a|·Σ_k |b[k, n]|``: the error of a sum of K products in float32, in any order."""
    return operands.a.shape[1] * FLOAT32 * operands.columns


def _numpy_float32(operands: Operands, threads: int) -> Job:
    a, b = operands.a.astype(np.float32), operands.b.astype(np.float32)
    return Job(lambda: a @ b, np.asarray, operands.product, _rounding(operands))


# ---- torch -----------------------------------------------------------------------------------------------------------


def _torch_float32(operands: Operands, threads: int) -> Job:
    import torch

    a, b = (torch.from_numpy(x.astype(np.float32)) for x in (operands.a, operands.b))
    return Job(lambda: a @ b, _torch_values, operands.product, _rounding(operands))


def _torch_bfloat16(operands: Operands, threads: int) -> Job:
    """Integers up to 256 are bfloat16 numbers; the sum is rounded to one at the end."""
    import torch

    a, b = (torch.from_numpy(x.astype(np.float32)).bfloat16() for x in (operands.a, operands.b))
    bound = BFLOAT16 * np.abs(operands.product) + (1 + BFLOAT16) * _rounding(operands)
    return Job(lambda: a @ b, lambda y: _torch_values(y.float()), operands.product, bound)  # type: ignore[attr-defined]


def _int_mm(operands: Operands, threads: int) -> Job:
    import torch

    a, b = torch.from_numpy(operands.a), torch.from_numpy(operands.b)
    return Job(lambda: torch._int_mm(a, b), _torch_values, operands.product)


def _linear(engine: str, operands: Operands, threads: int) -> Job:
    """uint8 in and out: the sum is divided by a power of two, rounded to the nearest integer, ties to even, and cut."""
    import torch

    packed = _prepacked(engine, operands)
    x = torch._make_per_tensor_quantized_tensor(torch.from_numpy(operands.a), 1.0, 0)
    scale = 2.0 ** np.ceil(np.log2(max(1.0, np.abs(operands.product).max() / 127)))
    expected = np.clip(np.rint(operands.product / scale) + 128, 0, 255)
    call = partial(torch.ops.quantized.linear, x, packed, scale, 128)
    return Job(call, lambda y: y.int_repr().numpy(), expected)  # type: ignore[attr-defined]


def _linear_dynamic(engine: str, operands: Operands, threads: int) -> Job:
    """float32 in and out, the step chosen in between. It is 1, and nothing is lost but by rounding to float32: of the
    step, the sum, and their products with each other and with the weight's scale.
    """
    import torch

    packed = _prepacked(engine, operands)
    x = torch.from_numpy(operands.a.astype(np.float32))
    call = partial(torch.ops.quantized.linear_dynamic, x, packed, False)  # no reduce_range
    return Job(call, _torch_values, operands.product, 4 * FLOAT32 * operands.columns)


def _prepacked(engine: str, operands: Operands) -> Any:
    """A layer's weight, one for each: onednn's static Linear leaves in it what its dynamic one dies of."""
    import torch

    torch.backends.quantized.engine = engine
    weight = torch.from_numpy(np.ascontiguousarray(operands.b.T))  # (K, N) -> (N, K)
    return torch.ops.quantized.linear_prepack(torch._make_per_tensor_quantized_tensor(weight, 1.0, 0), None)


def _torch_values(result: Any) -> np.ndarray:
    return result.numpy()


# ---- onnxruntime -----------------------------------------------------------------------------------------------------


def _matmul_integer(operands: Operands, threads: int) -> Job:
    """A session with the right operand as a constant, which it packs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Its threads spin for their next work; those of one contestant must not during the next one's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(_model(operands), options, providers=["CPUExecutionProvider"])
    call = partial(session.run, None, {"A": operands.a})
    return Job(call, lambda outputs: outputs[0], operands.product)  # type: ignore[index]


def _model(operands: Operands) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMulInteger", ["A", "B"], ["Y"])
    left = helper.np_dtype_to_tensor_dtype(operands.a.dtype)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("A", left, operands.a.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.INT32, operands.product.shape)],
        [numpy_helper.from_array(operands.b, "B")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


# ---- all of them -----------------------------------------------------------------------------------------------------


def _layers(family: str, prepare: Callable[[str, Operands, int], Job]) -> list[Peer]:
    """On each engine."""
    return [
        Peer(f"{family}, {engine}", family, ("torch",), "uint8", partial(prepare, engine), True, True, engine)
        for engine in ENGINES
    ]


def _plain(name: str, needs: tuple[str, ...], left: str, prepare: Any, keeps: bool, integers: bool) -> Peer:
    return Peer(name, name, needs, left, prepare, keeps, integers)


PEERS = (
    *_layers("torch quantized::linear", _linear),
    *_layers("torch quantized::linear_dynamic", _linear_dynamic),
    _plain("torch._int_mm", ("torch",), "int8", _int_mm, keeps=False, integers=True),
    _plain("onnxruntime MatMulInteger", ("onnxruntime", "onnx"), "uint8", _matmul_integer, keeps=True, integers=True),
    _plain("numpy float32", ("threadpoolctl",), "uint8", _numpy_float32, keeps=False, integers=False),
    _plain("torch float32", ("torch",), "uint8", _torch_float32, keeps=False, integers=False),
    _plain("torch bfloat16", ("torch",), "uint8", _torch_bfloat16, keeps=False, integers=False),
)
