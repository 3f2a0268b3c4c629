"""Modules, layers, losses and initial values, under torch.nn's names."""

from __future__ import annotations

from minquant.nn import init
from minquant.nn.conv import Conv1d, Conv2d
from minquant.nn.embedding import Embedding, EmbeddingBag
from minquant.nn.float_functional import FloatFunctional
from minquant.nn.layers import (
    GELU,
    Dropout,
    Flatten,
    Identity,
    Linear,
    ModuleList,
    ReLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minquant.nn.losses import CrossEntropyLoss, MSELoss
from minquant.nn.module import Module, Parameter
from minquant.nn.normalization import BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from minquant.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minquant.nn.stubs import DeQuantStub, QuantStub, QuantWrapper

__all__ = [
    "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Conv1d", "Conv2d", "CrossEntropyLoss",
    "DeQuantStub", "Dropout", "Embedding", "EmbeddingBag", "Flatten", "FloatFunctional", "GELU", "Identity",
    "LayerNorm", "Linear", "MSELoss", "MaxPool2d", "Module", "ModuleList", "Parameter", "QuantStub", "QuantWrapper",
    "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "init",
]  # fmt: skip
