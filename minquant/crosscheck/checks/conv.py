"""Quantized convolutions in each of torch's engines: static and dynamic, in one axis and two, every kind of window."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .. import ours
from ..inputs import ENGINES, KINDS
from ..processor import dialect_of
from ..suite import Check, Inputs
from ..windows import WINDOWS, draw_dynamic_conv, draw_static_conv

__all__ = ["CHECKS"]

LARGEST = {"fbgemm": 127, "x86": 127, "qnnpack": 255, "onednn": 255}
"""Up to here fbgemm's sums are exact on every processor; the checks "without VNNI" have the rest."""

RUN_TIME_LARGEST = LARGEST | {"onednn": 127}


def _draw_static(
    engine: str, axes: int, per_channel: bool, relu: bool, rng: np.random.Generator, quick: bool
) -> Iterator[Inputs]:
    dialect = dialect_of(engine)
    for i in range(14 if quick else 280):
        case = draw_static_conv(
            rng, axes, WINDOWS[i % len(WINDOWS)], per_channel, relu, LARGEST[engine], coarse=i % 4 == 1
        )
        yield {"dialect": dialect, **case}


def _draw_dynamic(engine: str, axes: int, per_channel: bool, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    dialect = dialect_of(engine)
    for i in range(20 if quick else 210):
        window, kind = WINDOWS[i % len(WINDOWS)], KINDS[i % len(KINDS)]
        yield {"dialect": dialect, **draw_dynamic_conv(rng, axes, window, per_channel, kind, RUN_TIME_LARGEST[engine])}


def _draw_depthwise(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """FBGEMM's depthwise kernel, whose pairs of products saturate on every processor."""
    for i in range(14 if quick else 280):
        yield {"dialect": "fbgemm", **draw_static_conv(rng, 2, "common depthwise", bool(i % 2), i % 3 == 0)}


def _draw_without_vnni(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Many convolutions at once, since the oracle's process takes seconds to start; "0 qx" belongs to the first."""
    for count in (len(WINDOWS),) if quick else (len(WINDOWS), 40 * len(WINDOWS)):
        drawn = (
            draw_static_conv(rng, 2 - i % 3 // 2, WINDOWS[i % len(WINDOWS)], bool(i % 2), i % 5 == 0, coarse=i % 4 == 3)
            for i in range(count)
        )
        yield {f"{i} {name}": value for i, case in enumerate(drawn) for name, value in case.items()}


def _ours(flow: str, inputs: Inputs) -> np.ndarray:
    return getattr(ours, f"{flow}_conv")(inputs["dialect"], inputs)


def _ours_without_vnni(engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    cases: dict[str, dict[str, np.ndarray]] = {}
    for key, value in inputs.items():
        i, _, name = key.partition(" ")
        cases.setdefault(i, {})[name] = value
    return {i: ours.static_conv(f"{engine}_avx2", case) for i, case in cases.items()}


def _theirs_without_vnni(engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    from ..without_vnni import ask

    return ask(inputs, "conv", engine)


def _theirs(flow: str, engine: str, inputs: Inputs) -> np.ndarray:
    from .. import theirs

    return getattr(theirs, f"{flow}_conv")(engine, inputs)


CHECKS = (
    *(
        Check(
            f"static Conv{axes}d/{engine} per {'channel' if per_channel else 'tensor'}{' relu' if relu else ''}",
            f"torch.ops.quantized.conv{axes}d{'_relu' if relu else ''}",
            partial(_draw_static, engine, axes, per_channel, relu),
            partial(_ours, "static"),
            partial(_theirs, "static", engine),
            engine=engine,
        )
        for axes in (1, 2)
        for engine in ENGINES
        for per_channel in (False, True)
        for relu in (False, True)
    ),
    *(
        Check(
            f"dynamic Conv{axes}d/{engine} per {'channel' if per_channel else 'tensor'}",
            f"torch.ops.quantized.conv{axes}d_dynamic",
            partial(_draw_dynamic, engine, axes, per_channel),
            partial(_ours, "dynamic"),
            partial(_theirs, "dynamic", engine),
            engine=engine,
        )
        for axes in (1, 2)
        for engine in ENGINES
        for per_channel in (False, True)
    ),
    Check(
        "static Conv2d/fbgemm depthwise, 0 to 255",
        "torch.ops.quantized.conv2d",
        _draw_depthwise,
        partial(_ours, "static"),
        partial(_theirs, "static", "fbgemm"),
        engine="fbgemm",
    ),
    *(
        Check(
            f"static Conv/{engine} without VNNI",
            "torch.ops.quantized.conv2d",
            _draw_without_vnni,
            partial(_ours_without_vnni, engine),
            partial(_theirs_without_vnni, engine),
            engine=engine,
        )
        for engine in ("fbgemm", "onednn")
    ),
)
