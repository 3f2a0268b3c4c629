"""The training loop: AdamW, a schedule of learning rates, clipped gradients, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.nn import Module
from minquant.optim import AdamW, Optimizer
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.train.checkpoint import Checkpoints
    from minquant.train.parallel import Processes

__all__ = ["Batches", "Schedule", "clip_grad_norm_", "next_token_loss", "train"]

SCHEDULES = ("cosine", "constant")

Loss = Callable[[Module, np.ndarray, np.ndarray], Tensor]
"""(model, inputs, targets) -> a number to make smaller, the mean over the rows of a batch."""


class Batches(Protocol):
    """What a run learns from: batch number `step` is the same whenever it is asked for (`lm.text.RandomWindows`)."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of a step."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how far each step goes.

    Raises:
        ValueError: an option that makes no sense; all are listed.
    """

    steps: int = 1000
    lr: float = 1e-3  # the largest learning rate
    warmup_steps: int = 0  # in which it rises from 0
    shape: str = "cosine"  # after which it falls to 0 as a cosine, or is "constant"
    weight_decay: float = 0.01  # of matrices; vectors, such as norms' weights, are not decayed
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0  # longer gradients are shortened to this

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be {expected}, got {getattr(self, name)!r}"
            for name, expected, right in (
                ("steps", "1 or more", self.steps >= 1),
                ("lr", "above 0", self.lr > 0),
                ("warmup_steps", f"from 0 to steps={self.steps}", 0 <= self.warmup_steps <= self.steps),
                ("shape", " or ".join(map(repr, SCHEDULES)), self.shape in SCHEDULES),
                ("weight_decay", "0 or more", self.weight_decay >= 0),
                ("betas", "two numbers in [0, 1)", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)),
                ("max_grad_norm", "above 0", self.max_grad_norm > 0),
            )
            if not right
        ]
        if wrong:
            raise ValueError("Schedule: " + "; ".join(wrong))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return self.lr
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


def next_token_loss(model: Module, inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """The mean of −ln p of the tokens that come next: (B, T), (B, T) -> ()."""
    logits = model(inputs)  # (B, T, vocab)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def train(
    model: Module,
    batches: Batches,
    schedule: Schedule,
    *,
    loss: Loss = next_token_loss,
    before_step: Callable[[int], Any] | None = None,
    after_step: Callable[[int, float], Any] | None = None,
    checkpoints: Checkpoints | None = None,
    processes: Processes | None = None,
) -> list[float]:
    """Trains a model's parameters, those that require a gradient, in place.

    Args:
        model: what `loss` evaluates.
        batches: what it learns from.
        schedule: how long, and how fast.
        loss: of a batch, the mean over its rows.
        before_step: called with the step's number, from 0, before its forward pass.
        after_step: called with the step's number and its loss.
        checkpoints: where the run is saved as it goes, and whence it is resumed.
        processes: those that share the work, each calling this with its own copy of the model.

    Returns:
        The loss of every step, those before a resumption included.

    Raises:
        FloatingPointError: a loss that is not finite, with its step.
        ValueError: no parameter requires a gradient.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(_groups(params, schedule.weight_decay), schedule.lr, schedule.betas)
    losses = checkpoints.resume(model, optimizer) if checkpoints else []
    if processes:
        processes.check_same("checkpoint", {"steps done": len(losses)})
        processes.synchronise(model)
    model.train()
    for step in range(len(losses), schedule.steps):
        _set_lr(optimizer, schedule.lr_at(step))
        if before_step:
            before_step(step)
        optimizer.zero_grad()
        value = _backward(model, loss, batches.batch(step), params, step, processes)
        clip_grad_norm_(params, schedule.max_grad_norm)
        optimizer.step()
        losses.append(_finite(value, step))
        if after_step:
            after_step(step, value)
        if checkpoints:
            checkpoints.after_step(model, optimizer, losses)
    if processes:
        processes.check_in_step(model)
    return losses


def _backward(
    model: Module,
    loss: Loss,
    batch: tuple[np.ndarray, np.ndarray],
    params: Sequence[Tensor],
    step: int,
    processes: Processes | None,
) -> float:
    """Fills the gradients and returns the loss, those of the whole batch wherever its parts are computed."""
    inputs, targets = batch
    if processes is None:
        value = loss(model, inputs, targets)
        value.backward()
        return value.item()
    processes.step = step
    shard = processes.shard(len(inputs))
    value = loss(model, inputs[shard.rows], targets[shard.rows])
    value.backward()
    processes.average_gradients(params, shard.weight)
    return processes.average(value.item(), shard.weight)


def _groups(params: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, which are decayed, and vectors, which are not."""
    if not params:
        raise ValueError("train: no parameter of the model requires a gradient; thaw it with model.requires_grad_()")
    matrices, vectors = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"train: the loss of step {step} is {loss}; try a smaller lr or a longer warm-up")
    return loss


def clip_grad_norm_(params: Iterable[Tensor], max_norm: float) -> float:
    """Shortens the gradients, taken together as one vector, to max_norm where they are longer.

    g ← g · max_norm / (‖g‖ + 1e-6) if that factor is below 1. Returns ‖g‖ as it was.
    Source: torch.nn.utils.clip_grad_norm_ 2.13.
    """
    grads = [p.grad.data for p in params if p.grad is not None]
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for grad in grads:
            grad *= np.float32(factor)
    return norm
