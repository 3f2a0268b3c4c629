"""Quantized Linear in the dialects onnx and onnxruntime: the layer as a whole against a chain of operators.

Static: QuantizeLinear, and QLinearConv with a kernel of one element, since QLinearMatMul has no bias. Dynamic:
DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add, as one graph that onnxruntime may optimize as it likes. A relu
behind a static layer is ``max(q, zero point)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant.quant.dialects.onnx import integer_bias

from .. import ours
from ..inputs import KINDS, at_output_ties, draw
from ..onnx_models import onnxruntime_dynamic_linear, onnxruntime_outputs, reference_outputs
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

PEERS: dict[str, Any] = {"onnx": reference_outputs, "onnxruntime": onnxruntime_outputs}
ORACLES = {"onnx": "onnx.reference.ReferenceEvaluator", "onnxruntime": "onnxruntime.InferenceSession"}


def _draw(per_channel: bool, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Every kind of input in turn; none that is so narrow that a scale chosen from it would be 0."""
    for i in range(40 if quick else 400):
        case = draw(rng, KINDS[i % len(KINDS)], per_channel, (40, 200, 80) if i % 8 == 7 else (9, 40, 12))
        x = case["x"]
        spread = max(x.max(), 0) - min(x.min(), 0) if x.size else 0
        if spread == 0 or spread > 1e-42:
            yield at_output_ties(rng, case) if i % 3 == 0 else case


def _static(dialect: str, inputs: Inputs) -> dict[str, np.ndarray]:
    run, x_scale, w_scale = PEERS[dialect], inputs["x_scale"], inputs["w_scale"]
    x_zero_point, y_zero_point = (inputs[name].astype(np.uint8) for name in ("x_zero_point", "out_zero_point"))
    (qx,) = run("QuantizeLinear", {"x": inputs["x"], "y_scale": x_scale, "y_zero_point": x_zero_point})
    bias = {"B": integer_bias(inputs["bias"], x_scale, w_scale)} if inputs["bias"].size else {}
    operands = {"x": qx[..., np.newaxis], "x_scale": x_scale, "x_zero_point": x_zero_point}
    operands |= {
        "w": inputs["qw"][..., np.newaxis],
        "w_scale": w_scale,
        "w_zero_point": np.zeros_like(w_scale, np.int8),
    }
    operands |= {"y_scale": inputs["out_scale"], "y_zero_point": y_zero_point, **bias}
    operands |= {name: operands[name][..., np.newaxis] for name in ("x", "w")}  # the reference's channels need 2 axes
    y = run("QLinearConv", operands)[0][..., 0, 0]
    return {"qx": qx, "static": np.maximum(y, y_zero_point) if inputs["relu"] else y}


def _image(q: np.ndarray) -> np.ndarray:
    """(M, K) -> (M, K, 1, 1)."""
    return q[..., np.newaxis, np.newaxis]


def _dynamic(inputs: Inputs) -> dict[str, np.ndarray]:
    bias = inputs["bias"] if inputs["bias"].size else np.zeros(len(inputs["qw"]), np.float32)
    y = onnxruntime_dynamic_linear(inputs["x"], inputs["qw"], inputs["w_scale"], bias)
    return {"dynamic": np.maximum(y, np.float32(0)) if inputs["relu"] else y}


GRANULARITIES = {"tensor": False, "channel": True}

CHECKS = (
    *(
        Check(
            f"ONNX Linear/static {dialect} per {name}",
            f"{ORACLES[dialect]} of QLinearConv",
            partial(_draw, per_channel),
            partial(ours.static_linear, dialect),
            partial(_static, dialect),
        )
        for dialect in PEERS
        for name, per_channel in GRANULARITIES.items()
    ),
    *(
        Check(
            f"ONNX Linear/dynamic onnxruntime per {name}",
            f"{ORACLES['onnxruntime']} of MatMulInteger",
            partial(_draw, per_channel),
            partial(ours.dynamic_linear, "onnxruntime"),
            _dynamic,
        )
        for name, per_channel in GRANULARITIES.items()
    ),
)
