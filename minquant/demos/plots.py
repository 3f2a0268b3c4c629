"""The pictures of ``minquant demo``: weights on a grid, error by layer, accuracy by bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.demos.digits import FLOAT_BITS, WEIGHT_BITS, DigitsResult
from minquant.quant import PerChannel, QSpec, choose_qparams, quantize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_by_bits", "error_by_layer", "grid_over_weights", "readme_picture"]

FLOAT, MINQUANT, FAINT = "#6b6b6b", "#0072b2", "#dedede"
ON_WHITE = {"fc": "white", "ec": "none", "pad": 1}
DPI = 120
STYLE: Any = {
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#8c8c8c",
    "grid.color": "#e3e3e3",
    "lines.linewidth": 1.8,
}


@contextmanager
def figure(path: str | os.PathLike[str], size: tuple[float, float], columns: int = 1, **options: Any) -> Iterator[Any]:
    """A figure of that many inches, its axes in a row, saved as PNG when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(size, DPI)
        yield drawing, drawing.subplots(1, columns, **options)
        drawing.savefig(path, format="png")


def note(axis: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Text beside a point, `offset` in points."""
    axis.annotate(text, xy, xytext=offset, textcoords="offset points", **{"va": "center", "color": MINQUANT, **style})


# ---- dynamic: weights on a grid --------------------------------------------------------------------------------------


def grid_over_weights(result: DigitsResult, path: str | os.PathLike[str]) -> Path:
    """A layer's weights and the grids that 8, 4 and 2 bits offer them.

    Each output channel has a grid of its own; divided by the channel's largest magnitude, all grids are one.

    Args:
        result: what `minquant.demos.digits.run` measured.
        path: the PNG to write.

    Returns:
        The path.
    """
    with figure(path, (9, 3.7), columns=3, sharey=True) as (drawing, axes):
        for axis, bits in zip(axes, WEIGHT_BITS, strict=True):
            draw_grid(axis, result.weight, bits)
            axis.set_title(f"{bits} bits: {2**bits} values", weight="normal", pad=20)
        axes[0].set_ylabel("weights of the second layer")
        drawing.suptitle(
            f"With 256 values to choose from, a weight hardly moves; with 4, {zeros(result.weight):.0%} become 0",
            x=0.012, ha="left", weight="bold", fontsize=12.5,
        )  # fmt: skip
    return Path(path)


def draw_grid(axis: Axes, weight: np.ndarray, bits: int) -> None:
    """The histogram of ``w / amax(channel)`` with a line for each value of the grid."""
    amax = np.abs(weight).max(axis=1, keepdims=True)
    axis.hist((weight / amax).reshape(-1), bins=np.linspace(-1, 1, 61).tolist(), color=FLOAT, alpha=0.7)
    levels = grid_levels(bits)
    if bits == 8:  # lines too close to be drawn one by one
        axis.axvspan(levels[0], levels[-1], color=MINQUANT, alpha=0.25, lw=0)
    else:
        axis.vlines(levels, 0, 1, transform=axis.get_xaxis_transform(), color=MINQUANT, lw=1 if bits > 2 else 2.2)
    if bits == 2:
        for level, share in zip(levels, shares(weight, bits), strict=True):
            above = {"xycoords": axis.get_xaxis_transform(), "ha": "center", "va": "bottom", "weight": "bold"}
            note(axis, f"{share:.0%}", (level, 1), (0, 2), **above)
    axis.set(xlim=(-1.45, 1.12), xticks=[-1, 0, 1], xlabel="weight / largest of its channel")


def grid_levels(bits: int) -> np.ndarray:
    """The grid's values, for a channel whose largest magnitude is 1."""
    spec = QSpec(bits, symmetric=True)
    return np.arange(spec.qmin, spec.qmax + 1) * choose_qparams(-1, 1, spec).scale


def shares(weight: np.ndarray, bits: int) -> np.ndarray:
    """What part of the weights goes to each of the grid's integers, qmin first."""
    spec = QSpec(bits, symmetric=True, granularity=PerChannel(0))
    integers = quantize(weight, choose_qparams(weight.min(axis=1), weight.max(axis=1), spec)).int_repr()
    return np.bincount((integers.astype(int) - spec.qmin).reshape(-1), minlength=2**bits) / integers.size


def zeros(weight: np.ndarray) -> float:
    """What part of the weights becomes 0 at 2 bits."""
    return float(shares(weight, 2)[-QSpec(2).qmin])


# ---- static: error by layer ------------------------------------------------------------------------------------------


def error_by_layer(result: DigitsResult, path: str | os.PathLike[str]) -> Path:
    """Signal to quantization noise after each Linear of the static models, mean ± standard deviation over the seeds.

    Args:
        result: what `minquant.demos.digits.run` measured.
        path: the PNG to write.

    Returns:
        The path.
    """
    with figure(path, (7.4, 4.2)) as (_, axis):
        layers = np.arange(1, result.sqnr_db[8].shape[1] + 1)
        for bits, values in result.sqnr_db.items():
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
            axis.errorbar(layers, mean, spread, color=MINQUANT, marker="o", capsize=3)
            note(axis, f"{bits}-bit weights", (layers[-1], mean[-1]), (12, 0), bbox=ON_WHITE)
        level = {bits: values.mean() for bits, values in result.sqnr_db.items()}
        axis.set_title(
            f"From 8 to 4 weight bits {level[8] - level[4]:.0f} dB are lost, from 4 to 2 another "
            f"{level[4] - level[2]:.0f},\nin the first layer as in the last"
        )
        axis.set(xticks=layers, xlim=(0.75, layers[-1] + 1), ylim=(0, 47), yticks=range(0, 41, 10))
        axis.set(xlabel="Linear layer (activations at 8 bits)", ylabel="signal to noise of its output (dB)")
        noise = axis.secondary_yaxis("right")
        noise.set_yticks(range(0, 41, 10), ["100%", "32%", "10%", "3%", "1%"])
        noise.set_ylabel("noise, relative to the signal")
        axis.grid(axis="y")
    return Path(path)


# ---- QAT: accuracy by bits -------------------------------------------------------------------------------------------


def accuracy_by_bits(result: DigitsResult, path: str | os.PathLike[str]) -> Path:
    """Test accuracy of the integer models against weight bits, mean ± standard deviation over the seeds.

    Args:
        result: what `minquant.demos.digits.run` measured, QAT included.
        path: the PNG to write.

    Returns:
        The path.
    """
    with figure(path, (7.4, 4.4)) as (_, axis):
        draw_accuracy(axis, result)
    return Path(path)


def draw_accuracy(axis: Axes, result: DigitsResult) -> None:
    """Float models as lines, integer models as points with their spread, under what they say."""
    draw_float_models(axis, result)
    draw_integer_models(axis, result)
    seeds = len(result.accuracies["float", FLOAT_BITS])
    text = f"mean ± standard deviation of {seeds} seeds"
    axis.annotate(text, (0.02, 0.04), xycoords="axes fraction", color=FLOAT, fontsize=9.5)
    axis.set_xticks(range(len(WEIGHT_BITS)), [str(bits) for bits in WEIGHT_BITS])
    axis.locator_params(axis="y", steps=[1, 5, 10])
    axis.set(xlim=(-0.25, 2.6), xlabel="weight bits (activations at 8)", ylabel="test accuracy (%)")
    axis.set_ylim(None, 99)
    costs = result.mean("float", FLOAT_BITS) - result.mean("static", 2)
    qat_costs = result.mean("control", FLOAT_BITS) - result.mean("qat", 2)
    axis.set_title(
        f"Rounding a trained network to 2 bits costs {costs:.0f} points,\n"
        f"training it with the rounding in the loop costs {qat_costs:.1f}"
    )


def draw_float_models(axis: Axes, result: DigitsResult) -> None:
    """The float model with its spread as a band, and the control, each with its name."""
    mean, spread = summary(result, "float", [FLOAT_BITS])
    axis.axhspan((mean - spread)[0], (mean + spread)[0], color=FAINT, lw=0)
    axis.axhline(mean[0], color=FLOAT, lw=1.2)
    note(axis, "float", (0.5, mean[0]), (0, -13), color=FLOAT, ha="center")
    mean, _ = summary(result, "control", [FLOAT_BITS])
    axis.axhline(mean[0], color=FLOAT, lw=1.2, ls=(0, (5, 3)))
    note(axis, "control: float, trained further like QAT", (-0.2, mean[0]), (0, 13), color=FLOAT)


def draw_integer_models(axis: Axes, result: DigitsResult) -> None:
    """Static quantization and QAT, side by side at each bit width."""
    positions = np.arange(len(WEIGHT_BITS))
    styles: dict[str, dict[str, Any]] = {"static": {"mfc": "white", "ls": ":"}, "qat": {}}
    names = {"static": ("static,\nnearest\nrounding:", (14, 0)), "qat": ("QAT:", (14, -21))}
    for flow, shift in (("static", -0.03), ("qat", 0.03)):
        mean, spread = summary(result, flow, WEIGHT_BITS)
        axis.errorbar(positions + shift, mean, spread, color=MINQUANT, marker="o", ms=7, capsize=4, **styles[flow])
        name, offset = names[flow]
        note(axis, f"{name}\n{mean[-1]:.1f}%", (positions[-1] + shift, mean[-1]), offset, weight="bold")


def summary(result: DigitsResult, flow: str, bits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means and sample standard deviations of a flow."""
    values = np.array([result.accuracies[flow, b] for b in bits])
    return values.mean(axis=1), values.std(axis=1, ddof=1)


# ---- README ----------------------------------------------------------------------------------------------------------


def readme_picture(result: DigitsResult, path: str | os.PathLike[str]) -> Path:
    """Weights on the 2-bit grid beside accuracy by bits: ``readme_picture(digits.run(), "docs/demo.png")``.

    Args:
        result: what `minquant.demos.digits.run` measured, QAT included.
        path: the PNG to write, 1200 by 504 pixels.

    Returns:
        The path.
    """
    with figure(path, (10, 4.2), columns=2, width_ratios=(2, 3)) as (_, (left, right)):
        draw_grid(left, result.weight, 2)
        left.set_title(f"On a 2-bit grid\n{zeros(result.weight):.0%} of the weights become 0", pad=24)
        left.set_ylabel("weights of the second layer")
        draw_accuracy(right, result)
        right.set_title(right.get_title("left"), pad=24)
    return Path(path)
