"""The roofline: what the processor allows, by operations per byte, and what the kernel makes of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.bench.operation import Case
from minquant.bench.table import Row, by_case
from minquant.kernels.isa import chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_drawable", "roofline", "spread"]

DRAWN = 1_000_000
"""Operations from which a shape is drawn: below, the call takes longer than the work."""

PACKED = "int8_matmul packed"

INTENSITY = 0.5, 1024
"""Operations per byte, from the left to the right."""

LINE = "#6b6b6b"
COLORS = {
    "square": "#0072b2",
    "few rows": "#d55e00",
    "a batch": "#009e73",
    "transformer": "#8a5a00",
    "odd": "#cc79a7",
}
APART = 0.19
"""Least distance of two names, in natural logarithms of operations per byte: as wide as a line of text is high."""

STYLE: Any = {
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
}


def check_drawable(cases: Sequence[Case]) -> None:
    """Refuses, before anything is measured, cases of which no roofline can be drawn.

    Raises:
        ValueError: there is no packed product of some size among them, or no dot-product instruction.
    """
    if not any(map(_is_drawn, cases)):
        raise ValueError(
            f"--plots: the roofline shows '{PACKED}' of at least {DRAWN:,} operations, and none is to be measured; "
            "let --only choose one, or leave --plots out"
        )
    if chosen().name == "plain":
        raise ValueError("--plots: plain loops have no dot-product instruction, whose speed the roofline is made of")


def roofline(machine: dict[str, Any], rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Draws the packed product of every shape, for each number of threads.

    Args:
        machine: what `minquant.bench.machine.describe` measured.
        rows: what `minquant.bench.run.Bench` did.
        path: the PNG to write.

    Returns:
        The path.
    """
    import matplotlib
    from matplotlib.figure import Figure

    points = [first for first, _ in by_case(rows) if first["op"] == PACKED and first["operations"] >= DRAWN]
    threads = sorted({row["threads"] for row in points})
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.5, 4.6 * len(threads)), 120)
        for axis, count in zip(np.ravel(figure.subplots(len(threads))), threads, strict=True):
            _draw(axis, machine, [row for row in points if row["threads"] == count], count)
        figure.savefig(path, format="png")
    return Path(path)


def _is_drawn(case: Case) -> bool:
    return case.operation.name == PACKED and case.work is not None and case.work.operations >= DRAWN


def _draw(axis: Axes, machine: dict[str, Any], rows: Sequence[Row], threads: int) -> None:
    limits = machine["by_threads"][str(threads)]
    peak, bandwidth = limits["peak_int8_gops"], limits["bandwidth_gb_s"]
    intensity = np.geomspace(*INTENSITY, 200)
    axis.loglog(intensity, np.minimum(peak, bandwidth * intensity), color=LINE, lw=1.8)
    beside: Any = {"textcoords": "offset points", "color": LINE}
    axis.annotate(
        f"{machine['isa']}, in registers: {peak:,.0f} GOP/s", (INTENSITY[1], peak), (0, 6), ha="right", **beside
    )
    axis.annotate(f"memory:\n{bandwidth:,.0f} GB/s", (INTENSITY[0], bandwidth), (6, 12), **beside)
    for group in dict.fromkeys(row["group"] for row in rows):
        _points(axis, [row for row in rows if row["group"] == group], group)
    _names(axis, rows)
    axis.plot([], [], ls="", marker="_", ms=11, color=LINE, label="limit measured beside it")
    _scales(axis, min(bandwidth * INTENSITY[0], *(row["gops"] for row in rows), peak), peak)
    axis.set_title(f"int8 product, packed, {threads} thread{'s' if threads > 1 else ''}")
    axis.grid(which="major")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _scales(axis: Axes, least: float, most: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set(xlim=INTENSITY, xlabel="operations per byte of operands and result")
    axis.set(ylim=(least / 2.5, most * 1.5), ylabel="10⁹ operations a second (GOP/s)")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter(StrMethodFormatter("{x:g}"))
        scale.set_minor_formatter(NullFormatter())


def _places(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operations per byte, GOP/s, and the limit that was measured beside it, in its cache."""
    x, y, share = (np.array(values) for values in zip(
        *((row["operations"] / row["moved"], row["gops"], row["share"]) for row in rows), strict=True
    ))  # fmt: skip
    return x, y, y / share


def _points(axis: Axes, rows: Sequence[Row], group: str) -> None:
    """Each shape's speed; the stroke is its limit."""
    color = COLORS[group]
    x, y, roof = _places(rows)
    axis.vlines(x, y, roof, color=color, lw=1, alpha=0.6)
    axis.plot(x, roof, ls="", marker="_", ms=11, color=color, alpha=0.8)
    axis.plot(x, y, ls="", marker="o", ms=6, color=color, label=group)


def _names(axis: Axes, rows: Sequence[Row]) -> None:
    """The shapes, side by side below the points."""
    rows = sorted(rows, key=lambda row: row["operations"] / row["moved"])
    x, y, roof = _places(rows)
    slots, lower = np.exp(spread(np.log(x), APART)), np.minimum(y, roof)
    for row, point, height, slot in zip(rows, x, lower, slots, strict=True):
        M, K, N = row["shape"]
        text, color = f"{M}³" if M == K == N else f"{M}×{K}×{N}", COLORS[row["group"]]
        top = 0.84 * lower[np.abs(np.log(x / slot)) < APART].min(initial=height)
        axis.plot([point, slot], [height, top], color=color, lw=0.5, alpha=0.6)
        axis.text(slot, 0.97 * top, text, fontsize=8.5, rotation=90, color=color, va="top", ha="center")


def spread(places: np.ndarray, apart: float) -> np.ndarray:
    """Ascending places moved as little as it takes to have them at least so far apart.

    Those that stand in each other's way form a row around their middle; a row that meets the next one takes it in.
    """
    rows: list[list[float]] = []
    for place in places:
        rows.append([place])
        while len(rows) > 1 and _end(rows[-2], apart) + apart > _end(rows[-1], -apart):
            rows[-2:] = [rows[-2] + rows[-1]]
    return np.array([np.mean(row) + apart * (i - (len(row) - 1) / 2) for row in rows for i in range(len(row))])


def _end(row: list[float], apart: float) -> float:
    """Of a row around its middle, the last place, or with a negative distance the first."""
    return float(np.mean(row)) + apart * (len(row) - 1) / 2
