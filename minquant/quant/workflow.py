"""From a float model to an integer one: `prepare`, `prepare_qat`, `convert`, `quantize_dynamic`, `fuse_modules`.

All return a new model and leave the one they are given as it was, except that `prepare_qat` shares its Parameters:
an optimizer made before still trains the model made after.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minquant.nn import DeQuantStub, Dropout, Identity, Linear, Module, QuantStub, ReLU
from minquant.tensor import Tensor

from .dialects import get_dialect
from .fake_quant import FakeQuantize
from .grid import check_finite, float_array
from .linear import (
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
    LinearReLU,
    QATLinear,
    QATLinearReLU,
    QuantizedLinear,
    QuantizedLinearReLU,
    check_weight_spec,
    check_weight_values,
    quantize_weight,
)
from .observers import Observer
from .qconfig import QConfig, default_dynamic_qconfig
from .selection import (
    WITH_WEIGHT,
    QConfigs,
    check_float_model,
    check_quant_stub,
    is_quantized,
    select,
    submodule,
)
from .spec import PerTensor, QParams, QSpec
from .stubs import DeQuantize, GridDropout, Quantize

__all__ = ["convert", "fuse_modules", "prepare", "prepare_qat", "quantize_dynamic"]


# ---- the four flows --------------------------------------------------------------------------------------------------


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
        layer = prepared.get_submodule(path)
        if isinstance(layer, WITH_WEIGHT):
            _weight_observer(config, path, "prepare")
        _watch_output(layer, path, config, Observer, "prepare")
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
        if path not in configs:
            return None
        if isinstance(module, WITH_WEIGHT):
            module = _qat_linear(module, path, configs[path])
        _watch_output(module, path, configs[path], FakeQuantize, "prepare_qat")
        return module

    return _replace(shared, swap)


def convert(model: Module) -> Module:
    """Turns a calibrated or trained model into its integer self.

    Args:
        model: what `prepare` (after calibration) or `prepare_qat` (after training) returned.

    Returns:
        A new model in eval mode: QuantStub → `Quantize`, Linear → `QuantizedLinear`, LinearReLU →
        `QuantizedLinearReLU`, DeQuantStub → `DeQuantize`.

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
    _check_calibrated(watched)

    def swap(path: str, module: Module) -> Module | None:
        if isinstance(module, DeQuantStub):
            return DeQuantize()
        if isinstance(module, GridDropout):
            return Dropout(module.p)
        if path not in watched:
            return None
        if isinstance(module, QuantStub):
            return Quantize(_output_grid(module), module.qconfig.backend)
        return _integer_linear(module, path)

    return _replace(copy.deepcopy(model), swap).eval()


def quantize_dynamic(model: Module, qconfig: QConfigs | None = None) -> Module:
    """Quantizes the weights now and each layer's input when it comes; no calibration.

    Args:
        model: float model.
        qconfig: a `QConfig` whose activation is a `QSpec`, or ``{path: QConfig or None}`` as for `prepare`;
            `default_dynamic_qconfig()` if left out.

    Returns:
        A new model in eval mode: Linear → `DynamicQuantizedLinear`, LinearReLU → `DynamicQuantizedLinearReLU`.

    Raises:
        ValueError: no layer to quantize; a path that names nothing.
        TypeError: a qconfig made for static quantization.

    Source: torch.ao.quantization.quantize_dynamic, torch 2.13, which ignores without a word what it cannot quantize.
    """
    check_float_model(model, "quantize_dynamic")
    copied = copy.deepcopy(model)
    configs = select(copied, default_dynamic_qconfig() if qconfig is None else qconfig, "quantize_dynamic")

    def swap(path: str, module: Module) -> Module | None:
        if path not in configs or isinstance(module, QuantStub):
            return None
        return _dynamic_linear(module, path, configs[path])

    return _replace(copied, swap).eval()


def fuse_modules(model: Module, modules_to_fuse: Sequence[str] | Sequence[Sequence[str]]) -> Module:
    """Makes one layer of a Linear and the ReLU after it; an `Identity` takes the ReLU's place.

    Args:
        model: float model.
        modules_to_fuse: ``["fc1", "relu1"]``, or a list of such pairs.

    Returns:
        A new model with the same Parameters' values.

    Raises:
        ValueError: a path that names nothing, or a pair other than Linear and ReLU.

    Source: torch.ao.quantization.fuse_modules, torch 2.13.
    """
    if not modules_to_fuse or isinstance(modules_to_fuse, str):
        raise ValueError(f"fuse_modules: expected the paths of a Linear and a ReLU, got {modules_to_fuse!r}")
    pairs: Any = [modules_to_fuse] if isinstance(modules_to_fuse[0], str) else modules_to_fuse
    fused = copy.deepcopy(model)
    for pair in pairs:
        parts: Any = [submodule(fused, path, "fuse_modules") for path in pair]
        if [type(part) for part in parts] != [Linear, ReLU]:
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise ValueError(f"fuse_modules: expected a Linear and a ReLU, got {list(pair)} ({kinds})")
        _set_submodule(fused, pair[0], LinearReLU(*parts))
        _set_submodule(fused, pair[1], Identity())
    return fused


