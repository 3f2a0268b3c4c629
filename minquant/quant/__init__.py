"""Quantization: grids, observers, fake quantizers, integer layers, and the flows from float to integers."""

from __future__ import annotations

from minquant.nn.stubs import DeQuantStub, QuantStub, QuantWrapper

from .base_configs import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    QATConfig,
)
from .batch_norm import (
    QATConvBn1d,
    QATConvBn2d,
    QATConvBnReLU1d,
    QATConvBnReLU2d,
    QATLinearBn1d,
    fold_batch_norm,
    freeze_bn_stats,
    reestimate_bn_stats,
    update_bn_stats,
)
from .between import BetweenGrids, QFunctional
from .conv import (
    DynamicQuantizedConv1d,
    DynamicQuantizedConv2d,
    DynamicQuantizedConvReLU1d,
    DynamicQuantizedConvReLU2d,
    QATConv1d,
    QATConv2d,
    QATConvReLU1d,
    QATConvReLU2d,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvReLU1d,
    QuantizedConvReLU2d,
)
from .embedding import QATEmbedding, QATEmbeddingBag, QuantizedEmbedding, QuantizedEmbeddingBag
from .fake_quant import (
    FakeQuantize,
    WeightFakeQuantize,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)
from .fake_quantized import FakeQuantizedEmbedding, FakeQuantizedLinear
from .fake_quantizer import (
    FakeQuantizeConfigBase,
    FakeQuantizerBase,
    IntxFakeQuantizeConfig,
    IntxFakeQuantizer,
    register_fake_quantizer,
)
from .fixed_observer import FixedQParamsObserver
from .fused import (
    ConvBn1d,
    ConvBn2d,
    ConvBnReLU1d,
    ConvBnReLU2d,
    ConvReLU1d,
    ConvReLU2d,
    LinearBn1d,
    LinearReLU,
)
from .fusing import fuse_modules, fuse_modules_qat
from .grid import choose_qparams, fake_quantize
from .histogram import HistogramObserver
from .in_place import quantize_
from .learnable import LearnableFakeQuantize
from .linear import (
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
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
from .qat_quantizers import (
    ComposableQATQuantizer,
    Int4WeightOnlyEmbeddingQATQuantizer,
    Int4WeightOnlyQATQuantizer,
    Int8DynActInt4WeightQATQuantizer,
)
from .qconfig import QConfig, default_dynamic_qconfig, get_default_qat_qconfig, get_default_qconfig
from .qtensor import QTensor, dequantize, quantize
from .report import Report, report
from .spec import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec
from .stubs import DeQuantize, Quantize
from .weight_only import StaticActivationLinear, WeightOnlyQuantizedLinear
from .workflow import convert, prepare, prepare_qat, quantize_dynamic

__all__ = [
    "BetweenGrids",
    "ComposableQATQuantizer",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvReLU1d",
    "ConvReLU2d",
    "DeQuantStub",
    "DeQuantize",
    "DynamicQuantizedConv1d",
    "DynamicQuantizedConv2d",
    "DynamicQuantizedConvReLU1d",
    "DynamicQuantizedConvReLU2d",
    "DynamicQuantizedLinear",
    "DynamicQuantizedLinearReLU",
    "FakeQuantize",
    "FakeQuantizeConfigBase",
    "FakeQuantizedEmbedding",
    "FakeQuantizedLinear",
    "FakeQuantizerBase",
    "FixedQParamsObserver",
    "HistogramObserver",
    "Int4WeightOnlyConfig",
    "Int4WeightOnlyEmbeddingQATQuantizer",
    "Int4WeightOnlyQATQuantizer",
    "Int8DynActInt4WeightQATQuantizer",
    "Int8DynamicActivationInt8WeightConfig",
    "Int8DynamicActivationIntxWeightConfig",
    "Int8StaticActivationInt8WeightConfig",
    "Int8WeightOnlyConfig",
    "IntxFakeQuantizeConfig",
    "IntxFakeQuantizer",
    "IntxWeightOnlyConfig",
    "LearnableFakeQuantize",
    "LinearBn1d",
    "LinearReLU",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannel",
    "PerChannelMinMaxObserver",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QATConfig",
    "QATConv1d",
    "QATConv2d",
    "QATConvBn1d",
    "QATConvBn2d",
    "QATConvBnReLU1d",
    "QATConvBnReLU2d",
    "QATConvReLU1d",
    "QATConvReLU2d",
    "QATEmbedding",
    "QATEmbeddingBag",
    "QATLinear",
    "QATLinearBn1d",
    "QATLinearReLU",
    "QConfig",
    "QFunctional",
    "QParams",
    "QSpec",
    "QTensor",
    "QuantStub",
    "QuantWrapper",
    "Quantize",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConvReLU1d",
    "QuantizedConvReLU2d",
    "QuantizedEmbedding",
    "QuantizedEmbeddingBag",
    "QuantizedLinear",
    "QuantizedLinearReLU",
    "Report",
    "StaticActivationLinear",
    "WeightFakeQuantize",
    "WeightOnlyQuantizedLinear",
    "choose_qparams",
    "convert",
    "default_dynamic_qconfig",
    "dequantize",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "fake_quantize",
    "fold_batch_norm",
    "freeze_bn_stats",
    "fuse_modules",
    "fuse_modules_qat",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "prepare",
    "prepare_qat",
    "quantize",
    "quantize_",
    "quantize_dynamic",
    "reestimate_bn_stats",
    "register_fake_quantizer",
    "report",
    "update_bn_stats",
]
