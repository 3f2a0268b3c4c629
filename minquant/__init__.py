"""Neural-network quantization from scratch, on a NumPy autograd core."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Tensors and their operations need each other: tensor.py, loaded first, brings in the rest.
from minquant.tensor import Tensor, no_grad

# isort: split
from minquant import functional, nn, optim
from minquant.random import manual_seed, rand, randn

if TYPE_CHECKING:
    from minquant import lm, quant
    from minquant.loading import load
    from minquant.saving import save

__all__ = [
    "Tensor", "functional", "lm", "load", "manual_seed", "nn", "no_grad", "optim", "quant", "rand", "randn", "save",
]  # fmt: skip

_LATER = {"lm": "lm", "quant": "quant", "load": "loading", "save": "saving"}


def __getattr__(name: str) -> Any:
    """Half of the package is imported when somebody first asks for it, so that ``import minquant`` costs little."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_LATER[name]}")
    return module if name in ("lm", "quant") else getattr(module, name)
