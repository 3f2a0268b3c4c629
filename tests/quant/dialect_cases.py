"""Linears for the engines to agree on: drawn at random, adversarial on purpose. Needs no torch.

A case is a dict of arrays: ``x (M, K)``, the weight's integers ``qw (N, K)`` with ``w_scale``, ``bias (N,)`` or an
empty array, grids of the input and the output, and whether a relu is fused in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant import Tensor, nn
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
    choose_qparams,
    convert,
    default_dynamic_qconfig,
    get_default_qconfig,
    prepare,
    quantize,
    quantize_dynamic,
)
from minquant.quant.dialects import Dialect, get_dialect
from minquant.quant.dialects.fused_fake_quant import FusedMovingAvgObsFakeQuantize

F32 = np.float32
ENGINES = ("fbgemm", "x86", "qnnpack", "onednn")
KINDS = ("normal", "positive", "negative", "ties", "constant", "denormal", "huge", "zeros", "signed zeros", "coarse")
UINT8 = QSpec(signed=False)


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Values of a kind, over ten orders of magnitude."""
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-5, 5)
    x = {
        "normal": x,
        "positive": np.abs(x),
        "negative": -np.abs(x),
        "ties": np.round(rng.standard_normal(shape) * 20) / 2,
        "constant": np.full(shape, rng.standard_normal()),
        "denormal": rng.standard_normal(shape) * 1e-40,
        "huge": rng.standard_normal(shape) * 1e12,
        "zeros": np.zeros(shape),
        "signed zeros": np.where(rng.random(shape) < 0.5, -0.0, 0.0),
        "coarse": rng.integers(-3, 4, shape),
    }[kind]
    return x.astype(F32)


def draw(rng: np.random.Generator, kind: str = "normal", per_channel: bool = True) -> dict[str, np.ndarray]:
    """One case; the input is of that kind, and one time in ten has no rows."""
    m, k, n = int(rng.integers(1, 9)), int(rng.integers(1, 40)), int(rng.integers(1, 12))
    x = values(rng, (0 if rng.random() < 0.1 else m, k), kind)
    w = values(rng, (n, k), str(rng.choice(["normal", "positive", "ties", "constant", "normal"])))
    spec = QSpec(symmetric=True, granularity=PerChannel() if per_channel else PerTensor())
    weight = quantize(w, choose_qparams(*spec.granularity.min_max(w), spec))
    range_ = (x.min(), x.max()) if x.size else (F32(-1), F32(1))
    x_grid = choose_qparams(*range_, QSpec(signed=False, qmax=int(rng.choice([127, 255]))))
    y = x @ weight.dequantize().T
    # a bias beyond 2³¹ of its steps is qnnpack's own affair: what torch makes of it depends on its place
    step = float(x_grid.scale) * weight.qparams.scale.astype(np.float64)
    bias = np.clip(rng.standard_normal(n) * (np.abs(y).max() if y.size else 1), -(2.0**29) * step, 2.0**29 * step)
    low, high = (y.min(), y.max()) if y.size else (-1.0, 1.0)
    stretch = rng.uniform(0.3, 1.5)  # an output range that is too narrow saturates
    out_grid = choose_qparams(min(low * stretch, 0), max(high * stretch, 0), UINT8)
    case = {
        "x": x,
        "qw": weight.int_repr(),
        "w_scale": weight.qparams.scale,
        "bias": bias.astype(F32) if rng.random() < 0.8 else np.zeros(0, F32),
        "x_scale": x_grid.scale,
        "x_zero_point": x_grid.zero_point,
        "out_scale": out_grid.scale,
        "out_zero_point": out_grid.zero_point,
        "relu": np.array(rng.random() < 0.5),
    }
    return case | coarse_grids(rng, case) if kind == "coarse" else case


