"""Which classes a saved file holds, and how each is made again. Nothing is imported or run because a file says so.

Three ways: with its constructor, given the settings below; made empty, then filled with the settings below (`FILLED`);
or made empty and filled with whatever attributes it had (`minquant.savable`).
"""

from __future__ import annotations

from minquant import nn, quant
from minquant.functional.geometry import Geometry
from minquant.nn import Module
from minquant.quant import (
    DeQuantize,
    DeQuantStub,
    DynamicQuantizedLinear,
    DynamicQuantizedLinearReLU,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Quantize,
    QuantizedLinear,
    QuantizedLinearReLU,
    QuantStub,
    QuantWrapper,
)
from minquant.quant.conversion import QAT
from minquant.quant.dialects.fused_fake_quant import FusedMovingAvgObsFakeQuantize
from minquant.quant.dialects.torchao import IntxWeightObserver
from minquant.quant.fused import FUSED
from minquant.quant.stubs import GridDropout, LeaveGridStub
from minquant.savable import savable

__all__ = ["CLASSES", "DATACLASSES", "FILLED", "SETTINGS"]

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
STATIC = ("weight", "bias", "output", "backend")
DYNAMIC = ("weight", "bias", "input_spec", "backend")
SLIDE = ("stride", "padding", "dilation", "groups")
BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

SETTINGS: dict[type[Module], tuple[str, ...]] = {
    nn.Sequential: (),
    nn.ModuleList: (),
    nn.Linear: ("in_features", "out_features"),
    **{kind: () for kind in FUSED.values()},
    QuantWrapper: (),
    nn.Conv1d: CONV,
    nn.Conv2d: CONV,
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.RMSNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Embedding: ("num_embeddings", "embedding_dim", "padding_idx"),
    nn.EmbeddingBag: ("num_embeddings", "embedding_dim", "mode", "include_last_offset", "padding_idx"),
    nn.Identity: (),
    nn.ReLU: (),
    nn.SiLU: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.GELU: ("approximate",),
    nn.Softmax: ("dim",),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.MSELoss: ("reduction",),
    nn.CrossEntropyLoss: ("reduction",),
    QuantStub: (),
    DeQuantStub: (),
    DeQuantize: (),
    Quantize: ("qparams", "backend"),
    nn.FloatFunctional: (),
    quant.BetweenGrids: ("output", "backend"),
    quant.QFunctional: ("output", "backend"),
    quant.QuantizedEmbedding: ("weight",),
    quant.QuantizedEmbeddingBag: ("weight", "mode", "include_last_offset", "padding_idx"),
    quant.WeightOnlyQuantizedLinear: ("weight", "bias"),
    quant.StaticActivationLinear: ("weight", "bias", "input_grid", "backend"),
    QuantizedLinear: STATIC,
    QuantizedLinearReLU: STATIC,
    quant.QuantizedConv1d: STATIC + SLIDE,
    quant.QuantizedConv2d: STATIC + SLIDE,
    quant.QuantizedConvReLU1d: STATIC + SLIDE,
    quant.QuantizedConvReLU2d: STATIC + SLIDE,
    DynamicQuantizedLinear: DYNAMIC,
    DynamicQuantizedLinearReLU: DYNAMIC,
    quant.DynamicQuantizedConv1d: DYNAMIC + SLIDE,
    quant.DynamicQuantizedConv2d: DYNAMIC + SLIDE,
    quant.DynamicQuantizedConvReLU1d: DYNAMIC + SLIDE,
    quant.DynamicQuantizedConvReLU2d: DYNAMIC + SLIDE,
}
"""What a file can rebuild, and the attributes that make up each."""

FILLED = (
    nn.Sequential, nn.ModuleList, nn.Linear, *FUSED.values(), QuantWrapper, quant.BetweenGrids, nn.Conv1d, nn.Conv2d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag,
)  # fmt: skip
"""Made empty and filled with their tensors and children; for others, settings are the constructor's arguments."""

CLASSES = {kind.__name__: kind for kind in SETTINGS}

DATACLASSES = {kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup, PerToken, Geometry, quant.QConfig)}
"""What a setting may be, beside numbers, arrays and quantized tensors, and `minquant.savable`."""

for _kind in (
    # what watches
    quant.MinMaxObserver, quant.MovingAverageMinMaxObserver, quant.PerChannelMinMaxObserver,
    quant.MovingAveragePerChannelMinMaxObserver, quant.HistogramObserver, quant.FixedQParamsObserver,
    IntxWeightObserver,
    # what rounds
    quant.FakeQuantize, quant.WeightFakeQuantize, quant.LearnableFakeQuantize, FusedMovingAvgObsFakeQuantize,
    # layers in training
    *QAT.values(), quant.QATEmbedding, quant.QATEmbeddingBag, GridDropout, LeaveGridStub,
    quant.FakeQuantizedLinear, quant.FakeQuantizedEmbedding,
):  # fmt: skip
    savable(_kind)
