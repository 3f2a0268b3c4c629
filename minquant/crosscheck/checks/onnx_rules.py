"""ONNX's quantized operators, against onnx's reference implementation and against onnxruntime.

QLinearMatMul and QLinearConv are compared with each in its own order of rounding, which the specification leaves open.
What each of the two does not have is told in `minquant.crosscheck.onnx_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from minquant.quant.dialects import onnx
from minquant.quant.dialects.onnx_products import in_double, in_single

from ..onnx_inputs import (
    draw_conv,
    draw_dequantize,
    draw_dynamic,
    draw_matmul,
    draw_narrow,
    draw_qlinear_conv,
    draw_qlinear_matmul,
    draw_quantize,
)
from ..onnx_models import onnxruntime_outputs, reference_outputs
from ..suite import Check, Inputs, Outputs

__all__ = ["CHECKS"]

PEERS: dict[str, tuple[str, Any]] = {
    "reference": ("onnx.reference.ReferenceEvaluator of {}", reference_outputs),
    "onnxruntime": ("onnxruntime.InferenceSession of {}", onnxruntime_outputs),
}
ROUNDING = {"reference": in_double, "onnxruntime": in_single}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": onnx.quantize_linear,
    "DequantizeLinear": onnx.dequantize_linear,
    "DynamicQuantizeLinear": onnx.dynamic_quantize_linear,
    "MatMulInteger": onnx.matmul_integer,
    "QLinearMatMul": onnx.qlinear_matmul,
    "ConvInteger": onnx.conv_integer,
    "QLinearConv": onnx.qlinear_conv,
}


def _ours(operator: str, peer: str, inputs: Inputs) -> Outputs:
    own_order = {"rounding": ROUNDING[peer]} if operator.startswith("QLinear") else {}
    return _named(FUNCTIONS[operator](**inputs, **own_order))


def _theirs(operator: str, peer: str, inputs: Inputs) -> Outputs:
    outputs = PEERS[peer][1](operator, inputs)
    return _named(tuple(outputs) if len(outputs) > 1 else outputs[0])


def _named(outputs: Any) -> Outputs:
    return dict(zip(("y", "y_scale", "y_zero_point"), outputs, strict=True)) if isinstance(outputs, tuple) else outputs


def _check(operator: str, variant: str, peer: str, draw: Callable[..., Iterator[Inputs]]) -> Check:
    oracle = PEERS[peer][0].format(operator)
    sides = partial(_ours, operator, peer), partial(_theirs, operator, peer)
    return Check(f"{operator}/{variant}{peer}", oracle, draw, *sides)


CHECKS = (
    *(
        _check(operator, f"{granularity} ", peer, partial(draw, granularity, peer))
        for operator, draw in (("QuantizeLinear", draw_quantize), ("DequantizeLinear", draw_dequantize))
        for granularity in ("per tensor", "per axis", "blocked")
        for peer in PEERS
    ),
    _check("QuantizeLinear", "4 bits ", "reference", draw_narrow),
    *(
        _check(operator, "", peer, partial(draw, peer))
        for operator, draw in (
            ("DynamicQuantizeLinear", draw_dynamic),
            ("MatMulInteger", draw_matmul),
            ("QLinearMatMul", draw_qlinear_matmul),
            ("ConvInteger", draw_conv),
            ("QLinearConv", draw_qlinear_conv),
        )
        for peer in PEERS
    ),
)
