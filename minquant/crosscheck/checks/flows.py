"""Whole flows: a float model of three layers, quantized on both sides; every weight, grid and output is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .. import ours
from ..inputs import ENGINES, flow_data
from ..processor import dialect_of
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

TRAINED = "trained "


def _data(engine: str, few: int, many: int, rng: np.random.Generator, quick: bool) -> Iterator[dict[str, Any]]:
    dialect = dialect_of(engine)
    for _ in range(few if quick else many):
        seed = int(rng.integers(2**31))
        yield {"dialect": dialect, "flow_data seed": seed, **flow_data(seed)}


def _trained(engine: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Torch trains; both sides convert what it trained. (Two trainings would part at the first tie.)"""
    from .. import theirs

    for data in _data(engine, 3, 30, rng, quick):
        yield data | {f"{TRAINED}{name}": value for name, value in theirs.qat_state(engine, data).items()}


def _ours(name: str, inputs: Inputs) -> dict[str, np.ndarray]:
    return _flow(ours, name, inputs["dialect"], inputs)


def _flow(side: Any, name: str, engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    if name == "qat":
        state = {key.removeprefix(TRAINED): value for key, value in inputs.items() if key.startswith(TRAINED)}
        return side.qat_flow(engine, inputs, state)
    return getattr(side, f"{name}_flow")(engine, inputs)


def _theirs(name: str, engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    from .. import theirs

    return _flow(theirs, name, engine, inputs)


FLOWS: dict[str, tuple[str, Callable[[str], Any]]] = {
    # calibration asks torch's histogram for four grids, which takes it seconds
    "static": ("convert", lambda engine: partial(_data, engine, 1, 4)),
    "dynamic": ("quantize_dynamic", lambda engine: partial(_data, engine, 4, 40)),
    "qat": ("convert", lambda engine: partial(_trained, engine)),
}

CHECKS = tuple(
    Check(
        f"flow/{name} {engine}",
        f"torch.ao.quantization.{oracle}",
        draw(engine),
        partial(_ours, name),
        partial(_theirs, name, engine),
        engine=engine,
    )
    for name, (oracle, draw) in FLOWS.items()
    for engine in ENGINES
)
