"""The checks of `minquant crosscheck`, by subject. They import torch, torchao, onnx and onnxruntime when they run."""

from __future__ import annotations

from ..suite import Check
from . import (
    conv,
    convnets,
    embedding,
    fake_quant,
    flows,
    linear,
    lsq,
    matmul,
    observers,
    onnx_layers,
    onnx_rules,
    operations,
    optimizers,
    primitives,
    randoms,
    saturation,
    torchao_configs,
    torchao_linears,
    torchao_primitives,
    torchao_qat,
    torchao_rules,
)

__all__ = ["CHECKS"]

CHECKS: tuple[Check, ...] = (
    *randoms.CHECKS,
    *observers.CHECKS,
    *primitives.CHECKS,
    *torchao_rules.CHECKS,
    *torchao_primitives.CHECKS,
    *torchao_linears.CHECKS,
    *torchao_configs.CHECKS,
    *torchao_qat.CHECKS,
    *fake_quant.CHECKS,
    *lsq.CHECKS,
    *matmul.CHECKS,
    *linear.CHECKS,
    *saturation.CHECKS,
    *conv.CHECKS,
    *onnx_rules.CHECKS,
    *onnx_layers.CHECKS,
    *operations.CHECKS,
    *embedding.CHECKS,
    *flows.CHECKS,
    *convnets.CHECKS,
    *optimizers.CHECKS,
)
"""Every check, in the order in which they run."""
