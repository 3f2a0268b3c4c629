"""What became of each layer of a model: its grids, its bytes, and why it stayed in float."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minquant.nn import Module, QuantWrapper, Sequential
from minquant.nn.layers import ModuleList

from .between import BetweenGrids, QFunctional
from .dialects.float_qparams import FloatQParamsTable
from .dialects.tinygemm import TinygemmTensor
from .embedding import QATEmbedding
from .fake_quant import FakeQuantize
from .fake_quantized import FakeQuantizedEmbedding, FakeQuantizedLinear
from .fake_quantizer import FakeQuantizerBase, TinygemmFakeQuantizer
from .fused import Fused
from .observers import Observer
from .qtensor import PACKED_UP_TO
from .report_table import table
from .report_words import IN_TRAINING, INTEGER, flow_of, has_parameters, is_dynamic, note_on
from .selection import TABLES, WITH_WEIGHT
from .spec import QSpec
from .stubs import Quantize
from .weight_only import StaticActivationLinear
from .weighted import IntegerWeight, QATWeighted

__all__ = ["Report", "report"]

FLOAT_BYTES = 4
REAL_Z = ", real z"
WATCHERS = (Observer, FakeQuantize, FakeQuantizerBase)
CONTAINERS = (Sequential, ModuleList, QuantWrapper)
BYTES = ("bytes_before", "bytes_after", "activation_bytes_before", "activation_bytes_after")


def report(model: Module) -> Report:
    """What quantization did, or will do, to each layer of a float, prepared, trained or converted model.

    Args:
        model: any Module. For a prepared one the bytes "after" are those after `convert`.

    Returns:
        A `Report`: prints as a table, `rows` are for programs, `totals` their sums.

    Raises:
        TypeError: not a Module.
    """
    if not isinstance(model, Module):
        raise TypeError(f"report: expected a Module, got {type(model).__name__}; a Tensor has .data.nbytes")
    flow = flow_of(model)
    owners: dict[tuple[int, str], str] = {}
    return Report(flow, [_row(path, module, flow, owners) for path, module in _layers(model)])


class Report:
    """One row a layer.

    Attributes:
        flow: "float", "prepared" (for static quantization), "prepared for training", "dynamic" or "static"; of
            `quantize_`: "prepared in place", "weight only", "static inputs" or "dynamic".
        rows: dicts with the keys

            - layer: path, kind: class name;
            - weight, activation: the grids, "float32", or "" where there is none; the activation is a layer's
              output, except that of a layer that hands on real values, a dynamic one say, it is the input;
            - bytes_before, bytes_after: parameters in float32, and with weights as integers (with their
              scales and zero points; the bias stays float32); a weight that several layers share counts once;
            - activation_bytes_before, activation_bytes_after: one row of the layer's output, in float32 and
              as it flows to the next layer; None where the number of features is not known;
            - note: why it stayed in float, and what else is worth knowing.
    """

    def __init__(self, flow: str, rows: list[dict[str, Any]]) -> None:
        self.flow = flow
        self.rows = rows

    @property
    def totals(self) -> dict[str, int]:
        """Sums of the four columns of bytes."""
        return {key: sum(row[key] or 0 for row in self.rows) for key in BYTES}

    def __str__(self) -> str:
        return table(self.flow, self.rows, self.totals)

    __repr__ = __str__


# ---- one layer --------------------------------------------------------------------------------------------


def _layers(model: Module) -> Iterator[tuple[str, Module]]:
    """Every module that computes something; a fused layer counts once, what watches it does not."""
    inside: set[Module] = set()
    for path, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, (*WATCHERS, Fused, *IN_TRAINING, BetweenGrids)):
            inside.update(module.modules())
        if not isinstance(module, WATCHERS) and _computes(module):
            yield path, module


def _computes(module: Module) -> bool:
    """Whether a module does more than hold others."""
    if isinstance(module, Fused | BetweenGrids) or has_parameters(module):
        return True
    watched_only = all(isinstance(child, WATCHERS) for child in module.children())
    return watched_only and not isinstance(module, CONTAINERS)


def _row(path: str, module: Module, flow: str, owners: dict[tuple[int, str], str]) -> dict[str, Any]:
    before, after = _weight_bytes(module)
    owner = _owner(path, module, owners)
    if owner is not None:
        before, after = (all_of_it - weight for all_of_it, weight in zip((before, after), _shared(module), strict=True))
    output, features = _output_spec(module), _out_features(module)
    real = features * FLOAT_BYTES if features else None
    activation = _input_spec(module) or output
    return {
        "layer": path or "(model)",
        "kind": _kind(module),
        "weight": _weight_grid(module),
        "activation": str(activation) if activation else "float32" if features else "",
        "bytes_before": before,
        "bytes_after": after,
        "activation_bytes_before": real,
        "activation_bytes_after": _bytes(features, output) if features and output else real,
        "note": "; ".join(filter(None, (note_on(module, flow), owner and f"its weight is that of {owner}"))),
    }


def _owner(path: str, module: Any, owners: dict[tuple[int, str], str]) -> str | None:
    """The layer before this one that has the very same weight, and will have it, if any."""
    layer = module if isinstance(module, INTEGER) else _weighted(module)
    if layer is None:
        return None
    owner = owners.setdefault((id(layer.weight), _weight_grid(module)), path)
    return None if owner == path else owner


def _shared(module: Any) -> tuple[int, int]:
    """Bytes of the weight alone, before and after."""
    if isinstance(module, INTEGER):
        return math.prod(module.weight.shape) * FLOAT_BYTES, module.weight.nbytes
    weight, planned = _weighted(module).weight.data, _planned_weight_spec(module)
    return weight.nbytes, weight.nbytes if planned is None else _planned_bytes(weight, planned)


def _kind(module: Module) -> str:
    """The class; of one between grids, the float module's too."""
    inner = f"({type(module.module).__name__})" if isinstance(module, BetweenGrids) else ""
    return type(module).__name__ + inner


