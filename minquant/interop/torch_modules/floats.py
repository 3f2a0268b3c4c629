"""Float layers as torch's own: the same parameters, buffers and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minquant import nn
from minquant.interop.torch_layers import KINDS, Kind
from minquant.nn import Module

__all__ = ["FloatFunctional", "Stub", "brought", "float_kind", "float_layer"]

FLOATS: dict[type[Module], tuple[str, Kind]] = {
    kind.ours: (name, kind)
    for name, kind in KINDS.items()
    if name.startswith("torch.nn.modules") and not kind.container
}
"""By minquant's class: the full name of torch's, and what both have."""


def float_kind(module: Module) -> Kind | None:
    """The table's row for a float layer of minquant's, None if it is something else."""
    return FLOATS[type(module)][1] if type(module) in FLOATS else None


def float_layer(module: Any, tensors: dict[int, Any]) -> torch.nn.Module:
    """A torch layer with the same numbers.

    Args:
        module: a layer that `float_kind` knows.
        tensors: those brought over so far, by id of minquant's, so that tied ones stay tied.
    """
    name, kind = FLOATS[type(module)]
    settings = {name: getattr(module, name) for name in kind.settings}
    if {"bias"} <= set(kind.tensors) and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        settings["bias"] = module.bias is not None
    theirs = getattr(torch.nn, name.rpartition(".")[2])
    new = torch.nn.utils.skip_init(theirs, **settings) if kind.tensors else theirs(**settings)  # draws no numbers
    for name in kind.tensors:
        own = getattr(module, name)
        is_parameter = name in module._parameters
        (new._parameters if is_parameter else new._buffers)[name] = brought(own, is_parameter, tensors)
    return new


def brought(own: Any, is_parameter: bool, tensors: dict[int, Any]) -> Any:
    """A parameter or buffer in torch; `tensors`: as of `float_layer`."""
    if own is None:
        return None
    if id(own) not in tensors:
        values = torch.tensor(np.array(own.data))
        tensors[id(own)] = torch.nn.Parameter(values, own.requires_grad) if is_parameter else values
    return tensors[id(own)]


class Stub(torch.nn.Module):
    """minquant's `QuantStub` or `DeQuantStub` in a float model: the values as they are."""

    def forward(self, x: Any) -> Any:
        return x


class FloatFunctional(torch.nn.Module):
    """minquant's `FloatFunctional`: operations between tensors, under the names that `forward` calls them by."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """X + y."""
        return x + y

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """max(x + y, 0)."""
        return torch.relu(x + y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """X · y."""
        return x * y

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """X + y of a number y."""
        return x + y

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """X · y of a number y."""
        return x * y

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """X @ y over the last two axes."""
        return x @ y

    def cat(self, x: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The tensors of x joined along axis dim."""
        return torch.cat(list(x), dim)
