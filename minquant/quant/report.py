"""What became of each layer of a model: its grids, its bytes, and why it stayed in float."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

from minquant.nn import (
    DeQuantStub,
    Dropout,
    Flatten,
    Identity,
    MaxPool2d,
    Module,
    QuantStub,
    QuantWrapper,
    ReLU,
    Sequential,
)
from minquant.nn.layers import ModuleList

from .between import BETWEEN_GRIDS, NORMS, BetweenGrids, QFunctional
from .embedding import QATEmbedding, QuantizedEmbedding
from .fake_quant import FakeQuantize
from .fused import Fused
from .observers import Observer
from .qtensor import PACKED_UP_TO, QTensor
from .selection import TABLES, WITH_WEIGHT, is_quantized
from .spec import QSpec
from .stubs import DeQuantize, Quantize
from .weighted import IntegerWeight, QATWeighted

__all__ = ["Report", "report"]

FLOAT_BYTES = 4
WATCHERS = (Observer, FakeQuantize)
CONTAINERS = (Sequential, ModuleList, QuantWrapper)
ON_GRID = (ReLU, Flatten, Identity, Dropout, MaxPool2d)
STUBS = (QuantStub, DeQuantStub, Quantize, DeQuantize)
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
    flow = _flow(model)
    return Report(flow, [_row(path, module, flow) for path, module in _layers(model)])


class Report:
    """One row a layer.

    Attributes:
        flow: "float", "prepared" (for static quantization), "prepared for training", "dynamic" or "static".
        rows: dicts with the keys

            - layer: path, kind: class name;
            - weight, activation: the grids, "float32", or "" where there is none; the activation is a layer's
              output, except that a dynamic layer's is its input;
            - bytes_before, bytes_after: parameters in float32, and with weights as integers (with their
              scales and zero points; the bias stays float32);
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
        return _table(self)

    __repr__ = __str__


# ---- one layer --------------------------------------------------------------------------------------------


def _layers(model: Module) -> Iterator[tuple[str, Module]]:
    """Every module that computes something; a fused layer counts once, what watches it does not."""
    inside: set[Module] = set()
    for path, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, (*WATCHERS, Fused, QATWeighted, QATEmbedding, BetweenGrids)):
            inside.update(module.modules())
        if not isinstance(module, WATCHERS) and _computes(module):
            yield path, module


def _computes(module: Module) -> bool:
    """Whether a module does more than hold others."""
    if isinstance(module, Fused | BetweenGrids) or _has_parameters(module):
        return True
    watched_only = all(isinstance(child, WATCHERS) for child in module.children())
    return watched_only and not isinstance(module, CONTAINERS)


