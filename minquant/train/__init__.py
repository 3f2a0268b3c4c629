"""Training language models: the loop, its checkpoints, and the recipes of `minquant finetune`."""

from __future__ import annotations

from .balancers import MovingAverageLossBalancer, StaticLossBalancer
from .distillation import DistillationModel
from .distillation_loss import LogitsDistillationLoss

__all__ = ["DistillationModel", "LogitsDistillationLoss", "MovingAverageLossBalancer", "StaticLossBalancer"]
