"""The quantizer classes of torchao's guide: thin names over `quantize_` and `QATConfig`.

``quantizer.prepare(model)`` and ``quantizer.convert(model)`` change the model in place and return it. New code says
`quantize_` with a config.

Source: torchao.quantization.qat, torchao 0.18. Its Int4WeightOnlyQATQuantizer passes over a Linear with a bias, or one
whose in_features the group size does not divide, without a word; here the one is quantized, the other is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from minquant.nn import Embedding, Linear, Module

from .base_configs import (
    BaseConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    QATConfig,
)
from .fake_quantized import FakeQuantizedEmbedding, FakeQuantizedLinear
from .in_place import quantize_
from .spec import PerGroup

__all__ = [
    "ComposableQATQuantizer",
    "Int4WeightOnlyEmbeddingQATQuantizer",
    "Int4WeightOnlyQATQuantizer",
    "Int8DynActInt4WeightQATQuantizer",
]


class TwoStepQuantizer(Protocol):
    """Anything with the two steps."""

    def prepare(self, model: Module) -> Module: ...

    def convert(self, model: Module) -> Module: ...


class _OfOneConfig:
    kinds: tuple[type[Module], type[Module]] = (Linear, FakeQuantizedLinear)

    def __init__(self, config: BaseConfig) -> None:
        self.config = config

    def prepare(self, model: Module) -> Module:
        """Fake-quantizes every layer of this quantizer's kind; returns the model."""
        return self._step(model, "prepare", self.kinds[0])

    def convert(self, model: Module) -> Module:
        """Makes integers of them; returns the model."""
        return self._step(model, "convert", self.kinds[1])

    def _step(self, model: Module, step: str, kind: type[Module]) -> Module:
        quantize_(model, QATConfig(self.config, step=step), lambda module, path: isinstance(module, kind))
        return model


class Int8DynActInt4WeightQATQuantizer(_OfOneConfig):
    """int8 inputs, one scale and zero point a token, and int4 weights in groups."""

    def __init__(self, groupsize: int = 256) -> None:
        super().__init__(Int8DynamicActivationIntxWeightConfig("int4", PerGroup(groupsize)))


class Int4WeightOnlyQATQuantizer(_OfOneConfig):
    """int4 weights in groups, in tinygemm's format."""

    def __init__(self, groupsize: int = 256) -> None:
        super().__init__(Int4WeightOnlyConfig(groupsize))


class Int4WeightOnlyEmbeddingQATQuantizer(_OfOneConfig):
    """int4 tables of Embeddings in groups, symmetric."""

    kinds = (Embedding, FakeQuantizedEmbedding)

    def __init__(self, group_size: int = 256) -> None:
        super().__init__(IntxWeightOnlyConfig("int4", PerGroup(group_size)))


class ComposableQATQuantizer:
    """Several quantizers, one after the other."""

    def __init__(self, quantizers: Sequence[TwoStepQuantizer]) -> None:
        self.quantizers = list(quantizers)
        if not self.quantizers:
            raise ValueError("ComposableQATQuantizer: expected quantizers, got none")

    def prepare(self, model: Any) -> Any:
        """Each one's prepare; returns the model."""
        for quantizer in self.quantizers:
            model = quantizer.prepare(model)
        return model

    def convert(self, model: Any) -> Any:
        """Each one's convert; returns the model."""
        for quantizer in self.quantizers:
            model = quantizer.convert(model)
        return model
