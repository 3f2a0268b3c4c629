"""Random numbers and initial weights after the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor, manual_seed, nn, rand, randn
from minquant.random import randperm, uniform

from ..flat import numbered
from ..suite import Check, Inputs

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


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(-(2**40), 2**40))


# ---- draws -----------------------------------------------------------------------------------------------------------


def _sizes(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Three draws from one stream: of odd sizes, none at all, and many."""
    for i in range(10 if quick else 60):
        many = 100 if i < 3 else 3000
        yield {"seed": _seed(rng), "sizes": (int(rng.integers(1, 40)), 0, int(rng.integers(40, many)))}


def _our_draws(name: str, inputs: Inputs) -> dict[str, np.ndarray]:
    manual_seed(inputs["seed"])
    return numbered("draw", [DRAWS[name][0](n) for n in inputs["sizes"]])


def _their_draws(name: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    torch.manual_seed(inputs["seed"])
    return numbered("draw", [DRAWS[name][1](torch, n).numpy() for n in inputs["sizes"]])


# ---- initial weights -------------------------------------------------------------------------------------------------


def _shapes(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i in range(10 if quick else 60):
        largest = 5 if i < 3 else 20
        yield {"seed": _seed(rng), "shape": tuple(rng.integers(1, largest, int(rng.integers(2, 5))).tolist())}


def _our_filler(name: str, inputs: Inputs) -> np.ndarray:
    manual_seed(inputs["seed"])
    return getattr(nn.init, name)(Tensor(np.empty(inputs["shape"], np.float32)), *FILLERS[name]).data


def _their_filler(name: str, inputs: Inputs) -> np.ndarray:
    import torch

    torch.manual_seed(inputs["seed"])
    return getattr(torch.nn.init, name)(torch.empty(inputs["shape"]), *FILLERS[name]).numpy()


def _layers(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i in range(10 if quick else 100):
        k, n = rng.integers(1, 10 if i < 3 else 60, 2).tolist()
        yield {"seed": _seed(rng), "sizes": (k, n)}


def _our_linear(inputs: Inputs) -> dict[str, np.ndarray]:
    manual_seed(inputs["seed"])
    return {name: p.data for name, p in nn.Linear(*inputs["sizes"]).named_parameters()}


def _their_linear(inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    torch.manual_seed(inputs["seed"])
    return {name: p.detach().numpy() for name, p in torch.nn.Linear(*inputs["sizes"]).named_parameters()}


CHECKS = (
    *(
        Check(
            f"random/{name}",
            "torch." + ("Tensor.uniform_" if name.startswith("uniform") else name),
            _sizes,
            partial(_our_draws, name),
            partial(_their_draws, name),
            NORMAL_BOUND if name == "randn" else 0.0,
        )
        for name in DRAWS
    ),
    *(
        Check(
            f"init/{name}",
            f"torch.nn.init.{name}",
            _shapes,
            partial(_our_filler, name),
            partial(_their_filler, name),
            NORMAL_BOUND if name == "normal_" else 0.0,
        )
        for name in FILLERS
    ),
    Check("init/Linear", "torch.nn.Linear", _layers, _our_linear, _their_linear),
)