def coarse_grids(rng: np.random.Generator, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Small integers on wide grids, with biases between the steps: ties and roundings show in every output."""
    return {
        "qw": rng.integers(-3, 4, case["qw"].shape).astype(np.int8),
        "w_scale": np.ones_like(case["w_scale"]),
        "bias": (rng.integers(-20, 20, case["bias"].shape) / 4).astype(F32),
        "x_scale": F32(1),
        "x_zero_point": np.int32(3),
        "out_scale": F32(rng.choice([0.5, 0.7, 2, 4])),
        "out_zero_point": np.int32(101),
    }


def ours(engine: str, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What minquant makes of a case: the quantized input, the static output's integers, the dynamic output."""
    dialect: Dialect = get_dialect(engine)
    granularity = PerChannel() if case["w_scale"].ndim else PerTensor()
    zeros = np.zeros(case["w_scale"].shape, np.int32)
    weight = QTensor(case["qw"], QParams(case["w_scale"], zeros, QSpec(symmetric=True, granularity=granularity)))
    bias = case["bias"] if case["bias"].size else np.zeros(len(weight), F32)
    x = dialect.quantize(case["x"], QParams(case["x_scale"], case["x_zero_point"], UINT8))
    output = QParams(case["out_scale"], case["out_zero_point"], UINT8)
    relu, run_time = bool(case["relu"]), dialect.dynamic(8)[0]
    return {
        "qx": x.int_repr(),
        "static": dialect.linear(x, weight, bias, output, relu).int_repr(),
        "dynamic": dialect.dynamic_linear(case["x"], weight, bias, relu, run_time),
    }


# ---- whole flows -----------------------------------------------------------------------------------------------------


def flow_data(seed: int) -> dict[str, np.ndarray]:
    """A float model 12-16-10 with one fused layer 10-6 behind, and data for it, all multiples of small powers of 2.

    So the float products are exact in any order of summation, and both sides' observers see the same values.
    """
    rng = np.random.default_rng(seed)
    data = {"batches": np.round(rng.standard_normal((3, 32, 12)) * [[[1.0]], [[2.0]], [[0.5]]] * 8) / 8}
    data["x"] = np.round(rng.standard_normal((20, 12)) * 24) / 8
    for i, (k, n) in enumerate([(12, 16), (16, 10), (10, 6)], start=1):
        data[f"w{i}"] = np.round(rng.standard_normal((n, k)) * 8) / 32
        data[f"b{i}"] = np.round(rng.standard_normal(n) * 8) / 16
    return {name: array.astype(F32) for name, array in data.items()}


def float_model(data: dict[str, np.ndarray]) -> nn.Module:
    """Linear, ReLU, Linear, and a Linear fused with its ReLU."""
    layers = [nn.Linear(*data[f"w{i}"].shape[::-1]) for i in (1, 2, 3)]
    for i, layer in enumerate(layers, start=1):
        layer.weight.data[:], layer.bias.data[:] = data[f"w{i}"], data[f"b{i}"]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], LinearReLU(layers[2], nn.ReLU()))


def our_static_flow(engine: str, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """prepare, calibrate, convert, run: every integer and every grid."""
    prepared = prepare(QuantWrapper(float_model(data)), get_default_qconfig(engine))
    for batch in data["batches"]:
        prepared(batch)
    model = convert(prepared)
    found = {"in_scale": model.quant.qparams.scale, "in_zero_point": model.quant.qparams.zero_point}
    for i, layer in zip((1, 2, 3), (model.module[0], model.module[2], model.module[3]), strict=True):
        found |= our_weight(i, layer)
        found |= {f"scale{i}": layer.output.scale, f"zero_point{i}": layer.output.zero_point}
    return found | {"y": model(data["x"]).data}


def our_dynamic_flow(engine: str, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """quantize_dynamic, run."""
    model = quantize_dynamic(float_model(data), default_dynamic_qconfig(engine))
    found = our_weight(1, model[0]) | our_weight(2, model[2]) | our_weight(3, model[3])
    return found | {"y": model(data["x"]).data}


def our_weight(i: int, layer: Any) -> dict[str, np.ndarray]:
    return {f"qw{i}": layer.weight.int_repr(), f"w_scale{i}": layer.weight.qparams.scale}


# ---- torch's fused fake quantizer ------------------------------------------------------------------------------------


def draw_fused(rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Its arguments, three batches, and the gradient that comes in."""
    per_channel, symmetric = rng.random() < 0.5, rng.random() < 0.5
    signed = symmetric or rng.random() < 0.5
    options = {
        "dtype": "qint8" if signed else "quint8",
        "qscheme": f"per_{'channel' if per_channel else 'tensor'}_{'symmetric' if symmetric else 'affine'}",
        "quant_min": -128 if signed else 0,
        "quant_max": 127 if signed else 255,
        "reduce_range": bool(rng.random() < 0.3),
        "averaging_constant": float(rng.choice([0.01, 0.1, 1])),
    }
    shape = int(rng.integers(1, 6)), int(rng.integers(1, 20))
    size, offset = 10.0 ** rng.uniform(-7, 4), float(rng.choice([0, 0, 3, -3]))
    batches = rng.standard_normal((3, *shape)) + offset
    if rng.random() < 0.2:
        batches = np.round(batches * 2) / 2
    return options, (batches * size).astype(F32), rng.standard_normal(shape).astype(F32)


def our_fused_steps(options: dict[str, Any], batches: np.ndarray, gradient: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Output, gradient, range and grid after each of the batches."""
    kind = MovingAveragePerChannelMinMaxObserver if "channel" in options["qscheme"] else MovingAverageMinMaxObserver
    fused = FusedMovingAvgObsFakeQuantize(observer=kind, **options)
    states = []
    for batch in batches:
        x = Tensor(batch.copy(), requires_grad=True)
        y = fused(x)
        y.backward(Tensor(gradient))
        low, high = fused.activation_post_process.range()
        states.append({
            "y": y.data, "grad": x.grad.data, "min_val": low.copy(), "max_val": high.copy(),
            "scale": y.qparams.scale, "zero_point": y.qparams.zero_point,
        })  # fmt: skip
    return states


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, int]:
    """How many values of each array differ, where any does; torch keeps per-tensor grids as arrays of one."""
    counts = {k: int((np.asarray(a[k]).reshape(np.shape(b[k])) != b[k]).sum()) for k in a}
    return {name: count for name, count in counts.items() if count}
