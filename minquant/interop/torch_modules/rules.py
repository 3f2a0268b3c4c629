"""What a dialect makes of a layer's sums, asked of minquant's own dialect and run on tensors.

Terms that depend on scales and bias alone, minquant's functions compute on the host, once; what is left to do for every
element is a function of the dialect's that runs on tensors as it stands (`minquant.kernels.tensors`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant.functional.geometry import Geometry
from minquant.kernels import tensors
from minquant.kernels.epilogue import Epilogue, ToCodes
from minquant.quant import QTensor
from minquant.quant.dialects import Dialect

__all__ = ["Finish", "Recipe", "conv_recipe", "finish_of", "on_device", "uncovered_product"]


@dataclass(frozen=True)
class Finish:
    """An `Epilogue` whose terms lie on a device."""

    function: Callable[..., Any]
    terms: tuple[Tensor, ...]
    dtype: torch.dtype
    low: float | None
    high: float | None

    def __call__(self, acc: Tensor, shift: Tensor | None = None) -> Tensor:
        """int32 sums (R, N), less the shift (N,) -> integers, or real values."""
        return tensors.apply(self.function, acc, self.terms, self.dtype, self.low, self.high, shift)


def finish_of(epilogue: Epilogue, device: torch.device) -> Finish:
    """The same of tensors."""
    if isinstance(epilogue, ToCodes):
        terms = on_device((*epilogue.terms, epilogue.zero_point), device)
        dtype = getattr(torch, epilogue.dtype.name)
        return Finish(epilogue.function, terms, dtype, epilogue.lowest, epilogue.highest)
    terms = on_device((epilogue.x_scale, epilogue.w_scale, epilogue.bias), device)
    return Finish(epilogue.function, terms, torch.float32, 0.0 if epilogue.relu else None, None)


def on_device(arrays: Any, device: torch.device) -> tuple[Tensor, ...]:
    """NumPy's arrays and numbers as tensors; a number needs no transfer, a kernel fills it in."""
    return tuple(_filled(a, device) if np.ndim(a) == 0 else torch.tensor(np.array(a), device=device) for a in arrays)


def _filled(number: Any, device: torch.device) -> Tensor:
    dtype = getattr(torch, np.asarray(number).dtype.name)
    return torch.full((), np.asarray(number).item(), dtype=dtype, device=device)


def uncovered_product(dialect: Dialect) -> str:
    """Why the sums of a Linear cannot be had from an exact integer product; "" if they can."""
    if not dialect.adds_exactly:
        return f"{dialect.name} adds products in pairs that saturate in int16, which no GPU does"
    return ""


@dataclass(frozen=True)
class Recipe:
    """What a dialect makes of a convolution's sums, and what keeps them from being exact, if anything."""

    epilogue: Epilogue
    obstacle: str


def conv_recipe(dialect: Dialect, run: Callable[[Any], Any], weight: QTensor, geometry: Geometry) -> Recipe:
    """Listens to a dialect while it convolves a tiny image: to which scales it turns, and to which engine.

    Args:
        dialect: minquant's.
        run: called with a copy of the dialect, convolves the image.
        weight: of the convolution.
        geometry: likewise.
    """
    heard: list[tuple[Dialect, Epilogue]] = []
    run(_listening(dialect, heard))
    if len(heard) != 1:
        return Recipe(None, f"{dialect.name} has a kernel of its own for these groups")  # type: ignore[arg-type]
    engine, epilogue = heard[0]
    if engine.convolves_exactly(weight.shape, geometry):
        return Recipe(epilogue, "")
    return Recipe(epilogue, f"{engine.name}'s kernel for it adds products in pairs that saturate in int16")


def _listening(dialect: Dialect, heard: list[tuple[Dialect, Epilogue]]) -> Any:
    """A copy that tells what it hands to `conv_product`, as do the engines that it hands convolutions to."""
    spy: Any = copy.copy(dialect)

    def conv_product(x: QTensor, weight: QTensor, geometry: Geometry, epilogue: Epilogue) -> np.ndarray:
        heard.append((dialect, epilogue))
        places = x.shape[0] * math.prod(geometry.places(x.shape[2:]))
        return epilogue(np.zeros((places, len(weight)), np.int32))

    spy.conv_product = conv_product
    for name in dir(type(dialect)):
        engine = getattr(type(dialect), name)
        if isinstance(engine, Dialect):
            setattr(spy, name, _listening(engine, heard))
    return spy
