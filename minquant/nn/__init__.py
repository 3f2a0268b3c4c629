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

__all__ = [
    "GELU", "CrossEntropyLoss", "Dropout", "Flatten", "Identity", "Linear", "MSELoss", "Module", "ModuleList",
    "Parameter", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "init",
]  # fmt: skip
