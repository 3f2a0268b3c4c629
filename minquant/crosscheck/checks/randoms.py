"""Random numbers and initial weights after the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor, manual_seed, nn, rand, randn
from minquant.random import randperm, uniform

from ..suite import Case, Check

__all__ = ["CHECKS"]

NORMAL_BOUND = 2e-6  # logarithms and cosines differ by a few ulp from one library to the next

DRAWS: dict[str, tuple[Callable[[int], np.ndarray], Callable[[Any, int], Any]]] = {
    "rand": (lambda n: rand(n).data, lambda torch, n: torch.rand(n)),
    "randn": (lambda n: randn(n).data, lambda torch, n: torch.randn(n)),
    "randperm": (lambda n: randperm(n).data, lambda torch, n: torch.randperm(n)),
    "uniform": (
        lambda n: uniform((n,), -0.3, 0.7),
        lambda torch, n: torch.empty(n).uniform_(-0.3, 0.7),
    ),
    "uniform, narrow": (  # two float32 steps above 1, so that a quarter of the draws rounds up to the end
        lambda n: uniform((n,), 1, 1 + 2**-22),
        lambda torch, n: torch.empty(n).uniform_(1, 1 + 2**-22),
    ),
}
FILLERS: dict[str, tuple[float, ...]] = {
    "uniform_": (-0.3, 0.7),
    "kaiming_uniform_": (5**0.5,),
    "normal_": (0.5, 0.25),
}


def _seed(torch: Any, rng: np.random.Generator) -> int:
    seed = int(rng.integers(-(2**40), 2**40))
    manual_seed(seed)
    torch.manual_seed(seed)
    return seed


def _draws(name: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Three draws from one stream: of odd sizes, none at all, and many."""
    import torch

    ours, theirs = DRAWS[name]
    for _ in range(10 if quick else 60):
        seed = _seed(torch, rng)
        for n in (int(rng.integers(1, 40)), 0, int(rng.integers(40, 3000))):
            yield {"seed": seed, "n": n}, ours(n), theirs(torch, n).numpy()


def _filler(name: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    import torch

    for _ in range(10 if quick else 60):
        seed = _seed(torch, rng)
        shape = tuple(rng.integers(1, 20, int(rng.integers(2, 5))).tolist())
        ours = getattr(nn.init, name)(Tensor(np.empty(shape, np.float32)), *FILLERS[name])
        theirs = getattr(torch.nn.init, name)(torch.empty(shape), *FILLERS[name])
        yield {"seed": seed, "shape": shape}, ours.data, theirs.numpy()


def _linear(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    import torch

    for _ in range(10 if quick else 100):
        seed = _seed(torch, rng)
        k, n = rng.integers(1, 60, 2).tolist()
        ours, theirs = nn.Linear(k, n), torch.nn.Linear(k, n)
        state = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
        yield {"seed": seed, "sizes": (k, n)}, {name: p.data for name, p in ours.named_parameters()}, state


CHECKS = (
    *(
        Check(
            f"random/{name}",
            "torch." + ("Tensor.uniform_" if name.startswith("uniform") else name),
            partial(_draws, name),
            NORMAL_BOUND if name == "randn" else 0.0,
        )
        for name in DRAWS
    ),
    *(
        Check(
            f"init/{name}", f"torch.nn.init.{name}", partial(_filler, name), NORMAL_BOUND if name == "normal_" else 0.0
        )
        for name in FILLERS
    ),
    Check("init/Linear", "torch.nn.Linear", _linear),
)
