"""One contestant on one case: the call that is timed, and what it must return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Job", "WrongResultError", "checked"]


class WrongResultError(ValueError):
    """What was to be timed does not compute what it should."""


@dataclass(frozen=True)
class Job:
    """One contestant on one case.

    Args:
        call: does the work, and is what is timed.
        values: NumPy's array of what `call` returns.
        expected: what these should be.
        bound: how far from it they may be; shapes broadcast. 0: equal.
    """

    call: Callable[[], object]
    values: Callable[[object], np.ndarray]
    expected: np.ndarray
    bound: np.ndarray | float = 0.0


def checked(name: str, job: Job) -> None:
    """Calls once, which is the warm-up too.

    Raises:
        WrongResultError: the values are not what they should be.
    """
    values = job.values(job.call())
    if values.shape != job.expected.shape:
        raise WrongResultError(f"{name}: the result must be of shape {job.expected.shape}, got {values.shape}")
    wrong = ~(np.abs(values.astype(np.float64) - job.expected) <= job.bound)
    if wrong.any():
        raise WrongResultError(
            f"{name}: {np.count_nonzero(wrong):,} of {wrong.size:,} values are wrong; none was timed"
        )
