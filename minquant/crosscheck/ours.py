"""minquant's side of what torch's engines are asked in `theirs.py`: Linears, whole flows, the fused fake quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import Tensor, nn
from minquant.demos.article import take_state
from minquant.quant import (
    LinearReLU,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannel,
    PerTensor,
    QParams,
    QSpec,
    QTensor,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.fused_fake_quant import FusedMovingAvgObsFakeQuantize

from .inputs import UINT8
from .windows import geometry_of

__all__ = [
    "dynamic_conv",
    "dynamic_flow",
    "dynamic_linear",
    "fused_steps",
    "qat_flow",
    "static_conv",
    "static_flow",
    "static_linear",
]


Case = dict[str, np.ndarray]


def static_linear(engine: str, case: Case) -> Case:
    """The quantized input, and the integers of the static output."""
    dialect = get_dialect(engine)
    x = dialect.quantize(case["x"], QParams(case["x_scale"], case["x_zero_point"], UINT8))
    output = QParams(case["out_scale"], case["out_zero_point"], UINT8)
    y = dialect.linear(x, *_weight_and_bias(case), output, bool(case["relu"]))
    return {"qx": x.int_repr(), "static": y.int_repr()}


def dynamic_linear(engine: str, case: Case) -> Case:
    """The real values of the dynamic output."""
    dialect = get_dialect(engine)
    spec = dialect.dynamic(8)[0]
    return {"dynamic": dialect.dynamic_linear(case["x"], *_weight_and_bias(case), bool(case["relu"]), spec)}


def static_conv(name: str, case: Case) -> np.ndarray:
    """The integers of the static output, in the dialect of that name."""
    x = QTensor(case["qx"], QParams(case["x_scale"], case["x_zero_point"], UINT8))
    output = QParams(case["out_scale"], case["out_zero_point"], UINT8)
    conv = get_dialect(name).conv
    return conv(x, *_weight_and_bias(case), output, bool(case["relu"]), geometry_of(case)).int_repr()


def dynamic_conv(name: str, case: Case) -> np.ndarray:
    """The real values of the dynamic output; torch has no operator with a relu."""
    dialect = get_dialect(name)
    spec = dialect.dynamic(8)[0]
    return dialect.dynamic_conv(case["x"], *_weight_and_bias(case), False, spec, geometry_of(case))


def _weight_and_bias(case: Case) -> tuple[QTensor, np.ndarray]:
    granularity = PerChannel() if case["w_scale"].ndim else PerTensor()
    zeros = np.zeros(case["w_scale"].shape, np.int32)
    weight = QTensor(case["qw"], QParams(case["w_scale"], zeros, QSpec(symmetric=True, granularity=granularity)))
    return weight, case["bias"] if case["bias"].size else np.zeros(len(weight), np.float32)


# ---- whole flows -----------------------------------------------------------------------------------------------------


def float_model(data: Case) -> nn.Module:
    """Linear, ReLU, Linear, and a Linear fused with its ReLU."""
    layers: list[Any] = [nn.Linear(*data[f"w{i}"].shape[::-1]) for i in (1, 2, 3)]
    for i, layer in enumerate(layers, start=1):
        layer.weight.data[:], layer.bias.data[:] = data[f"w{i}"], data[f"b{i}"]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], LinearReLU(layers[2], nn.ReLU()))


def static_flow(engine: str, data: Case) -> Case:
    """prepare, calibrate, convert, run: every integer and every grid."""
    prepared = prepare(QuantWrapper(float_model(data)), get_default_qconfig(engine))
    for batch in data["batches"]:
        prepared(batch)
    return _describe_static(convert(prepared), data)


def qat_flow(engine: str, data: Case, state: Case) -> Case:
    """Torch's trained weights and observed ranges, converted and run: every integer and every grid."""
    prepared = prepare_qat(QuantWrapper(float_model(data)).train(), get_default_qat_qconfig(engine))
    take_state(prepared, state)
    return _describe_static(convert(prepared.eval()), data)


def _describe_static(model: Any, data: Case) -> Case:
    found = {"in_scale": model.quant.qparams.scale, "in_zero_point": model.quant.qparams.zero_point}
    for i, layer in zip((1, 2, 3), (model.module[0], model.module[2], model.module[3]), strict=True):
        found |= _weight(i, layer)
        found |= {f"scale{i}": layer.output.scale, f"zero_point{i}": layer.output.zero_point}
    return found | {"y": model(data["x"]).data}


def dynamic_flow(engine: str, data: Case) -> Case:
    """quantize_dynamic, run."""
    model: Any = quantize_dynamic(float_model(data), default_dynamic_qconfig(engine))
    found = _weight(1, model[0]) | _weight(2, model[2]) | _weight(3, model[3])
    return found | {"y": model(data["x"]).data}


def _weight(i: int, layer: Any) -> Case:
    return {f"qw{i}": layer.weight.int_repr(), f"w_scale{i}": layer.weight.qparams.scale}


# ---- torch's fused fake quantizer ------------------------------------------------------------------------------------


def fused_steps(options: dict[str, Any], batches: np.ndarray, gradient: np.ndarray) -> list[Case]:
    """Output, gradient, range and grid after each of the batches."""
    kind = MovingAveragePerChannelMinMaxObserver if "channel" in options["qscheme"] else MovingAverageMinMaxObserver
    fused = FusedMovingAvgObsFakeQuantize(observer=kind, **options)
    states = []
    for batch in batches:
        x: Any = Tensor(batch.copy(), requires_grad=True)
        y: Any = fused(x)
        y.backward(Tensor(gradient))
        low, high = fused.activation_post_process.range()
        states.append({
            "y": y.data, "grad": x.grad.data, "min_val": low.copy(), "max_val": high.copy(),
            "scale": y.qparams.scale, "zero_point": y.qparams.zero_point,
        })  # fmt: skip
    return states
