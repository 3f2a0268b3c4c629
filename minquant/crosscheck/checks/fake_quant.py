"""Fake quantizers that watch a range: torch's plain one, and the fused one that its training uses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import minquant.quant as quant
from minquant import Tensor
from minquant.quant import FakeQuantize

from .. import ours
from ..inputs import draw_fused
from ..suite import Case, Check

__all__ = ["CHECKS"]

SCHEMES = ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric")


def _draw(scheme: str, rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    while True:
        options, batches, gradient = draw_fused(rng)
        if options["qscheme"] == scheme:
            return options, batches, gradient


def _fused(scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Output, gradient, moving range and grid after each of three steps."""
    from .. import theirs

    for _ in range(30 if quick else 600):
        case = _draw(scheme, rng)
        for step, (mine, other) in enumerate(zip(ours.fused_steps(*case), theirs.fused_steps(*case), strict=True)):
            yield {**case[0], "step": step, "batches": case[1]}, mine, other


def _plain(scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Output and moving range after each of three steps. The gradients differ by design."""
    import torch
    import torch.ao.quantization as tq

    name = "MovingAveragePerChannelMinMaxObserver" if "channel" in scheme else "MovingAverageMinMaxObserver"
    for _ in range(30 if quick else 600):
        options, batches, _ = _draw(scheme, rng)
        named = options | {key: getattr(torch, options[key]) for key in ("dtype", "qscheme")}
        mine = FakeQuantize(getattr(quant, name), **options)
        other = tq.FakeQuantize(getattr(tq, name), **named)
        for step, batch in enumerate(batches):
            y: Any = mine(Tensor(batch.copy()))
            expected = {"y": other(torch.from_numpy(batch.copy())).numpy()}
            found = {"y": y.data}
            for end in ("min_val", "max_val"):
                found[end] = getattr(mine.activation_post_process, end).data.copy()
                expected[end] = getattr(other.activation_post_process, end).numpy().copy()
            yield {**options, "step": step, "batches": batches}, found, expected


CHECKS = tuple(
    Check(f"fake quantizer/{kind} {scheme.replace('_', ' ')}", f"torch.ao.quantization.{name}", partial(run, scheme))
    for kind, name, run in (("plain", "FakeQuantize", _plain), ("fused", "FusedMovingAvgObsFakeQuantize", _fused))
    for scheme in SCHEMES
)
