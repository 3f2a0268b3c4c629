"""How far a student's answers are from its teacher's: the divergence of two softened softmaxes."""

from __future__ import annotations

from minquant import functional as F
from minquant.nn import Module
from minquant.tensor import Tensor

__all__ = ["LogitsDistillationLoss"]


class LogitsDistillationLoss(Module):
    """``T²/N · Σ_n Σ_c p·(ln p - ln q)``, with ``p = softmax(t/T)`` of the teacher's logits, ``q`` of the student's.

    That is the Kullback-Leibler divergence KL(p ‖ q) of each of the N rows, summed over its classes, in the mean over
    the rows (torch's ``reduction="batchmean"``), times T². Its gradient is

        ``∂/∂s = T/N · (q - p)``  →  ``(s - t) / (N·C)`` for large T and logits of mean 0:

    T² keeps its size from falling with the temperature.

    Args:
        temperature: T, above 0. The higher, the more the teacher's small probabilities count.

    Shapes: `forward(logits_s, logits_t)` takes two of (…, C), float32 or float64, and N is the product of "…"; a
    scalar comes back. The teacher's logits receive no gradient.

    Bound: with ``L = max |ln p| + max |ln q|`` and ``A = (max |s| + max |t|)/T``, the logarithms err by less than
    ``32·eps·(A + L)`` together, p by that part of itself, so that ``|error| ≤ 32·eps·T²·(1 + L)·(A + L)``; the
    gradient's is ``32·eps·T/N·(A + L)``. A divergence of 0 may come out that much below it.

    Raises:
        ValueError: a temperature that is not above 0; logits of two shapes, or without a row.
        TypeError: integer logits.

    Source: Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), equations 1 to 4, less the teacher's entropy, which has no
    gradient. ModelOpt 0.47's loss of this name has ``reduction="mean"`` by default, C times less than this.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"LogitsDistillationLoss: temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, logits_s: Tensor, logits_t: Tensor) -> Tensor:
        _check_logits(logits_s.shape, logits_t.shape)
        log_q = F.log_softmax(logits_s / self.temperature, -1)
        log_p = F.log_softmax(logits_t.detach() / self.temperature, -1)
        rows = logits_s.numel() // logits_s.shape[-1]
        return (log_p.exp() * (log_p - log_q)).sum() * (self.temperature**2 / rows)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _check_logits(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    if student != teacher:
        other = student[-1:] != teacher[-1:]
        raise ValueError(
            f"LogitsDistillationLoss: the student's logits have shape {student}, the teacher's {teacher}; "
            + ("both must know the same classes, or vocabulary" if other else "both must have seen the same batch")
        )
    if 0 in student or not student:
        raise ValueError(f"LogitsDistillationLoss: logits must be (…, classes) at least one row, got shape {student}")