def _set_submodule(model: Module, path: str, module: Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


# ---- observing -------------------------------------------------------------------------------------------------------


def _watch_output(module: Module, path: str, config: QConfig, kind: type, flow: str) -> None:
    """Gives a layer what watches its output, and the hook that shows it every output."""
    watcher = None if isinstance(config.activation, QSpec) else config.activation()
    if not isinstance(watcher, kind):
        raise TypeError(
            f"{flow}: expected a QConfig whose activation makes an object of class {kind.__name__}, got "
            f"{config.activation!r}; get_default_qconfig() is for prepare, get_default_qat_qconfig() for prepare_qat"
        )
    module.qconfig = config
    module.path = path
    module.activation_post_process = watcher
    if not isinstance(_observer(module).granularity, PerTensor):
        raise ValueError(
            f"{flow}: the output of '{path}' needs one scale for all values, got {_observer(module).spec}; use an "
            "observer per tensor"
        )
    module.register_forward_hook(_observe_output)


def _observe_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
    what = f"the output of {type(module).__name__} '{module.path}'"
    check_finite(float_array(output, what), what, "Mend the data or the layers before it")
    return module.activation_post_process(output)


def _check_calibrated(watched: dict[str, Any]) -> None:
    blind = [path or "the model itself" for path, m in watched.items() if not _observer(m).saw_data]
    if blind:
        raise ValueError(
            f"convert: the observers of {', '.join(blind)} have seen no data; run calibration data through the "
            "prepared model (or train it) first"
        )


def _observer(module: Any) -> Observer:
    watcher = module.activation_post_process
    return watcher.activation_post_process if isinstance(watcher, FakeQuantize) else watcher


# ---- one layer -------------------------------------------------------------------------------------------------------


def _replace(model: Module, swap: Callable[[str, Module], Module | None]) -> Module:
    """Puts ``swap(path, module)`` in the place of every module for which it returns one; shared modules stay shared."""
    swapped: dict[int, Module] = {}

    def visit(path: str, module: Module) -> Module:
        if id(module) not in swapped:
            new = swap(path, module)
            swapped[id(module)] = module if new is None else new
            if new is None:
                for name, child in list(module._modules.items()):  # named_children() names a shared child once
                    if child is not None:
                        setattr(module, name, visit(f"{path}.{name}" if path else name, child))
        return swapped[id(module)]

    return visit("", model)


def _parts(module: Module) -> tuple[Linear, bool]:
    """The Linear of a Linear or LinearReLU, and whether a relu is fused in."""
    return (module.linear, True) if isinstance(module, LinearReLU) else (module, False)  # type: ignore[return-value]


def _qat_linear(module: Module, path: str, config: QConfig) -> QATLinear:
    linear, relu = _parts(module)
    fake_quant = config.weight()
    if not isinstance(fake_quant, FakeQuantize):
        raise TypeError(
            f"prepare_qat: expected a QConfig whose weight makes a FakeQuantize, got {config.weight!r} for '{path}'; "
            "get_default_qat_qconfig() is the preset"
        )
    return (QATLinearReLU if relu else QATLinear)(linear, fake_quant, config.backend)


def _integer_linear(module: Any, path: str) -> QuantizedLinear:
    backend, output = module.qconfig.backend, _output_grid(module)
    linear: Any
    if isinstance(module, QATLinear):
        linear, relu = module, module.relu
        check_weight_values(module.weight, f"'{path}'")
        qparams = module.weight_fake_quant.weight_qparams(module.weight)
    else:
        linear, relu = _parts(module)
        qparams = _observed_weight(linear, module.qconfig, path, "convert")
    weight = quantize_weight(linear.weight, qparams, path)
    new = (QuantizedLinearReLU if relu else QuantizedLinear)(weight, _bias(linear), output, backend)
    new.path = path
    return new


def _dynamic_linear(module: Module, path: str, config: QConfig) -> DynamicQuantizedLinear:
    if not isinstance(config.activation, QSpec):
        raise TypeError(
            f"quantize_dynamic: expected a QConfig whose activation is a QSpec, got {config.activation!r}; "
            "default_dynamic_qconfig() is the preset"
        )
    linear, relu = _parts(module)
    weight = quantize_weight(linear.weight, _observed_weight(linear, config, path, "quantize_dynamic"), path)
    kind = DynamicQuantizedLinearReLU if relu else DynamicQuantizedLinear
    new = kind(weight, _bias(linear), config.activation, config.backend)
    new.path = path
    return new


def _observed_weight(linear: Linear, config: QConfig, path: str, flow: str) -> QParams:
    check_weight_values(linear.weight, f"'{path}'")
    observer = _weight_observer(config, path, flow)
    observer(linear.weight)
    return observer.qparams()


def _weight_observer(config: QConfig, path: str, flow: str) -> Observer:
    observer = config.weight()
    if not isinstance(observer, Observer):
        raise TypeError(
            f"{flow}: expected a QConfig whose weight makes an Observer, got {config.weight!r} for '{path}'; fake "
            "quantizers are for prepare_qat"
        )
    check_weight_spec(observer.spec)
    return observer


def _output_grid(module: Any) -> QParams:
    return get_dialect(module.qconfig.backend).converted_grid(module.activation_post_process.qparams())


def _bias(linear: Any) -> np.ndarray | None:
    return None if linear.bias is None else linear.bias.data.copy()
