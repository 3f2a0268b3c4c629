"""Twenty steps of each optimizer from the same weights and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor, optim

from ..suite import Case, Check

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


def _steps(name: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Weights and gradients lie in -1 … 1, so that no weight leaves -4 … 4."""
    import torch

    kind, options = name.split()[0], VARIANTS[name]
    for _ in range(5 if quick else 50):
        shape = tuple(rng.integers(1, 40, 2).tolist())
        start = rng.uniform(-1, 1, shape).astype(np.float32)
        ours, theirs = Tensor(start.copy(), requires_grad=True), torch.tensor(start, requires_grad=True)
        optimizers = getattr(optim, kind)([ours], **options), getattr(torch.optim, kind)([theirs], **options)
        for _ in range(STEPS):
            gradient = rng.uniform(-1, 1, shape).astype(np.float32)
            ours.grad, theirs.grad = Tensor(gradient), torch.tensor(gradient)
            for optimizer in optimizers:
                optimizer.step()
        yield {**options, "start": start}, ours.data, theirs.detach().numpy()


CHECKS = tuple(
    Check(f"optimizer/{name}", f"torch.optim.{name.split()[0]}", partial(_steps, name), BOUND) for name in VARIANTS
)
