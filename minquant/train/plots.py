"""The pictures of `minquant finetune`: a run's loss, and what the table says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from minquant.demos.plots import FAINT, FLOAT, MINQUANT, figure, note
from minquant.train.table import Table

__all__ = ["loss_curve", "recovery_by_scheme"]

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


def recovery_by_scheme(table: Table, path: str | os.PathLike[str]) -> Path:
    """How much of what rounding costs QAT gives back, mean ± standard deviation over the seeds; and the figure.

    Args:
        table: what `make_table` measured.
        path: the PNG to write.

    Returns:
        The path.
    """
    with figure(path, (8.6, 4.2)) as (drawing, axis):
        for y, entry in enumerate(table.recovery):
            axis.plot([100 * entry["figure"]] * 2, [y - 0.3, y + 0.3], color=FLOAT, lw=1.2, ls=(0, (5, 3)))
            if entry["mean"] is not None:
                mean, spread = 100 * entry["mean"], 100 * (entry["std"] or 0)
                axis.errorbar(mean, y, xerr=spread, color=MINQUANT, marker="o", ms=7, capsize=4)
                note(axis, f"{mean:.0f}% of {entry['cost']:.3f} nats", (mean, y), (0, 13), ha="center")
        axis.set_yticks(range(len(table.recovery)), [entry["name"] for entry in table.recovery])
        axis.set_ylim(len(table.recovery) - 0.5, -0.6)
        axis.set(xlabel="given back by training with the rounding (%); dashed: the figure to reach")
        axis.margins(x=0.15)
        drawing.suptitle("What rounding costs, and how much of it QAT gives back", x=0.012, ha="left", weight="bold")
    return Path(path)
