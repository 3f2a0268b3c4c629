"""Modules, layers, losses and initial values, under torch.nn's names."""

from __future__ import annotations

from minquant.nn import init
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
from minquant.nn.stubs import DeQuantStub, QuantStub, QuantWrapper

__all__ = [
    "GELU", "CrossEntropyLoss", "DeQuantStub", "Dropout", "Flatten", "Identity", "Linear", "MSELoss", "Module",
    "ModuleList", "Parameter", "QuantStub", "QuantWrapper", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh",
    "init",
]  # fmt: skip
