"""From a float model to an integer one: `prepare`, `prepare_qat`, `convert`, `quantize_dynamic`.

All return a new model and leave the one they are given as it was, except that `prepare_qat` shares its Parameters:
an optimizer made before still trains the model made after.
"""

from __future__ import annotations

import copy
from typing import Any

from minquant.nn import DeQuantStub, Dropout, Module, QuantStub

from .conversion import replace_modules, to_dynamic, to_integers, to_qat, to_table, weight_observer
from .fake_quant import FakeQuantize
from .fused import Fused
from .observers import Observer
from .qconfig import default_dynamic_qconfig
from .selection import (
    TABLES,
    WITH_WEIGHT,
    QConfigs,
    check_float_model,
    check_quant_stub,
    is_quantized,
    select,
)
from .stubs import DeQuantize, GridDropout, LeaveGridStub
from .watching import check_calibrated, watch_output

__all__ = ["convert", "prepare", "prepare_qat", "quantize_dynamic"]


def prepare(model: Module, qconfig: QConfigs) -> Module:
    """Puts an observer behind every layer that is to be quantized; calibrate it by running data through it.

    Args:
        model: float model, with a QuantStub where its quantized part begins.
        qconfig: one `QConfig` for everything, or ``{path of a module: QConfig or None}``; a path holds for all
            modules below it unless a longer one says otherwise, ``""`` for the whole model, None for "stays in float".

    Returns:
        A new model that computes what `model` computes and watches its ranges.

    Raises:
        ValueError: no layer to quantize; a path that names nothing; no QuantStub; a model already prepared; in later
            calls, NaN or infinity in a watched tensor.
        TypeError: a missing or unsuitable qconfig.

    Source: torch.ao.quantization.prepare, torch 2.13.
    """
    check_float_model(model, "prepare")
    check_quant_stub(model, "prepare")
    prepared = copy.deepcopy(model)
    configs = select(prepared, qconfig, "prepare")
    for path, config in configs.items():
        layer: Any = prepared.get_submodule(path)
        if isinstance(layer, (*WITH_WEIGHT, *TABLES)):
            weight = (layer.layer if isinstance(layer, Fused) else layer).weight
            weight_observer(config, path, "prepare", weight.ndim)
        if isinstance(layer, TABLES):
            layer.qconfig, layer.path = config, path
            continue
        watch_output(layer, path, config, Observer, "prepare")
    return prepared


def prepare_qat(model: Module, qconfig: QConfigs) -> Module:
    """Puts fake quantizers on weights and outputs; train the result, then `convert` it.

    Args:
        model: float model in training mode, with a QuantStub where its quantized part begins.
        qconfig: as for `prepare`, with fake quantizers in the place of observers.

    Returns:
        A new model that shares the Parameters of `model`, so that an optimizer made for either trains both.

    Raises:
        ValueError: as `prepare`; a model in eval mode.
        TypeError: a missing or unsuitable qconfig (one with observers, made for `prepare`).

    Source: torch.ao.quantization.prepare_qat, torch 2.13, which copies the Parameters.
    """
    check_float_model(model, "prepare_qat")
    if not model.training:
        raise ValueError("prepare_qat expects a model in training mode, got one in eval mode; call model.train() first")
    check_quant_stub(model, "prepare_qat")
    shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    configs = select(shared, qconfig, "prepare_qat")

    def swap(path: str, module: Module) -> Module | None:
        if isinstance(module, Dropout):
            return GridDropout(module.p)
        if isinstance(module, DeQuantStub):
            return LeaveGridStub()
        if path not in configs:
            return None
        if isinstance(module, TABLES):
            table: Any = to_qat(module, path, configs[path])
            table.qconfig, table.path = configs[path], path
            return table
        if isinstance(module, WITH_WEIGHT):
            module = to_qat(module, path, configs[path])
        watch_output(module, path, configs[path], FakeQuantize, "prepare_qat")
        return module

    return replace_modules(shared, swap)


def convert(model: Module) -> Module:
    """Turns a calibrated or trained model into its integer self.

    Args:
        model: what `prepare` (after calibration) or `prepare_qat` (after training) returned.

    Returns:
        A new model in eval mode: QuantStub → `Quantize`, DeQuantStub → `DeQuantize`, Linear and Conv, with what is
        fused into them, → `QuantizedLinear`, `QuantizedConv2d` …, FloatFunctional → `QFunctional`, activations, average
        pooling and norms → `BetweenGrids`. ReLU, max pooling and Flatten work on integers as they are.

    Raises:
        ValueError: a model that was not prepared, or is converted already; observers that saw nothing (all named).

    Source: torch.ao.quantization.convert, torch 2.13.
    """
    if not isinstance(model, Module):
        raise TypeError(f"convert: expected a Module, got {model!r}")
    watched = {path: m for path, m in model.named_modules() if hasattr(m, "qconfig")}
    if not watched:
        raise ValueError(
            "convert: this model is converted already"
            if is_quantized(model)
            else "convert: no layer was prepared; call prepare and calibrate the result, or prepare_qat and train it"
        )
    check_calibrated(watched)

    def swap(path: str, module: Module) -> Module | None:
        if isinstance(module, DeQuantStub):
            return DeQuantize()
        if isinstance(module, GridDropout):
            return Dropout(module.p)
        return to_integers(module, path) if path in watched else None

    return replace_modules(copy.deepcopy(model), swap).eval()


def quantize_dynamic(model: Module, qconfig: QConfigs | None = None) -> Module:
    """Quantizes the weights now and each layer's input when it comes; no calibration.

    Args:
        model: float model.
        qconfig: a `QConfig` whose activation is a `QSpec`, or ``{path: QConfig or None}`` as for `prepare`;
            `default_dynamic_qconfig()` if left out.

    Returns:
        A new model in eval mode: Linear → `DynamicQuantizedLinear`, Conv2d → `DynamicQuantizedConv2d`, and so on.

    Raises:
        ValueError: no layer to quantize; a path that names nothing.
        TypeError: a qconfig made for static quantization.

    Source: torch.ao.quantization.quantize_dynamic, torch 2.13, which ignores without a word what it cannot quantize,
    convolutions among them.
    """
    check_float_model(model, "quantize_dynamic")
    copied = copy.deepcopy(model)
    configs = select(copied, default_dynamic_qconfig() if qconfig is None else qconfig, "quantize_dynamic")

    def swap(path: str, module: Module) -> Module | None:
        if path not in configs or isinstance(module, QuantStub):
            return None
        if isinstance(module, TABLES):
            return to_table(module, path, configs[path], "quantize_dynamic")
        return to_dynamic(module, path, configs[path])

    return replace_modules(copied, swap).eval()
