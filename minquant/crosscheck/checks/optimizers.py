"""Twenty steps of each optimizer from the same weights and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor, optim

from ..suite import Check, Inputs

__all__ = ["CHECKS"]

STEPS = 20
BOUND = STEPS * 2 * 2.0**-22
"""Each step rounds a weight below 4, by at most 2⁻²³ on either side, and its update, which is smaller, a few times."""

VARIANTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05},
    "SGD momentum": {"lr": 0.01, "momentum": 0.9, "dampening": 0.1},
    "SGD Nesterov": {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.1},
    "Adam weight decay": {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1},
    "AdamW weight decay": {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.3},
}


def _draw(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Weights and gradients lie in -1 … 1, so that no weight leaves -4 … 4."""
    for i in range(5 if quick else 50):
        shape = tuple(rng.integers(1, 5 if i < 2 else 40, 2).tolist())
        start, gradients = rng.uniform(-1, 1, shape), rng.uniform(-1, 1, (STEPS, *shape))
        yield {"start": start.astype(np.float32), "gradients": gradients.astype(np.float32)}


def _ours(name: str, inputs: Inputs) -> np.ndarray:
    weight = Tensor(inputs["start"].copy(), requires_grad=True)
    optimizer = getattr(optim, name.split()[0])([weight], **VARIANTS[name])
    for gradient in inputs["gradients"]:
        weight.grad = Tensor(gradient)
        optimizer.step()
    return weight.data


def _theirs(name: str, inputs: Inputs) -> np.ndarray:
    import torch

    weight = torch.tensor(inputs["start"], requires_grad=True)
    optimizer = getattr(torch.optim, name.split()[0])([weight], **VARIANTS[name])
    for gradient in inputs["gradients"]:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    return weight.detach().numpy()


CHECKS = tuple(
    Check(
        f"optimizer/{name}",
        f"torch.optim.{name.split()[0]}",
        _draw,
        partial(_ours, name),
        partial(_theirs, name),
        BOUND,
    )
    for name in VARIANTS
)
