"""Loss balancers: one loss out of several, the student's own and those by which it learns from its teacher.

With the losses ``L_1 … L_n`` of the criterion, weighted ``w_1 … w_n``, and the student's own ``L_s``,

====================  ================================================================================================
static                ``(1 - Σ w_i)·L_s + Σ w_i·L_i``
moving average        ``(1 - Σ w_i)·L_s + Σ w_i·(m_s/m_i)·L_i``, each m the exponential moving average of its loss
====================  ================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from minquant.nn import Module
from minquant.tensor import Tensor

__all__ = ["STUDENT_LOSS_KEY", "MovingAverageLossBalancer", "StaticLossBalancer"]

STUDENT_LOSS_KEY = "student_loss"


class StaticLossBalancer(Module):
    """``(1 - Σ w_i)·L_s + Σ w_i·L_i``.

    Args:
        kd_loss_weight: the weights w of the criterion's losses, in its order; a number is the weight of a single one.
            What is missing to 1 weighs the student's own loss.

    Shapes: `forward` takes ``{name: loss}``, each loss one value, the student's own under "student_loss".

    Raises:
        ValueError: weights below 0 or above 1 in all; in `forward`, another number of losses than of weights, and a
            student's loss that has a weight and is missing.

    Source: modelopt.torch.distill.StaticLossBalancer, ModelOpt 0.47.
    """

    def __init__(self, kd_loss_weight: float | Sequence[float] = 0.5) -> None:
        super().__init__()
        weights = list(kd_loss_weight) if isinstance(kd_loss_weight, Sequence) else [kd_loss_weight]
        total = math.fsum(weights)
        if not all(weight >= 0 for weight in weights) or not total <= 1 + 1e-9:
            raise ValueError(
                f"{type(self).__name__}: kd_loss_weight must hold numbers from 0, 1 at most in all, got "
                f"{kd_loss_weight}; what is missing to 1 weighs the student's own loss"
            )
        self.kd_loss_weight = weights
        # Thirds add up to one only nearly, and what is left over must not ask for a student's loss.
        self.student_loss_weight = 0.0 if math.isclose(total, 1) else 1 - total

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        kd_losses = [loss for name, loss in losses.items() if name != STUDENT_LOSS_KEY]
        if len(kd_losses) != len(self.kd_loss_weight):
            raise ValueError(
                f"{type(self).__name__}: kd_loss_weight holds {len(self.kd_loss_weight)} weights, the criterion "
                f"{len(kd_losses)} losses; give one weight for each, in the criterion's order"
            )
        terms = [weight * loss for weight, loss in zip(self.kd_loss_weight, kd_losses, strict=True)]
        if self.student_loss_weight:
            terms.append(self.student_loss_weight * self._student_loss(losses))
        return sum(terms[1:], terms[0])

    def _student_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        if STUDENT_LOSS_KEY not in losses:
            raise ValueError(
                f"{type(self).__name__}: {self.student_loss_weight:g} of the loss is to be the student's own, which "
                "is missing; call compute_kd_loss(student_loss), or make the weights add up to 1"
            )
        return losses[STUDENT_LOSS_KEY]

    def extra_repr(self) -> str:
        return f"kd_loss_weight={self.kd_loss_weight}"


class MovingAverageLossBalancer(StaticLossBalancer):
    """``(1 - Σ w_i)·L_s + Σ w_i·(m_s/m_i)·L_i``: every loss is brought to the magnitude of the student's own.

    The magnitudes follow the losses as exponential moving averages, ``m ← m + c·(|L| - m)``; the first step's are
    copied. They are factors without a gradient, so a weight says what share of the loss its term is, however large its
    own numbers are. Where no student's loss is given, the criterion's first takes its place as m_s.

    A loss that nears 0 is magnified all the more: its gradient falls as its root, its factor grows as its inverse.
    Leave losses that must end near 0 to `StaticLossBalancer`.

    Args:
        kd_loss_weight: as of `StaticLossBalancer`.
        averaging_constant: c, above 0, at most 1; at 1 the present batch alone decides.

    Attributes:
        magnitudes: buffer, float32, the m in the order of the losses; of shape (0,) before the first step.

    Raises:
        ValueError: as `StaticLossBalancer`; an averaging constant out of range; in `forward`, a loss that is not
            finite, and another number of losses than in the steps before.

    Source: ModelOpt 0.47 does so with c = 1: LogitsAndIntermediatesLossBalancer in modelopt.torch.distill.plugins.
    """

    resizable = ("magnitudes",)
    magnitudes: Tensor

    def __init__(self, kd_loss_weight: float | Sequence[float] = 0.5, averaging_constant: float = 0.1) -> None:
        super().__init__(kd_loss_weight)
        if not 0 < averaging_constant <= 1:
            raise ValueError(
                f"{type(self).__name__}: averaging_constant must lie above 0 and not above 1, got {averaging_constant}"
            )
        self.averaging_constant = averaging_constant
        self.register_buffer("magnitudes", np.zeros(0, np.float32))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        magnitudes = self._follow(losses)
        reference = magnitudes[0]  # the student's own loss comes first
        return super().forward(
            {
                # At 0 a loss has no gradient, and any factor will do.
                name: loss * float(reference / magnitude if magnitude else 1)
                for (name, loss), magnitude in zip(losses.items(), magnitudes, strict=True)
            }
        )

    def _follow(self, losses: Mapping[str, Tensor]) -> np.ndarray:
        new = np.array([abs(loss.item()) for loss in losses.values()], np.float32)
        for name, magnitude in zip(losses, new, strict=True):
            if not np.isfinite(magnitude):
                raise ValueError(f"{type(self).__name__}: the loss {name!r} is {magnitude}, which no average survives")
        old = self.magnitudes.data
        if old.size not in (0, new.size):
            raise ValueError(
                f"{type(self).__name__}: {new.size} losses ({', '.join(losses)}) where there were {old.size} in the "
                "steps before; pass the student's loss always or never"
            )
        followed = new if old.size == 0 else old + np.float32(self.averaging_constant) * (new - old)
        self.magnitudes = Tensor(followed)
        return followed

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, averaging_constant={self.averaging_constant}"
