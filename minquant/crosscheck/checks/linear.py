"""Quantized Linear in each of torch's engines: static and dynamic, one weight scale or one a channel, relu or not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .. import ours
from ..inputs import ENGINES, KINDS, at_output_ties, draw
from ..processor import dialect_of
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

SMALL, LARGE = (9, 40, 12), (40, 200, 80)


def _draw(engine: str, per_channel: bool, relu: bool, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Every kind of input in turn, mostly small, so that ties and ends of ranges abound."""
    dialect = dialect_of(engine)
    for i in range(60 if quick else 400):
        sizes = LARGE if i % 8 == 7 else SMALL
        case = draw(rng, KINDS[i % len(KINDS)], per_channel, sizes) | {"relu": np.array(relu)}
        case = at_output_ties(rng, case) if i % 3 == 0 else case
        yield {"dialect": dialect, "kind": KINDS[i % len(KINDS)], **case}


def _ours(flow: str, inputs: Inputs) -> dict[str, np.ndarray]:
    return getattr(ours, f"{flow}_linear")(inputs["dialect"], inputs)


def _theirs(flow: str, engine: str, inputs: Inputs) -> dict[str, np.ndarray]:
    from .. import theirs

    return getattr(theirs, f"{flow}_linear")(engine, inputs)


OPERATORS = {"static": "torch.ops.quantized.linear{}", "dynamic": "torch.ops.quantized.linear{}_dynamic"}

CHECKS = tuple(
    Check(
        f"{flow} Linear/{engine} per {'channel' if per_channel else 'tensor'}{' relu' if relu else ''}",
        OPERATORS[flow].format("_relu" if relu else ""),
        partial(_draw, engine, per_channel, relu),
        partial(_ours, flow),
        partial(_theirs, flow, engine),
        engine=engine,
    )
    for flow in OPERATORS
    for engine in ENGINES
    for per_channel in (False, True)
    for relu in (False, True)
)
