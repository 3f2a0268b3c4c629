"""Whole flows: a float model of three layers, quantized on both sides; every weight, grid and output is compared."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .. import ours
from ..inputs import ENGINES, flow_data
from ..suite import Case, Check

__all__ = ["CHECKS"]


def _flow(name: str, engine: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    from .. import theirs

    # calibration asks torch's histogram for four grids, which takes it seconds
    few, many = (1, 4) if name == "static" else (4, 40)
    for _ in range(few if quick else many):
        seed = int(rng.integers(2**31))
        data = flow_data(seed)
        mine, other = (getattr(side, f"{name}_flow")(engine, data) for side in (ours, theirs))
        yield {"flow_data seed": seed}, mine, other


def _qat(engine: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Torch trains; both sides convert what it trained. (Two trainings would part at the first tie.)"""
    from .. import theirs

    for _ in range(3 if quick else 30):
        seed = int(rng.integers(2**31))
        data = flow_data(seed)
        state, other = theirs.qat_flow(engine, data)
        yield {"flow_data seed": seed}, ours.qat_flow(engine, data, state), other


CHECKS = (
    *(
        Check(f"flow/{name} {engine}", f"torch.ao.quantization.{oracle}", partial(_flow, name, engine), engine=engine)
        for name, oracle in (("static", "convert"), ("dynamic", "quantize_dynamic"))
        for engine in ENGINES
    ),
    *(
        Check(f"flow/qat {engine}", "torch.ao.quantization.convert", partial(_qat, engine), engine=engine)
        for engine in ENGINES
    ),
)
