"""What a report says of a model and of each layer, in words."""

from __future__ import annotations

from typing import Any

from minquant.nn import DeQuantStub, Dropout, Embedding, Flatten, Identity, Linear, MaxPool2d, Module, QuantStub, ReLU

from .between import BETWEEN_GRIDS, NORMS, BetweenGrids, QFunctional
from .embedding import QATEmbedding, QuantizedEmbedding
from .fake_quant import FakeQuantize
from .fake_quantized import FakeQuantizedEmbedding, FakeQuantizedLinear
from .selection import is_quantized
from .stubs import DeQuantize, Quantize
from .weight_only import StaticActivationLinear, WeightOnlyQuantizedLinear
from .weighted import IntegerWeight, QATWeighted

__all__ = ["INTEGER", "IN_TRAINING", "flow_of", "has_parameters", "is_dynamic", "note_on"]

INTEGER = (IntegerWeight, QuantizedEmbedding)
IN_TRAINING = (QATWeighted, QATEmbedding, FakeQuantizedLinear, FakeQuantizedEmbedding)
ON_GRID = (ReLU, Flatten, Identity, Dropout, MaxPool2d)
STUBS = (QuantStub, DeQuantStub, Quantize, DeQuantize)
REAL_VALUES_BETWEEN = ("prepared in place", "weight only", "static inputs", "dynamic")


def flow_of(model: Module) -> str:
    """Which of its lives a model is in; see `minquant.quant.report.Report`."""
    modules = list(model.modules())
    if any(isinstance(m, FakeQuantizedLinear | FakeQuantizedEmbedding) for m in modules):
        return "prepared in place"
    if is_quantized(model):
        return _quantized_flow(modules)
    if any(isinstance(m, FakeQuantize) for m in modules):
        return "prepared for training"
    return "prepared" if any(hasattr(m, "qconfig") for m in modules) else "float"


def _quantized_flow(modules: list[Module]) -> str:
    if any(map(is_dynamic, modules)):
        return "dynamic"
    if any(isinstance(m, StaticActivationLinear) for m in modules):
        return "static inputs"
    only = (WeightOnlyQuantizedLinear, QuantizedEmbedding)
    on_integers = any(isinstance(m, IntegerWeight | Quantize) and not isinstance(m, only) for m in modules)
    return "static" if on_integers else "weight only"


def note_on(module: Any, flow: str) -> str:
    """Why a layer stayed in float, and what else is worth knowing; may be empty."""
    if isinstance(module, INTEGER):
        return _integer_note(module)
    if isinstance(module, BETWEEN_GRIDS) and hasattr(module, "qconfig"):
        return _between_note(module)
    if isinstance(module, BetweenGrids):
        return _between_note(module.module)
    if isinstance(module, QFunctional):
        return IN_REAL_VALUES
    if flow == "float" or hasattr(module, "qconfig") or isinstance(module, IN_TRAINING):
        return ""
    if hasattr(module, "float_reason"):
        return f"stays in float: {module.float_reason}"
    if isinstance(module, STUBS):
        return ""
    if flow in REAL_VALUES_BETWEEN:
        return f"stays in float: {_why_not_in_place(module)}"
    return "works on integers as they are" if isinstance(module, ON_GRID) else "stays in float: no integer form"


def _integer_note(module: Any) -> str:
    if is_dynamic(module):
        return "the input's grid is chosen at run time"
    if isinstance(module, QuantizedEmbedding):
        return "its output is real values: a row's integers times the row's scale"
    if isinstance(module, WeightOnlyQuantizedLinear):
        return "its product is float32's, with the real values behind the weight's integers"
    return "its output is real values" if isinstance(module, StaticActivationLinear) else ""


def _why_not_in_place(module: Module) -> str:
    if not has_parameters(module):
        return "no weight to quantize"
    return "quantize_ was not asked for it" if isinstance(module, (Linear, Embedding)) else "no integer form"


IN_REAL_VALUES = "in real values between its input's grid and its own"


def _between_note(module: Module) -> str:
    if isinstance(module, NORMS):
        return (
            "stays in float, between two grids: it divides by a statistic of its input, so that integers would have no "
            "fixed scale" + FUSE_HINT * isinstance(module, NORMS[2:])
        )
    return IN_REAL_VALUES


FUSE_HINT = "; fuse_modules folds it into the layer before it"


def is_dynamic(module: Module) -> bool:
    """Whether it chooses its input's grid from the input itself."""
    return isinstance(module, IntegerWeight) and hasattr(module, "input_spec")


def has_parameters(module: Module) -> bool:
    """Whether it has any of its own."""
    return any(True for _ in module.parameters(recurse=False))
