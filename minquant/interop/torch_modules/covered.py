"""Which quantized layers there are in torch, and what keeps a layer from it: the dialect's arithmetic decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from minquant import quant
from minquant.nn import Module
from minquant.quant.dialects import Dialect, get_dialect
from minquant.quant.dialects.reference import Reference
from minquant.quant.dialects.torch_rules import QUINT8, TorchDialect
from minquant.quant.dialects.torchao import Torchao
from minquant.quant.spec import PerGroup, QParams

from . import quantizing, rules
from .between import Functional
from .conv import DynamicConv, StaticConv, tiny_image
from .ends import DeQuantize, Embedding, Quantize
from .linear import DynamicLinear, StaticActivationLinear, StaticLinear
from .weight_only import WeightOnlyLinear

__all__ = ["QUANTIZED"]


def _linear_obstacle(layer: Any) -> str:
    dialect = get_dialect(layer.backend)
    if isinstance(layer.weight.qparams.spec.granularity, PerGroup) and not isinstance(dialect, Reference):
        return f"{dialect.name} multiplies real values for a weight with groups, in an order that each device chooses"
    known = type(dialect).linear in (Dialect.linear, Reference.linear)
    return rules.uncovered_product(dialect) if known else f"the way in which {dialect.name} multiplies is not covered"


def _dynamic_linear_obstacle(layer: Any) -> str:
    dialect = get_dialect(layer.backend)
    if isinstance(dialect, Torchao) and not layer.input_spec.symmetric:
        return "torchao multiplies real values for an affine input, in an order that each device chooses"
    return _linear_obstacle(layer) or quantizing.uncovered_run_time(dialect)


def _conv_obstacle(layer: Any) -> str:
    output, grid, bias = layer.output, _any_grid(), layer._bias_or_zeros()
    spied = tiny_image(grid, layer.geometry, layer.in_channels)
    return rules.conv_recipe(
        get_dialect(layer.backend),
        lambda d: d.conv(spied, layer.weight, bias, output, layer.relu, layer.geometry),
        layer.weight,
        layer.geometry,
    ).obstacle


def _dynamic_conv_obstacle(layer: Any) -> str:
    dialect = get_dialect(layer.backend)
    if type(dialect).dynamic_conv is Dialect.dynamic_conv:
        return quantizing.uncovered_run_time(dialect)
    if type(dialect).dynamic_conv is not TorchDialect.dynamic_conv:
        return f"the way in which {dialect.name} convolves real values is not covered"
    grid, bias = _any_grid(), layer._bias_or_zeros()
    spied = tiny_image(grid, layer.geometry, layer.in_channels)
    return rules.conv_recipe(
        dialect,
        lambda d: d.conv_to_input_grid(spied, grid.scale.astype(float), layer.weight, bias, layer.geometry),
        layer.weight,
        layer.geometry,
    ).obstacle


def _any_grid() -> QParams:
    return QParams(np.ones((), np.float32), np.zeros((), np.int32), QUINT8)


def _table_obstacle(layer: Any) -> str:
    return "" if isinstance(layer.weight, quant.QTensor) else "torch's table with real zero points is not covered"


def _quantize_obstacle(layer: Any) -> str:
    return quantizing.uncovered_quantize(get_dialect(layer.backend))


def _nothing(layer: Any) -> str:
    return ""


QUANTIZED: dict[type[Module], tuple[Callable[[Any, str], torch.nn.Module], Callable[[Any], str]]] = {
    quant.DeQuantize: (lambda module, path: DeQuantize(), _nothing),
    quant.Quantize: (Quantize, _quantize_obstacle),
    quant.QFunctional: (Functional, _nothing),
    quant.QuantizedEmbedding: (Embedding, _table_obstacle),
    quant.QuantizedLinear: (StaticLinear, _linear_obstacle),
    quant.QuantizedLinearReLU: (StaticLinear, _linear_obstacle),
    quant.DynamicQuantizedLinear: (DynamicLinear, _dynamic_linear_obstacle),
    quant.DynamicQuantizedLinearReLU: (DynamicLinear, _dynamic_linear_obstacle),
    quant.StaticActivationLinear: (StaticActivationLinear, _linear_obstacle),
    quant.WeightOnlyQuantizedLinear: (WeightOnlyLinear, _nothing),
    quant.QuantizedConv1d: (StaticConv, _conv_obstacle),
    quant.QuantizedConv2d: (StaticConv, _conv_obstacle),
    quant.QuantizedConvReLU1d: (StaticConv, _conv_obstacle),
    quant.QuantizedConvReLU2d: (StaticConv, _conv_obstacle),
    quant.DynamicQuantizedConv1d: (DynamicConv, _dynamic_conv_obstacle),
    quant.DynamicQuantizedConv2d: (DynamicConv, _dynamic_conv_obstacle),
    quant.DynamicQuantizedConvReLU1d: (DynamicConv, _dynamic_conv_obstacle),
    quant.DynamicQuantizedConvReLU2d: (DynamicConv, _dynamic_conv_obstacle),
}
"""By minquant's class: what makes the torch module, and what says why it cannot, if it cannot."""
