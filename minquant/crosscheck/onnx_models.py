"""onnx's and onnxruntime's side of a comparison: one operator as a model, built once for each signature.

Importing this needs neither; the functions need onnx, and `onnxruntime_outputs` onnxruntime too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

__all__ = ["onnxruntime_dynamic_linear", "onnxruntime_outputs", "reference_outputs", "unmixed"]

OPSET, IR_VERSION = 21, 10
OPERANDS = {
    "MatMulInteger": (("A", "a_zero_point"), ("B", "b_zero_point")),
    "ConvInteger": (("x", "x_zero_point"), ("w", "w_zero_point")),
    "QLinearMatMul": (("a", "a_zero_point"), ("b", "b_zero_point")),
    "QLinearConv": (("x", "x_zero_point"), ("w", "w_zero_point")),
}

DYNAMIC_LINEAR = """
<ir_version: 10, opset_import: ["" : 21]>
dynamic_linear (float[M,K] x, uint8[K,N] w, uint8 w_zero_point, float{channels} w_scale, float[N] bias)
    => (float[M,N] y) {{
    q, x_scale, x_zero_point = DynamicQuantizeLinear(x)
    acc = MatMulInteger(q, w, x_zero_point, w_zero_point)
    real = Cast<to = 1>(acc)
    scale = Mul(x_scale, w_scale)
    rescaled = Mul(real, scale)
    y = Add(rescaled, bias)
}}
"""

Signature = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, Any], ...]]
"""Names and types of the inputs, names and values of the attributes."""


def reference_outputs(operator: str, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """What onnx's reference implementation makes of arrays (the operator's inputs) and other values (attributes)."""
    feeds, signature = _split(inputs)
    return [_plain(output) for output in _reference(operator, signature).run(None, feeds)]


def onnxruntime_outputs(operator: str, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """What onnxruntime makes of them on the CPU, on one thread, the graph as it is.

    Where the processor lacks VNNI, its products of uint8 and int8 saturate in int16, which the operators do not allow;
    there they are put as the same products of uint8 and uint8.
    """
    mixed_products_saturate = operator in OPERANDS and _saturates()
    feeds, signature = _split(unmixed(operator, inputs) if mixed_products_saturate else inputs)
    return [_plain(output) for output in _session(operator, signature).run(None, feeds)]


def onnxruntime_dynamic_linear(x: np.ndarray, qw: np.ndarray, w_scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What a dynamic Linear with an int8 weight (N, K) makes of x in onnxruntime, the graph optimized.

    The weight goes in as uint8, 128 higher, with which nothing saturates on any processor.
    """
    feeds = {"x": x, "w": np.ascontiguousarray(_above(qw).T), "w_zero_point": np.array(128, np.uint8)}
    return _dynamic_session(w_scale.ndim).run(None, feeds | {"w_scale": w_scale, "bias": bias})[0]


def unmixed(operator: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same product of two uint8 operands, where one is uint8 and the other int8: ``q + 128`` and ``z + 128``."""
    (first, _), (second, _) = OPERANDS[operator]
    if inputs[first].dtype == inputs[second].dtype:
        return dict(inputs)
    moved = dict(inputs)
    for operand, zero_point in OPERANDS[operator]:
        if inputs[operand].dtype == np.int8:
            moved[operand] = _above(inputs[operand])
            moved[zero_point] = _above(inputs.get(zero_point, np.zeros((), np.int8)))
    return moved


def _above(q: np.ndarray) -> np.ndarray:
    return np.asarray(q.astype(np.int16) + 128).astype(np.uint8)


@cache
def _saturates() -> bool:
    inputs = {"A": np.full((1, 4), 255, np.uint8), "B": np.full((4, 1), 127, np.int8)}
    feeds, signature = _split(inputs)
    return bool(_session("MatMulInteger", signature).run(None, feeds)[0][0, 0] != 4 * 255 * 127)


def _split(inputs: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], Signature]:
    feeds = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    attributes = {name: value for name, value in inputs.items() if name not in feeds and value is not None}
    types = tuple((name, str(array.dtype)) for name, array in feeds.items())
    return feeds, (types, tuple(attributes.items()))


def _plain(output: np.ndarray) -> np.ndarray:
    """Integers of 2 and 4 bits, which are no types of NumPy's own, one a byte."""
    if output.dtype.kind in "iuf":
        return output
    return output.astype(np.uint8 if str(output.dtype).startswith("u") else np.int8)


def _model(operator: str, signature: Signature) -> Any:
    from onnx import TensorProto, defs, helper

    types, attributes = dict(signature[0]), dict(signature[1])
    if "output_dtype" in attributes:
        attributes["output_dtype"] = TensorProto.DataType.Value(attributes["output_dtype"].upper())
    schema = defs.get_schema(operator, OPSET)
    names = [formal.name if formal.name in types else "" for formal in schema.inputs]
    outputs = [formal.name for formal in schema.outputs]
    node = helper.make_node(operator, names, outputs, **attributes)
    feeds = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
        for name, dtype in types.items()
    ]
    graph = helper.make_graph([node], operator, feeds, [helper.make_empty_tensor_value_info(name) for name in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


@cache
def _reference(operator: str, signature: Signature) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(_model(operator, signature))


@cache
def _session(operator: str, signature: Signature) -> Any:
    return _onnxruntime(_model(operator, signature), optimized=False)


@cache
def _dynamic_session(axes_of_scale: int) -> Any:
    from onnx import parser

    text = DYNAMIC_LINEAR.format(channels="[N]" if axes_of_scale else "")
    return _onnxruntime(parser.parse_model(text), optimized=True)


def _onnxruntime(model: Any, optimized: bool) -> Any:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
