"""One layer from one life to the next: float to fake-quantized, either of them to integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minquant.nn import Linear, Module

from .dialects import get_dialect
from .fake_quant import FakeQuantize
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
from .qconfig import QConfig
from .spec import QParams, QSpec

__all__ = [
    "output_grid",
    "replace_modules",
    "to_dynamic_linear",
    "to_integer_linear",
    "to_qat_linear",
    "weight_observer",
]


def replace_modules(model: Module, swap: Callable[[str, Module], Module | None]) -> Module:
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


def to_qat_linear(module: Module, path: str, config: QConfig) -> QATLinear:
    """Linear or LinearReLU -> its fake-quantized self, on the same Parameters."""
    linear, relu = _parts(module)
    fake_quant = config.weight()
    if not isinstance(fake_quant, FakeQuantize):
        raise TypeError(
            f"prepare_qat: expected a QConfig whose weight makes a FakeQuantize, got {config.weight!r} for '{path}'; "
            "get_default_qat_qconfig() is the preset"
        )
    return (QATLinearReLU if relu else QATLinear)(linear, fake_quant, config.backend)


def to_integer_linear(module: Any, path: str) -> QuantizedLinear:
    """An observed or fake-quantized Linear or LinearReLU -> integers in, integers out."""
    backend, output = module.qconfig.backend, output_grid(module)
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


def to_dynamic_linear(module: Module, path: str, config: QConfig) -> DynamicQuantizedLinear:
    """Linear or LinearReLU -> integer weights now, an integer input when it comes."""
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
    observer = weight_observer(config, path, flow)
    observer(linear.weight)
    return observer.qparams()


def weight_observer(config: QConfig, path: str, flow: str) -> Observer:
    """A new observer for a weight.

    Raises:
        TypeError: the qconfig makes something else.
        ValueError: it makes a grid that no weight can have.
    """
    observer = config.weight()
    if not isinstance(observer, Observer):
        raise TypeError(
            f"{flow}: expected a QConfig whose weight makes an Observer, got {config.weight!r} for '{path}'; fake "
            "quantizers are for prepare_qat"
        )
    check_weight_spec(observer.spec)
    return observer


def output_grid(module: Any) -> QParams:
    """The grid that a watched layer writes to once it is converted."""
    return get_dialect(module.qconfig.backend).converted_grid(module.activation_post_process.qparams())


def _bias(linear: Any) -> np.ndarray | None:
    return None if linear.bias is None else linear.bias.data.copy()
