"""Linear on a processor without VNNI, where pairs of products saturate in int16.

A case is a batch of B Linears of one shape, since the oracle's process takes seconds to start:

- ``qx (B, M, K)`` uint8 with ``x_scale`` and ``x_zero_point (B,)`` for the static layer, ``x (B, M, K)`` float32 for
  the dynamic one;
- ``qw (B, N, K)`` int8 with ``w_scale (B, N)``, of which only the first counts where not ``per_channel (B,)``;
- ``bias (B, N)``, and ``out_scale``, ``out_zero_point`` and ``relu (B,)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant.quant import PerChannel, PerTensor, QParams, QSpec, QTensor
from minquant.quant.dialects import get_dialect

from ..suite import Check, Inputs

__all__ = ["CHECKS"]

F32 = np.float32
UINT8 = QSpec(signed=False)
SMALL, LARGE = (8, 3, 7, 4), (60, 24, 161, 32)
LOWEST_INPUT = (0, 0, 128, 250)
"""Inputs from here to 255: the higher, the more of the pairs saturate."""


def _draw(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for shape in (SMALL,) if quick else (SMALL, LARGE):
        linears = [_one(rng, i, *shape[1:]) for i in range(shape[0])]
        yield {name: np.stack([linear[name] for linear in linears]) for name in linears[0]}


def _one(rng: np.random.Generator, i: int, m: int, k: int, n: int) -> dict[str, Any]:
    """One Linear; every other weight consists of the ends of int8 alone."""
    qx = rng.integers(LOWEST_INPUT[i % 4], 256, (m, k)).astype(np.uint8)
    qw = rng.integers(-128, 128, (n, k)).astype(np.int8)
    if i % 2:
        qw = rng.choice(np.array([-128, 127], np.int8), (n, k))
    x_scale, w_scale = F32(2.0 ** rng.uniform(-9, 1)), (2.0 ** rng.uniform(-9, -5, n)).astype(F32)
    room = 2.0**15 * np.sqrt(k) * x_scale * w_scale.max()
    return {
        "qx": qx,
        "x_scale": x_scale,
        "x_zero_point": np.int32(rng.choice([0, 0, 128, int(rng.integers(0, 256))])),
        "x": (qx - F32(rng.choice([0, 128]))) * x_scale,
        "qw": qw,
        "w_scale": w_scale,
        "per_channel": np.bool_(rng.random() < 0.5),
        "bias": (rng.standard_normal(n) * room / 4).astype(F32),
        "out_scale": F32(room / 64),
        "out_zero_point": np.int32(rng.integers(0, 256)),
        "relu": np.bool_(rng.random() < 0.3),
    }


def _ours(engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    cases = [{name: array[i] for name, array in inputs.items()} for i in range(len(inputs["qx"]))]
    outputs = [_linear(engine, case) for case in cases]
    return {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}


def _linear(engine: str, case: Inputs) -> dict[str, np.ndarray]:
    dialect = get_dialect(f"{engine}_avx2")
    granularity, w_scale = (PerChannel(), case["w_scale"]) if case["per_channel"] else (PerTensor(), case["w_scale"][0])
    w_grid = QParams(w_scale, np.zeros(np.shape(w_scale), np.int32), QSpec(symmetric=True, granularity=granularity))
    weight = QTensor(case["qw"], w_grid)
    x = QTensor(case["qx"], QParams(case["x_scale"], case["x_zero_point"], UINT8))
    output = QParams(case["out_scale"], case["out_zero_point"], UINT8)
    rest = weight, case["bias"]
    return {
        "static": dialect.linear(x, *rest, output, bool(case["relu"])).int_repr(),
        "dynamic": dialect.dynamic_linear(case["x"], *rest, bool(case["relu"]), UINT8),
    }


def _theirs(engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    from ..without_vnni import ask

    return ask(inputs, "linear", engine)


CHECKS = tuple(
    Check(
        f"static and dynamic Linear/{engine} without VNNI",
        "torch.ops.quantized.linear",
        _draw,
        partial(_ours, engine),
        partial(_theirs, engine),
        engine=engine,
    )
    for engine in ("fbgemm", "onednn")
)
