"""minquant's models, as `compare` sees them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from minquant import no_grad
from minquant.functional.geometry import Geometry
from minquant.nn import (
    BatchNorm1d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    DeQuantStub,
    Dropout,
    Embedding,
    EmbeddingBag,
    Flatten,
    FloatFunctional,
    Identity,
    Linear,
    Module,
    ModuleList,
    QuantStub,
    QuantWrapper,
    ReLU,
    Sequential,
)
from minquant.quant import (
    BetweenGrids,
    DeQuantize,
    FakeQuantize,
    QFunctional,
    QTensor,
    Quantize,
    fake_quantize,
    quantize,
)
from minquant.quant.batch_norm import fold_batch_norm
from minquant.quant.embedding import QATEmbedding, QuantizedEmbedding
from minquant.quant.fused import Fused
from minquant.quant.observers import Observer
from minquant.quant.weighted import IntegerWeight, QATWeighted
from minquant.tensor import Tensor

from .side import Side
from .values import Facts, Value

__all__ = ["MinquantSide"]

WATCHERS = (Observer, FakeQuantize)
LEAVES = (Fused, QATWeighted, QATEmbedding, BetweenGrids)
"""Modules that count once, with all that is inside them."""
PASSES_ON = (Sequential, ModuleList, QuantWrapper, Identity, Dropout, Flatten, DeQuantStub, DeQuantize)


class MinquantSide(Side):
    """A minquant model."""

    def _computing(self) -> Iterator[tuple[str, Any]]:
        inside: set[Module] = set()
        for path, module in self.model.named_modules():
            if module in inside or isinstance(module, WATCHERS):
                continue
            if isinstance(module, LEAVES):
                inside.update(module.modules())
            if isinstance(module, LEAVES) or _computes(module):
                yield path, module

    def kind_of(self, module: Any) -> str:
        return "functional" if isinstance(module, FloatFunctional | QFunctional) else "call"

    def is_value(self, raw: Any) -> bool:
        return isinstance(raw, QTensor | Tensor | np.ndarray)

    def value_of(self, raw: Any) -> Value:
        if isinstance(raw, QTensor):
            return raw
        if isinstance(raw, Tensor) and raw.qparams is not None:
            return quantize(raw.data, raw.qparams)
        return raw.data if isinstance(raw, Tensor) else raw

    def like(self, template: Any, value: Value) -> Any:
        if isinstance(template, QTensor):
            return value if isinstance(value, QTensor) else quantize(value, template.qparams)
        grid = getattr(template, "qparams", None)
        if grid is None:
            return Tensor(value.dequantize() if isinstance(value, QTensor) else value)
        if not isinstance(value, QTensor):
            return fake_quantize(Tensor(value), grid)
        on_grid = Tensor(value.dequantize())
        on_grid.qparams = value.qparams
        return on_grid

    def quantized(self, value: Value) -> Any:
        return value

    def input(self, batch: Any) -> Any:
        return Tensor(np.asarray(batch))

    def without_gradients(self) -> Any:
        return no_grad()

    def folded(self, layer: Any, bn: Any) -> tuple[np.ndarray, np.ndarray]:
        with no_grad():
            weight, bias = fold_batch_norm(layer.weight, layer.bias, bn)
        return weight.data, bias.data

    def facts_of(self, module: Any) -> Facts:
        kind = type(module.module if isinstance(module, BetweenGrids) else module).__name__
        if isinstance(module, IntegerWeight):
            return _integer_facts(module)
        if isinstance(module, QATWeighted):
            return _qat_facts(module)
        if isinstance(module, Embedding | EmbeddingBag | QATEmbedding | QuantizedEmbedding):
            return _table_facts(module)
        if isinstance(module, Quantize):
            return Facts(kind, "quantize", output=module.qparams, dialect=module.backend, integers=True)
        if isinstance(module, BetweenGrids | QFunctional):
            role = "functional" if isinstance(module, QFunctional) else "other"
            return Facts(kind, role, output=module.output, dialect=module.backend, integers=True)
        return _float_facts(module)


def _computes(module: Module) -> bool:
    """Whether a module does more than hold others or pass values on."""
    children = [child for child in module.children() if not isinstance(child, WATCHERS)]
    owns = any(True for _ in module.parameters(recurse=False))
    return not isinstance(module, PASSES_ON) and (owns or not children)


def _integer_facts(module: Any) -> Facts:
    return Facts(
        type(module).__name__,
        _role(module.weight),
        weight=module.weight,
        bias=module.bias,
        output=getattr(module, "output", None),
        relu=module.relu,
        dialect=module.backend,
        geometry=getattr(module, "geometry", None),
        dynamic=hasattr(module, "input_spec"),
        integers=True,
        input_range=(module.input_spec.qmin, module.input_spec.qmax) if hasattr(module, "input_spec") else None,
    )


def _qat_facts(module: Any) -> Facts:
    """The integers that the layer multiplies by when it is evaluated."""
    with no_grad():
        weight, bias = module.folded()
        on_grid = copy.deepcopy(module.weight_fake_quant)(weight)  # it may observe, and move
    return Facts(
        type(module).__name__,
        _role(weight),
        weight=quantize(on_grid.data, on_grid.qparams) if on_grid.qparams is not None else weight.data,
        bias=None if bias is None else bias.data,
        relu=module.relu,
        dialect=module.backend,
        geometry=getattr(module, "geometry", None),
    )


def _table_facts(module: Any) -> Facts:
    table, kind = module.weight, type(module).__name__
    if isinstance(module, QuantizedEmbedding):
        return Facts(kind, "embedding", table if isinstance(table, QTensor) else table.dequantize(), integers=True)
    return Facts(kind, "embedding", table.data)


def _float_facts(module: Any) -> Facts:
    kind = type(module).__name__
    if isinstance(module, Fused):
        layer: Any = module.layer
        inner = _float_facts(layer)
        return inner.with_(kind=kind, relu=module.has_relu)
    if isinstance(module, Linear | Conv1d | Conv2d):
        bias = None if module.bias is None else module.bias.data
        return Facts(kind, _role(module.weight), module.weight.data, bias, geometry=_slide(module))
    if isinstance(module, BatchNorm1d | BatchNorm2d):
        return Facts(kind, "norm")
    role = "relu" if isinstance(module, ReLU) else "quantize" if isinstance(module, QuantStub) else "other"
    return Facts(kind, role)


def _role(weight: Any) -> str:
    return "linear" if weight.ndim == 2 else "conv"


def _slide(module: Any) -> Any:
    if isinstance(module, Linear):
        return None
    return Geometry.of(
        type(module).__name__, module.weight.shape[2:], module.stride, module.padding, module.dilation, module.groups
    )
