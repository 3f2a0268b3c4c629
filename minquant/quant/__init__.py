"""Quantization: grids, observers, fake quantizers, integer layers, and the flows from float to integers."""

from __future__ import annotations

from minquant.nn.stubs import DeQuantStub, QuantStub, QuantWrapper

from .fake_quant import (
    FakeQuantize,
    WeightFakeQuantize,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)
from .grid import choose_qparams, fake_quantize
from .histogram import HistogramObserver
from .learnable import LearnableFakeQuantize
from .linear import (
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
    LinearReLU,
    QATLinear,
    QATLinearReLU,
    QuantizedLinear,
    QuantizedLinearReLU,
)
from .observers import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from .qconfig import QConfig, default_dynamic_qconfig, get_default_qat_qconfig, get_default_qconfig
from .qtensor import QTensor, dequantize, quantize
from .report import Report, report
from .spec import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec
from .stubs import DeQuantize, Quantize
from .workflow import convert, fuse_modules, prepare, prepare_qat, quantize_dynamic

__all__ = [
    "DeQuantStub",
    "DeQuantize",
    "DynamicQuantizedLinear",
    "DynamicQuantizedLinearReLU",
    "FakeQuantize",
    "HistogramObserver",
    "LearnableFakeQuantize",
    "LinearReLU",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannel",
    "PerChannelMinMaxObserver",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QATLinear",
    "QATLinearReLU",
    "QConfig",
    "QParams",
    "QSpec",
    "QTensor",
    "QuantStub",
    "QuantWrapper",
    "Quantize",
    "QuantizedLinear",
    "QuantizedLinearReLU",
    "Report",
    "WeightFakeQuantize",
    "choose_qparams",
    "convert",
    "default_dynamic_qconfig",
    "dequantize",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "fake_quantize",
    "fuse_modules",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "prepare",
    "prepare_qat",
    "quantize",
    "quantize_dynamic",
    "report",
]
