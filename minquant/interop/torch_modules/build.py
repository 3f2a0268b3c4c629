"""Builds a torch model from a minquant model, module by module, and collects what is wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from minquant import nn, quant
from minquant.interop.shell import shell_of
from minquant.lm import model as lm_model
from minquant.nn import Module
from minquant.quant.dialects import get_dialect
from minquant.quant.watching import HOOKS

from . import llama, pooling, quantizing, statistics
from .between import PerChannelUnary, Unary
from .covered import QUANTIZED
from .floats import FloatFunctional, Stub, brought, float_kind, float_layer
from .forwards import borrow_for_torch
from .prepared import twin_of
from .quantized import Weight
from .twin import Twin

__all__ = ["build"]

COVERED = (
    "covered are Linear and Conv1d/2d, static and dynamic, QuantStub and DeQuantStub, ReLU, MaxPool2d, average "
    "pooling, Sigmoid, Tanh, GELU, SiLU, Softmax, norms (batch norm in eval), Flatten, FloatFunctional but for "
    "matmul, Embedding, containers, Llama, float layers; in training Linear, Conv1d/2d, Embedding, stubs, "
    "FloatFunctional, with observers of a smallest and largest value"
)
OURS = ("minquant.nn.", "minquant.quant.")
"""Where layers are that have a counterpart or none; a forward of any other place is borrowed."""
ELEMENTWISE = (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU)
LLAMA: dict[type[Module], type[Twin]] = {lm_model.Attention: llama.Attention, lm_model.Decoder: llama.Decoder}
FLOAT_STUBS: dict[type[Module], Callable[[], torch.nn.Module]] = {
    nn.QuantStub: Stub,
    nn.DeQuantStub: Stub,
    nn.FloatFunctional: FloatFunctional,
}
Makers = Mapping[type[Module], tuple[Callable[[Any, str], torch.nn.Module], Callable[[Any], str]]]


def build(model: Module, makers: Makers = QUANTIZED, flow: str = "to_torch", covered: str = COVERED) -> torch.nn.Module:
    """The whole model on the CPU.

    Args:
        model: minquant's.
        makers: by class of quantized layer, what makes the torch module and what says why it cannot, if it cannot.
        flow: the function that asks, for messages.
        covered: what it covers, likewise.

    Raises:
        ValueError: something that cannot be brought over; the message lists everything, by path.
    """
    building = _Building(makers)
    new = building.module("", model)
    if building.problems:
        lines = "\n  ".join(building.problems)
        raise ValueError(f"{flow} cannot bring {type(model).__name__} over:\n  {lines}\n{covered}")
    return new


class _Building:
    """Shared modules stay shared, tied tensors tied."""

    def __init__(self, makers: Makers) -> None:
        self.makers = makers
        self.modules: dict[int, torch.nn.Module] = {}
        self.tensors: dict[int, Any] = {}
        self.weights: dict[int, Any] = {}
        self.problems: list[str] = []

    def module(self, path: str, own: Any) -> torch.nn.Module:
        """The counterpart of a module."""
        if id(own) not in self.modules:
            if set(own._forward_hooks.values()) - set(HOOKS.values()):
                self._problem(path, own, "has forward hooks, which would be lost: remove them first")
            new = self._new(path, own)
            new.training = own.training
            self.modules[id(own)] = new
        return self.modules[id(own)]

    def _new(self, path: str, own: Any) -> torch.nn.Module:
        twin, obstacle = (LLAMA[type(own)], "") if type(own) in LLAMA else twin_of(own)
        if twin is not None:
            if self.makers is not QUANTIZED and type(own) not in LLAMA:
                obstacle = "is prepared, not converted: convert it first"
            return self._checked(path, own, obstacle, lambda: self._filled(path, own, twin(own, path)))
        if float_kind(own) is not None:
            return float_layer(own, self.tensors)
        if type(own) in self.makers:
            make, obstacle_of = self.makers[type(own)]
            return self._checked(path, own, obstacle_of(own), lambda: self._quantized(own, make(own, path)))
        if self.makers is QUANTIZED and type(own) is quant.BetweenGrids:
            return self._between(path, own)
        return self._container(path, own)

    def _checked(self, path: str, own: Any, obstacle: str, make: Callable[[], Any]) -> torch.nn.Module:
        if obstacle:
            self._problem(path, own, obstacle)
            return Stub()
        return make()

    def _quantized(self, own: Any, new: Any) -> torch.nn.Module:
        """With the integers of the layer that it shares them with."""
        if isinstance(getattr(new, "weight", None), Weight):
            new.weight = self.weights.setdefault(id(own.weight), new.weight)
        return new

    def _filled(self, path: str, own: Any, new: Any) -> torch.nn.Module:
        """With parameters, buffers and children."""
        for name, parameter in own._parameters.items():
            new.register_parameter(name, brought(parameter, True, self.tensors))
        for name, buffer in own._buffers.items():
            new.register_buffer(name, brought(buffer, False, self.tensors))
        for name, child in own._modules.items():
            below = f"{path}.{name}" if path else name
            new.add_module(name, None if child is None else self.module(below, child))
        return new

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
        new: torch.nn.Module
        if isinstance(own, nn.ModuleList):
            new = torch.nn.ModuleList()
        elif isinstance(own, nn.Sequential) and type(own).forward is nn.Sequential.forward:
            new = torch.nn.Sequential()
        elif type(own) in FLOAT_STUBS:
            new = FLOAT_STUBS[type(own)]()
        elif type(own).__module__.startswith(OURS) and type(own) is not nn.QuantWrapper:
            self._problem(path, own, "is not covered")
            return Stub()
        else:
            new, problems = borrow_for_torch(own)
            for problem in problems:
                self._problem(path, own, problem)
        new.shell = shell_of(own)
        return self._filled(path, own, new)

    def _problem(self, path: str, own: Any, what: str) -> None:
        name = f"'{path}' ({type(own).__name__})" if path else f"the model itself ({type(own).__name__})"
        self.problems.append(f"{name}: {what}")