def _input_spec(module: Any) -> QSpec | None:
    """The grid of the input of a layer that hands on real values, now or after conversion; None for all others."""
    if isinstance(module, StaticActivationLinear):
        return module.input_grid.spec
    if isinstance(module, FakeQuantizedLinear):
        rounds = module.activation_fake_quantizer
        return None if rounds is None else _spec_of(rounds)
    return module.input_spec if is_dynamic(module) else None


def _spec_of(fake_quantizer: Any) -> QSpec | None:
    """The kind of grid that it rounds to, where it is known before it sees values."""
    if isinstance(fake_quantizer, FakeQuantize):
        return fake_quantizer.activation_post_process.spec
    return getattr(fake_quantizer.config, "spec", None)


def _weighted(module: Module) -> Any:
    """The layer that holds the float weight of one that has an integer form; None for all others."""
    if isinstance(module, Fused):
        return module.layer
    return module if isinstance(module, (*IN_TRAINING, *WITH_WEIGHT, *TABLES)) else None


def _out_features(module: Module) -> int | None:
    """Values in one row of the output, which only a Linear knows."""
    layer = module if isinstance(module, IntegerWeight) else _weighted(module)
    return getattr(layer, "out_features", None)


def _planned_weight_spec(module: Any) -> QSpec | None:
    """The weight grid that `convert` will choose."""
    if isinstance(module, QATWeighted | QATEmbedding):
        return _spec_of(module.weight_fake_quant)
    if isinstance(module, FakeQuantizedLinear | FakeQuantizedEmbedding):
        rounds = module.weight_fake_quantizer
        return _spec_of(rounds) or rounds.quantized(module.weight).qparams.spec
    return module.qconfig.weight().spec if hasattr(module, "qconfig") and _weighted(module) else None


def _output_spec(module: Any) -> QSpec | None:
    """The grid of what the layer hands on, now or after `convert`; None for float32."""
    grid = getattr(module, "output", None)
    if isinstance(module, IntegerWeight | BetweenGrids | QFunctional):
        return None if grid is None else grid.spec
    if isinstance(module, Quantize):
        return module.qparams.spec
    if not hasattr(module, "activation_post_process"):
        return None
    watcher = module.activation_post_process
    return (watcher.activation_post_process if isinstance(watcher, FakeQuantize) else watcher).spec


def _weight_grid(module: Module) -> str:
    if isinstance(module, INTEGER):
        weight = module.weight
        if isinstance(weight, FloatQParamsTable):
            return f"uint{weight.bits} affine per row{REAL_Z}"
        return f"{weight.qparams.spec}{REAL_Z * isinstance(weight, TinygemmTensor)}"
    planned = _planned_weight_spec(module)
    if planned is not None:
        return f"{planned}{REAL_Z * isinstance(getattr(module, 'weight_fake_quantizer', None), TinygemmFakeQuantizer)}"
    return "float32" if _weighted(module) or has_parameters(module) else ""


def _weight_bytes(module: Module) -> tuple[int, int]:
    """Bytes of all parameters, before and after."""
    if isinstance(module, INTEGER):
        bias = getattr(module, "bias", None)
        before, after = _shared(module)
        return (before, after) if bias is None else (before + bias.nbytes, after + bias.nbytes)
    layer, planned = _weighted(module), _planned_weight_spec(module)
    before = sum(p.data.nbytes for p in _own_parameters(module))
    if planned is None or layer is None:
        return before, before
    weight = layer.weight.data
    bias = len(weight) * FLOAT_BYTES if getattr(module, "bn", None) is not None else before - weight.nbytes
    return before, bias + _planned_bytes(weight, planned)


def _planned_bytes(weight: np.ndarray, planned: QSpec) -> int:
    """Of the integers that it will be, with scales and zero points."""
    scales = math.prod(planned.granularity.qparams_shape(weight.shape))
    return _bytes(weight.size, planned) + 4 * scales * (1 if planned.symmetric else 2)


def _own_parameters(module: Module) -> Iterator[Any]:
    """Its own, and those of the layers fused in it or held between grids."""
    inside = isinstance(module, Fused | QATWeighted | BetweenGrids)
    return module.parameters() if inside else module.parameters(recurse=False)


def _bytes(integers: int, spec: QSpec) -> int:
    """Bytes of that many integers as `QTensor` stores them."""
    packed = spec.bits <= PACKED_UP_TO
    return math.ceil(integers * spec.bits / 8) if packed else integers * spec.dtype.itemsize
