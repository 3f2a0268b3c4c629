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
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

SCHEMES = ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric")


def _draw(scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Options, three batches, and the gradient that comes in."""
    count = 30 if quick else 600
    while count:
        options, batches, gradient = draw_fused(rng)
        if options["qscheme"] == scheme:
            count -= 1
            yield {**options, "batches": batches, "gradient": gradient}


def _options(inputs: Inputs) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in ("batches", "gradient")}


# ---- fused: output, gradient, moving range and grid after each step --------------------------------------------------


def _fused(side: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    steps = side.fused_steps(_options(inputs), inputs["batches"], inputs["gradient"])
    return {f"{name} {i}": value for i, state in enumerate(steps) for name, value in state.items()}


def _their_fused(inputs: Inputs) -> dict[str, np.ndarray]:
    from .. import theirs

    return _fused(theirs, inputs)


# ---- plain: output and moving range after each step; the gradients differ by design ----------------------------------


def _plain(fake_quantize: Any, wrap: Any, batches: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for i, batch in enumerate(batches):
        found[f"y {i}"] = np.asarray(fake_quantize(wrap(batch.copy())).data)
        for end in ("min_val", "max_val"):
            found[f"{end} {i}"] = np.asarray(getattr(fake_quantize.activation_post_process, end).data).copy()
    return found


def _observer(scheme: str) -> str:
    return "MovingAveragePerChannelMinMaxObserver" if "channel" in scheme else "MovingAverageMinMaxObserver"


def _our_plain(scheme: str, inputs: Inputs) -> dict[str, np.ndarray]:
    return _plain(FakeQuantize(getattr(quant, _observer(scheme)), **_options(inputs)), Tensor, inputs["batches"])


def _their_plain(scheme: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch
    import torch.ao.quantization as tq

    options = _options(inputs)
    options |= {name: getattr(torch, options[name]) for name in ("dtype", "qscheme")}
    return _plain(tq.FakeQuantize(getattr(tq, _observer(scheme)), **options), torch.from_numpy, inputs["batches"])


CHECKS = tuple(
    Check(
        f"fake quantizer/{kind} {scheme.replace('_', ' ')}",
        f"torch.ao.quantization.{name}",
        partial(_draw, scheme),
        mine(scheme),
        other(scheme),
    )
    for kind, name, mine, other in (
        ("plain", "FakeQuantize", lambda s: partial(_our_plain, s), lambda s: partial(_their_plain, s)),
        ("fused", "FusedMovingAvgObsFakeQuantize", lambda s: partial(_fused, ours), lambda s: _their_fused),
    )
    for scheme in SCHEMES
)