def _has_parameters(module: Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _row(path: str, module: Module, flow: str) -> dict[str, Any]:
    before, after = _weight_bytes(module)
    output, features = _output_spec(module), _out_features(module)
    real = features * FLOAT_BYTES if features else None
    activation = module.input_spec if _is_dynamic(module) else output
    return {
        "layer": path or "(model)",
        "kind": _kind(module),
        "weight": _weight_grid(module),
        "activation": str(activation) if activation else "float32" if features else "",
        "bytes_before": before,
        "bytes_after": after,
        "activation_bytes_before": real,
        "activation_bytes_after": _bytes(features, output) if features and output else real,
        "note": _note(module, flow),
    }


def _kind(module: Module) -> str:
    """The class; of one between grids, the float module's too."""
    inner = f"({type(module.module).__name__})" if isinstance(module, BetweenGrids) else ""
    return type(module).__name__ + inner


def _is_dynamic(module: Module) -> bool:
    return isinstance(module, IntegerWeight) and hasattr(module, "input_spec")


def _weighted(module: Module) -> Any:
    """The layer that holds the float weight of one that has an integer form; None for all others."""
    if isinstance(module, Fused):
        return module.layer
    return module if isinstance(module, (QATWeighted, QATEmbedding, *WITH_WEIGHT, *TABLES)) else None


def _out_features(module: Module) -> int | None:
    """Values in one row of the output, which only a Linear knows."""
    layer = module if isinstance(module, IntegerWeight) else _weighted(module)
    return getattr(layer, "out_features", None)


def _planned_weight_spec(module: Any) -> QSpec | None:
    """The weight grid that `convert` will choose."""
    if isinstance(module, QATWeighted | QATEmbedding):
        return module.weight_fake_quant.activation_post_process.spec
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
    if isinstance(module, IntegerWeight | QuantizedEmbedding):
        weight = module.weight
        return str(weight.qparams.spec) if isinstance(weight, QTensor) else f"uint{weight.bits} affine per row, real z"
    planned = _planned_weight_spec(module)
    if planned is not None:
        return str(planned)
    return "float32" if _weighted(module) or _has_parameters(module) else ""


def _weight_bytes(module: Module) -> tuple[int, int]:
    if isinstance(module, QuantizedEmbedding):
        return math.prod(module.weight.shape) * FLOAT_BYTES, module.weight.nbytes
    if isinstance(module, IntegerWeight):
        bias = 0 if module.bias is None else module.bias.nbytes
        return module.weight.numel() * FLOAT_BYTES + bias, module.weight.nbytes + bias
    layer, planned = _weighted(module), _planned_weight_spec(module)
    before = sum(p.data.nbytes for p in _own_parameters(module))
    if planned is None or layer is None:
        return before, before
    weight = layer.weight.data
    scales = math.prod(planned.granularity.qparams_shape(weight.shape))
    zero_points = 0 if planned.symmetric else scales
    bias = len(weight) * FLOAT_BYTES if getattr(module, "bn", None) is not None else before - weight.nbytes
    return before, bias + _bytes(weight.size, planned) + 4 * (scales + zero_points)


def _own_parameters(module: Module) -> Iterator[Any]:
    """Its own, and those of the layers fused in it or held between grids."""
    inside = isinstance(module, Fused | QATWeighted | BetweenGrids)
    return module.parameters() if inside else module.parameters(recurse=False)


def _bytes(integers: int, spec: QSpec) -> int:
    """Bytes of that many integers as `QTensor` stores them."""
    packed = spec.bits <= PACKED_UP_TO
    return math.ceil(integers * spec.bits / 8) if packed else integers * spec.dtype.itemsize


# ---- words ------------------------------------------------------------------------------------------------


def _flow(model: Module) -> str:
    if is_quantized(model):
        dynamic = any(map(_is_dynamic, model.modules()))
        return "dynamic" if dynamic else "static"
    if any(isinstance(m, FakeQuantize) for m in model.modules()):
        return "prepared for training"
    return "prepared" if any(hasattr(m, "qconfig") for m in model.modules()) else "float"


def _note(module: Any, flow: str) -> str:
    if _is_dynamic(module):
        return "the input's grid is chosen at run time"
    if isinstance(module, QuantizedEmbedding):
        return "its output is real values: a row's integers times the row's scale"
    if isinstance(module, BETWEEN_GRIDS) and hasattr(module, "qconfig"):
        return _between_note(module)
    if isinstance(module, BetweenGrids):
        return _between_note(module.module)
    if isinstance(module, QFunctional):
        return IN_REAL_VALUES
    if flow == "float" or hasattr(module, "qconfig") or isinstance(module, IntegerWeight):
        return ""
    if hasattr(module, "float_reason"):
        return f"stays in float: {module.float_reason}"
    if isinstance(module, STUBS):
        return ""
    if flow == "dynamic" and not _has_parameters(module):
        return "stays in float: no weight to quantize"
    if isinstance(module, ON_GRID):
        return "works on integers as they are"
    return "stays in float: no integer form"


IN_REAL_VALUES = "in real values between its input's grid and its own"


def _between_note(module: Module) -> str:
    if isinstance(module, NORMS):
        return (
            "stays in float, between two grids: it divides by a statistic of its input, so that integers would have no "
            "fixed scale" + FUSE_HINT * isinstance(module, NORMS[2:])
        )
    return IN_REAL_VALUES


FUSE_HINT = "; fuse_modules folds it into the layer before it"
TITLES = {
    "float": "float model",
    "prepared": "prepared model, as convert will make it",
    "prepared for training": "model prepared for training, as convert will make it",
    "dynamic": "dynamically quantized model",
    "static": "statically quantized model",
}
HEADER = ("layer", "kind", "weight", "activation", "parameters", "activations/row")
TEXT_COLUMNS = 4
CAN_BE_NARROWED = (0, 2, 3)
WIDTH = 110
NARROWEST = 10


def _table(report: Report) -> str:
    lines = [HEADER, *map(_cells, report.rows), ("total", "", "", "", *_arrows(report.totals))]
    widths = _widths(lines)
    rule = "  ".join("-" * width for width in widths)
    header, *rows, total = (_line(cells, widths) for cells in lines)
    return "\n".join([_title(report), header, rule, *rows, *_notes(report.rows), rule, total])


def _title(report: Report) -> str:
    before, after = report.totals["bytes_before"], report.totals["bytes_after"]
    smaller = f"; parameters {before / after:.2f} times smaller" if after != before else ""
    return f"{TITLES[report.flow]}{smaller} (sizes in bytes)"


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each note once, after the layers that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            about.setdefault(row["note"], []).append(row["layer"])
    for note, layers in about.items():
        yield textwrap.fill(f"* {', '.join(layers)}: {note}", WIDTH, subsequent_indent="  ")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    weight, activation = (
        row[key].replace("symmetric", "sym").replace(" per ", "/") for key in ("weight", "activation")
    )
    return row["layer"], row["kind"], weight, activation, *_arrows(row)


def _arrows(row: dict[str, Any]) -> tuple[str, str]:
    parameters = f"{row['bytes_before']:,} → {row['bytes_after']:,}" if row["bytes_before"] else ""
    before, after = row["activation_bytes_before"], row["activation_bytes_after"]
    return parameters, f"{before:,} → {after:,}" if before else ""


def _widths(lines: list[tuple[str, ...]]) -> list[int]:
    """The widest cell of each column; where that is too much, the widest columns of text are narrowed."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widest = max(CAN_BE_NARROWED, key=lambda i: widths[i])
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """One row of the table; a cell that is too wide goes on in the next line."""
    folded = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, folded))
    lines = zip(*(f + [""] * (height - len(f)) for f in folded), strict=True)
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i < TEXT_COLUMNS else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
