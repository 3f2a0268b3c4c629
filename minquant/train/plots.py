"""The pictures of `minquant finetune`: a run's loss, and what the table says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from minquant.demos.plots import FAINT, FLOAT, MINQUANT, figure, note
from minquant.train.table import Table

__all__ = ["loss_curve", "recovery_by_bits"]

SMOOTHING = 50  # steps that the drawn mean looks back


def loss_curve(losses: list[float], path: str | os.PathLike[str]) -> Path:
    """The loss of every step, and its mean over the last 50.

    Args:
        losses: nats per token, as `train` returns them.
        path: the PNG to write.

    Returns:
        The path.
    """
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - SMOOTHING, 0)
    mean = (sums[ends] - sums[starts]) / (ends - starts)
    with figure(path, (7.4, 4.2)) as (_, axis):
        axis.plot(ends, losses, color=FAINT, lw=1)
        axis.plot(ends, mean, color=MINQUANT)
        note(axis, f"{mean[-1]:.3f}", (ends[-1], mean[-1]), (6, 0))
        axis.set(xlabel="step", ylabel="loss (nats per token)")
        axis.set_title(f"Loss while training, and its mean over {SMOOTHING} steps")
        axis.margins(x=0.08)
        axis.grid(axis="y")
    return Path(path)


def recovery_by_bits(table: Table, path: str | os.PathLike[str]) -> Path:
    """Nats that rounding costs, and what is left of them after QAT, for each scheme.

    Args:
        table: what `make_table` measured.
        path: the PNG to write.

    Returns:
        The path.
    """
    with figure(path, (8.6, 4.6)) as (_, axis):
        for y, entry in enumerate(table.recovery):
            cost, left = entry["cost"], entry["cost"] * (1 - (entry["mean"] or 0))
            shown: dict[str, Any] = {"color": FLOAT, "lw": 1, "zorder": 1}
            axis.plot([max(left, 1e-4), cost], [y, y], **shown)
            axis.plot(cost, y, "o", color=MINQUANT, mfc="white", ms=8)
            axis.plot(max(left, 1e-4), y, "o", color=MINQUANT, ms=8)
            note(axis, f"{entry['mean']:.0%}" if entry["mean"] is not None else "–", (cost, y), (10, 0))
        axis.set_yticks(range(len(table.recovery)), [entry["name"] for entry in table.recovery])
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set(xlabel="nats per token lost against float (open: rounded; full: trained with the rounding)")
        axis.set_title("What rounding costs, and how much of it QAT gives back")
        axis.margins(x=0.15, y=0.1)
    return Path(path)
