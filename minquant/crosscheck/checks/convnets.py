"""A convolutional network on digits, calibrated or trained in torch: the integers of every layer on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .. import convnet
from ..inputs import ENGINES
from ..processor import dialect_of
from ..suite import Check, Inputs

__all__ = ["CHECKS"]


def _draw(flow: str, engine: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """A tiny network first, which golden vectors have room for; then two that were trained for a while."""
    sizes: list[tuple[tuple[int, int, int], int, int]] = [((2, 2, 2), 0, 4)]
    for channels, epochs, images in sizes if quick else [*sizes, ((8, 12, 16), 2, 300), ((8, 12, 16), 2, 300)]:
        inputs = convnet.draw_inputs(int(rng.integers(2**31)), channels, epochs, images)
        yield {"dialect": dialect_of(engine)} | inputs | convnet.their_ranges(flow, engine, inputs)


CHECKS = tuple(
    Check(
        f"convnet/{flow} {engine}",
        "torch.ao.quantization.convert",
        partial(_draw, flow, engine),
        partial(convnet.our_flow, flow),
        partial(convnet.their_flow, flow, engine),
        engine=engine,
    )
    for flow in convnet.FLOWS
    for engine in ENGINES
)
