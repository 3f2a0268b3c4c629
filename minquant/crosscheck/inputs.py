"""Inputs for the two sides to agree on: drawn at random from a seed, adversarial on purpose. Needs no torch.

A Linear's case is a dict of arrays: ``x (M, K)``, the weight's integers ``qw (N, K)`` with ``w_scale``, ``bias (N,)``
or an empty array, grids of the input and the output, and whether a relu is fused in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minquant.quant import PerChannel, PerTensor, QParams, QSpec, choose_qparams, quantize

__all__ = ["ENGINES", "KINDS", "UINT8", "at_output_ties", "draw", "draw_fused", "flow_data", "near_ties", "values"]

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


def draw(
    rng: np.random.Generator,
    kind: str = "normal",
    per_channel: bool = True,
    sizes: tuple[int, int, int] = (9, 40, 12),
) -> dict[str, np.ndarray]:
    """One case, M, K and N each below its `sizes`; the input is of that kind, and one time in ten has no rows."""
    m, k, n = (int(rng.integers(1, size)) for size in sizes)
    x = values(rng, (0 if rng.random() < 0.1 else m, k), kind)
    w = values(rng, (n, k), str(rng.choice(["normal", "positive", "ties", "constant", "normal"])))
    spec = QSpec(symmetric=True, granularity=PerChannel() if per_channel else PerTensor())
    weight = quantize(w, choose_qparams(*spec.granularity.min_max(w), spec))
    x_low, x_high = (x.min(), x.max()) if x.size else (F32(-1), F32(1))
    x_grid = choose_qparams(x_low, x_high, QSpec(signed=False, qmax=int(rng.choice([127, 255]))))
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
        "x_scale": np.array(1, F32),
        "x_zero_point": np.array(3, np.int32),
        "out_scale": np.array(rng.choice([0.5, 0.7, 2, 4]), F32),
        "out_zero_point": np.array(101, np.int32),
    }


def near_ties(rng: np.random.Generator, x: np.ndarray, grid: QParams) -> np.ndarray:
    """X with a third of its values moved to within a float32 step of the middle between two grid points."""
    scale, zero_point = grid.expand(x.shape)
    middles = (rng.integers(grid.spec.qmin, grid.spec.qmax + 1, x.shape) - zero_point + 0.5) * scale.astype(np.float64)
    moved = np.nextafter(middles.astype(F32), rng.choice([-np.inf, 0, np.inf], x.shape).astype(F32))
    return np.where(rng.random(x.shape) < 1 / 3, moved, x)


def at_output_ties(rng: np.random.Generator, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The case with biases that bring the outputs of its first row as near to half steps as float32 can.

    There the order of an engine's roundings decides the integer.
    """
    if not case["x"].size:
        return case
    x_scale, w_scale, out_scale = (case[name].astype(np.float64) for name in ("x_scale", "w_scale", "out_scale"))
    centred = np.clip(np.rint(case["x"][0] / x_scale), -case["x_zero_point"], 255 - case["x_zero_point"])
    exact = (centred @ case["qw"].T) * x_scale * w_scale  # (N,)
    ties = rng.integers(0, 255, exact.shape) - case["out_zero_point"] + 0.5
    bias = (ties * out_scale - exact).astype(F32)
    return {**case, "bias": np.nextafter(bias, rng.choice([-np.inf, 0, np.inf], bias.shape).astype(F32))}


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
