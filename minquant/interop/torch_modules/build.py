"""Builds a torch model from a minquant model, module by module, and collects what is wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from minquant import nn, quant
from minquant.nn import Module
from minquant.quant.dialects import get_dialect
from minquant.quant.fake_quant import FakeQuantize
from minquant.quant.observers import Observer
from minquant.quant.weighted import QATWeighted

from . import pooling, quantizing, statistics
from .between import PerChannelUnary, Unary
from .covered import QUANTIZED
from .ends import DeQuantize
from .floats import FloatFunctional, Stub, float_kind, float_layer
from .forwards import borrow_for_torch

__all__ = ["build"]

COVERED = (
    "covered are Linear and Conv1d/2d, static and dynamic, QuantStub and DeQuantStub, ReLU, MaxPool2d, average "
    "pooling, Sigmoid, Tanh, GELU, SiLU, Softmax, norms (batch norm in eval), Flatten, FloatFunctional but for "
    "matmul, Embedding, containers, float layers"
)
OURS = ("minquant.nn.", "minquant.quant.")
"""Where layers are that have a counterpart or none; a forward of any other place is borrowed."""
ELEMENTWISE = (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU)


def build(model: Module) -> torch.nn.Module:
    """The whole model on the CPU.

    Raises:
        ValueError: something that cannot be brought over; the message lists everything, by path.
    """
    building = _Building()
    new = building.module("", model)
    if building.problems:
        lines = "\n  ".join(building.problems)
        raise ValueError(f"to_torch cannot bring {type(model).__name__} over:\n  {lines}\n{COVERED}")
    return new


SIMPLE: dict[type[Module], Callable[[], torch.nn.Module]] = {
    nn.QuantStub: Stub,
    nn.DeQuantStub: Stub,
    nn.FloatFunctional: FloatFunctional,
    quant.DeQuantize: DeQuantize,
}
"""Modules that keep nothing."""


class _Building:
    """Shared modules stay shared, tied tensors tied."""

    def __init__(self) -> None:
        self.modules: dict[int, torch.nn.Module] = {}
        self.tensors: dict[int, Any] = {}
        self.problems: list[str] = []

    def module(self, path: str, own: Any) -> torch.nn.Module:
        """The counterpart of a module."""
        if id(own) not in self.modules:
            if own._forward_hooks:
                self._problem(path, own, "has forward hooks, which would be lost: remove them first")
            new = self._new(path, own)
            new.training = own.training
            self.modules[id(own)] = new
        return self.modules[id(own)]

    def _new(self, path: str, own: Any) -> torch.nn.Module:
        if hasattr(own, "qconfig") or isinstance(own, QATWeighted | FakeQuantize | Observer):
            self._problem(path, own, "is prepared, not converted: call convert first")
            return Stub()
        kind = type(own)
        if float_kind(own) is not None:
            return float_layer(own, self.tensors)
        if kind in SIMPLE:
            return SIMPLE[kind]()
        if kind in QUANTIZED:
            make, obstacle = QUANTIZED[kind]
            return self._checked(path, own, obstacle(own), lambda: make(own, path))
        if kind is quant.BetweenGrids:
            return self._between(path, own)
        return self._container(path, own)

    def _checked(self, path: str, own: Any, obstacle: str, make: Callable[[], Any]) -> torch.nn.Module:
        if obstacle:
            self._problem(path, own, obstacle)
            return Stub()
        return make()

    def _between(self, path: str, own: Any) -> torch.nn.Module:
        """An operation between two grids, and the float layer that it is elsewhere."""
        dialect, inner = get_dialect(own.backend), own.module
        kind: Any
        if isinstance(inner, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            kind = pooling.AvgPool2d if isinstance(inner, nn.AvgPool2d) else pooling.AdaptiveAvgPool2d
            obstacle = pooling.uncovered_pool(dialect) or quantizing.uncovered_quantize(dialect)
            return self._checked(path, own, obstacle, lambda: kind(own, path, self.module(f"{path}.module", inner)))
        if isinstance(inner, nn.BatchNorm1d | nn.BatchNorm2d) and inner.track_running_stats and not inner.training:
            return PerChannelUnary(own, path, self.module(f"{path}.module", inner))
        if isinstance(inner, nn.LayerNorm | nn.RMSNorm | nn.Softmax):
            kind = statistics.Softmax if isinstance(inner, nn.Softmax) else statistics.Norm
            obstacle = statistics.uncovered_softmax(dialect) or quantizing.uncovered_quantize(dialect)
            return self._checked(path, own, obstacle, lambda: kind(own, path, self.module(f"{path}.module", inner)))
        if isinstance(inner, ELEMENTWISE):
            return Unary(own, path, self.module(f"{path}.module", inner))
        self._problem(path, own, f"{type(inner).__name__} between two grids is not covered")
        return Stub()

    def _container(self, path: str, own: Any) -> torch.nn.Module:
        if isinstance(own, nn.ModuleList):
            new: torch.nn.Module = torch.nn.ModuleList()
        elif isinstance(own, nn.Sequential) and type(own).forward is nn.Sequential.forward:
            new = torch.nn.Sequential()
        elif type(own).__module__.startswith(OURS) and type(own) is not nn.QuantWrapper:
            self._problem(path, own, "is not covered")
            return Stub()
        else:
            new, problems = borrow_for_torch(own)
            for problem in problems:
                self._problem(path, own, problem)
        for name, child in own._modules.items():
            below = f"{path}.{name}" if path else name
            new.add_module(name, None if child is None else self.module(below, child))
        return new

    def _problem(self, path: str, own: Any, what: str) -> None:
        name = f"'{path}' ({type(own).__name__})" if path else f"the model itself ({type(own).__name__})"
        self.problems.append(f"{name}: {what}")
