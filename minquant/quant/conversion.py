"""One layer from one life to the next: float to fake-quantized, either of them to integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minquant.nn import Conv1d, Conv2d, Embedding, EmbeddingBag, FloatFunctional, Linear, Module, QuantStub
from minquant.tensor import Tensor, no_grad

from . import batch_norm, conv, linear
from .between import BetweenGrids, QFunctional
from .dialects import get_dialect
from .embedding import QATEmbedding, QATEmbeddingBag, QuantizedEmbedding, QuantizedEmbeddingBag
from .fake_quant import FakeQuantize
from .fused import ConvBn1d, ConvBn2d, ConvBnReLU1d, ConvBnReLU2d, ConvReLU1d, ConvReLU2d, Fused, LinearBn1d, LinearReLU
from .observers import Observer
from .qconfig import QConfig
from .spec import QParams, QSpec
from .stubs import Quantize
from .weighted import IntegerWeight, QATWeighted, check_weight_spec, check_weight_values, quantize_weight

__all__ = [
    "output_grid",
    "replace_modules",
    "to_dynamic",
    "to_integers",
    "to_qat",
    "to_table",
    "weight_observer",
]

QAT: dict[type[Module], type[QATWeighted]] = {
    Linear: linear.QATLinear,
    LinearReLU: linear.QATLinearReLU,
    LinearBn1d: batch_norm.QATLinearBn1d,
    Conv1d: conv.QATConv1d,
    ConvReLU1d: conv.QATConvReLU1d,
    ConvBn1d: batch_norm.QATConvBn1d,
    ConvBnReLU1d: batch_norm.QATConvBnReLU1d,
    Conv2d: conv.QATConv2d,
    ConvReLU2d: conv.QATConvReLU2d,
    ConvBn2d: batch_norm.QATConvBn2d,
    ConvBnReLU2d: batch_norm.QATConvBnReLU2d,
}
INTEGER: dict[tuple[int, bool], Any] = {
    (2, False): linear.QuantizedLinear,
    (2, True): linear.QuantizedLinearReLU,
    (3, False): conv.QuantizedConv1d,
    (3, True): conv.QuantizedConvReLU1d,
    (4, False): conv.QuantizedConv2d,
    (4, True): conv.QuantizedConvReLU2d,
}
"""By the number of axes of the weight, and whether a relu is fused in."""
DYNAMIC: dict[tuple[int, bool], Any] = {
    (2, False): linear.DynamicQuantizedLinear,
    (2, True): linear.DynamicQuantizedLinearReLU,
    (3, False): conv.DynamicQuantizedConv1d,
    (3, True): conv.DynamicQuantizedConvReLU1d,
    (4, False): conv.DynamicQuantizedConv2d,
    (4, True): conv.DynamicQuantizedConvReLU2d,
}


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


def _parts(module: Any) -> tuple[Any, bool]:
    """The Linear or Conv of a float layer, and whether a relu is fused in."""
    return (module.layer, module.has_relu) if isinstance(module, Fused) else (module, False)


def to_qat(module: Any, path: str, config: QConfig) -> QATWeighted | QATEmbedding:
    """A float layer -> its fake-quantized self, on the same Parameters."""
    fake_quant = config.weight()
    if not isinstance(fake_quant, FakeQuantize):
        raise TypeError(
            f"prepare_qat: expected a QConfig whose weight makes a FakeQuantize, got {config.weight!r} for '{path}'; "
            "get_default_qat_qconfig() is the preset"
        )
    if isinstance(module, Embedding | EmbeddingBag):
        kind: Any = QATEmbeddingBag if isinstance(module, EmbeddingBag) else QATEmbedding
        return kind(module, fake_quant, config.backend)
    has_batch_norm = isinstance(module, Fused) and module.bn is not None
    layer = module if has_batch_norm else _parts(module)[0]
    return QAT[type(module)](layer, fake_quant, config.backend)


def to_integers(module: Any, path: str) -> Module:
    """A watched layer -> integers in, integers out."""
    backend = module.qconfig.backend
    grid = output_grid(module) if hasattr(module, "activation_post_process") else None
    new: Any
    if isinstance(module, Embedding | EmbeddingBag | QATEmbedding):
        return to_table(module, path, module.qconfig, "convert")
    if isinstance(module, QuantStub):
        return Quantize(grid, backend)  # type: ignore[arg-type]
    if isinstance(module, FloatFunctional):
        new = QFunctional(grid, backend)  # type: ignore[arg-type]
    elif isinstance(module, (QATWeighted, *QAT)):
        new = _integer_weighted(module, path, grid, backend)
    else:
        new = BetweenGrids(_unwatched(module), grid, backend)
    new.path = path
    return new


def _unwatched(module: Any) -> Module:
    """The float module without what `prepare` put on it."""
    module._forward_hooks.clear()
    module._modules.pop("activation_post_process", None)
    del module.qconfig
    return module


def _integer_weighted(module: Any, path: str, grid: Any, backend: str) -> IntegerWeight:
    if isinstance(module, QATWeighted):
        layer, relu = module, module.relu
        with no_grad():
            weight, bias = module.folded()
        check_weight_values(weight, f"'{path}'")
        qparams = module.weight_fake_quant.weight_qparams(weight)
    else:
        layer, relu = _parts(module)
        weight, bias = layer.weight, layer.bias
        qparams = _observed_weight(weight, module.qconfig, path, "convert")
    integers = quantize_weight(weight, qparams, path)
    return INTEGER[weight.ndim, relu](integers, _array(bias), grid, backend, **_slide(layer))


def to_dynamic(module: Module, path: str, config: QConfig) -> IntegerWeight:
    """A float layer -> integer weights now, an integer input when it comes."""
    if not isinstance(config.activation, QSpec):
        raise TypeError(
            f"quantize_dynamic: expected a QConfig whose activation is a QSpec, got {config.activation!r}; "
            "default_dynamic_qconfig() is the preset"
        )
    layer, relu = _parts(module)
    weight = quantize_weight(layer.weight, _observed_weight(layer.weight, config, path, "quantize_dynamic"), path)
    kind = DYNAMIC[weight.ndim, relu]
    new = kind(weight, _array(layer.bias), config.activation, config.backend, **_slide(layer))
    new.path = path
    return new


def to_table(module: Any, path: str, config: QConfig, flow: str) -> QuantizedEmbedding:
    """An Embedding or EmbeddingBag -> a table of integers, its output still real values."""
    if isinstance(module, QATEmbedding):
        check_weight_values(module.weight, f"'{path}'")
        grid = module.weight_fake_quant.weight_qparams(module.weight)
    else:
        grid = _observed_weight(module.weight, config, path, flow)
    table = get_dialect(config.backend).quantize_table(module.weight.data, grid)
    if isinstance(module, EmbeddingBag | QATEmbeddingBag):
        options = module.mode, module.include_last_offset, module.padding_idx
        new: QuantizedEmbedding = QuantizedEmbeddingBag(table, *options)
    else:
        new = QuantizedEmbedding(table)
    new.path = path
    return new


def _slide(layer: Any) -> dict[str, Any]:
    """How a convolution's kernel slides, as arguments; nothing of a Linear."""
    names = ("stride", "padding", "dilation", "groups") if hasattr(layer, "stride") else ()
    return {name: getattr(layer, name) for name in names}


def _observed_weight(weight: Tensor, config: QConfig, path: str, flow: str) -> QParams:
    check_weight_values(weight, f"'{path}'")
    observer = weight_observer(config, path, flow, weight.ndim)
    try:
        observer(weight)
    except ValueError as error:
        raise ValueError(f"{flow}: the weight of '{path}': {error}") from error
    return observer.qparams()


def weight_observer(config: QConfig, path: str, flow: str, ndim: int) -> Observer:
    """A new observer for a weight of that many axes.

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
    check_weight_spec(observer.spec, ndim)
    return observer


def output_grid(module: Any) -> QParams:
    """The grid that a watched layer writes to once it is converted."""
    return get_dialect(module.qconfig.backend).converted_grid(module.activation_post_process.qparams())


def _array(bias: Tensor | None) -> np.ndarray | None:
    return None if bias is None else bias.data.copy()
