"""Convolutions for the two sides to agree on: small, adversarial, of every kind of window. Needs no torch.

A Conv's case is a dict of arrays: ``qx (N, C, *size)`` uint8 with ``x_scale`` and ``x_zero_point`` for the static
layer, ``x (N, C, *size)`` float32 for the dynamic one, the weight's integers ``qw (M, C/groups, *kernel)`` with
``w_scale``, ``bias (M,)`` or an empty array, the output's grid, ``stride``, ``padding`` and ``dilation``, one integer
an axis, and ``groups``.
"""

from __future__ import annotations

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.quant.dialects.fbgemm_grid import fbgemm_qparams

from .inputs import values

__all__ = ["WINDOWS", "draw_dynamic_conv", "draw_static_conv", "geometry_of"]

F32 = np.float32
Case = dict[str, np.ndarray]

WINDOWS = ("plain", "depthwise", "grouped", "pointwise", "common depthwise", "common grouped", "uneven groups")
"""Engines have kernels of their own for most of them; "common" are 3 x 3 or 5 x 5 with the padding that keeps the size,
in two axes, and multiples of 8 and 4 channels."""

CHANNELS = {  # groups, channels in and channels out, each of the latter a group
    "plain": ((1,), (1, 2, 3, 5, 8), (1, 2, 3, 8)),
    "depthwise": ((2, 3, 8), (1,), (1,)),
    "grouped": ((2, 3), (4, 8), (4, 8)),
    "pointwise": ((1,), (1, 3, 4, 17), (1, 3, 8)),
    "common depthwise": ((8, 16), (1,), (1, 2)),
    "common grouped": ((2, 8), (4, 8), (4,)),
    "uneven groups": ((2, 3), (1, 2, 3), (1, 3, 5)),
}


def geometry_of(case: Case) -> Geometry:
    """How the kernel of a case slides."""
    padding = tuple((int(p), int(p)) for p in case["padding"])
    stride, dilation = (tuple(int(n) for n in case[name]) for name in ("stride", "dilation"))
    return Geometry(case["qw"].shape[2:], stride, padding, dilation, int(case["groups"]))


def draw_window(rng: np.random.Generator, axes: int, window: str, largest: int) -> Case:
    """Integers of input and weight, and how the kernel slides."""
    groups, channels, outputs = (int(rng.choice(some)) for some in CHANNELS[window])
    common = window.startswith("common")
    kernel = np.ones(axes, int) if window == "pointwise" else rng.integers(1, 5, axes)
    kernel = np.full(axes, 5 if "depthwise" in window and rng.random() < 0.4 else 3) if common else kernel
    padding = kernel // 2 if common else rng.integers(0, 3, axes) * (window != "pointwise")
    dilation = np.ones(axes, int) if common else rng.choice([1, 1, 2], axes)
    stride = np.full(axes, rng.choice([1, 2])) if common else rng.choice([1, 1, 2, 3], axes)
    least = np.maximum(1, dilation * (kernel - 1) + 1 - 2 * padding)
    many = 0 if rng.random() < 0.04 else int(rng.integers(1, 3))
    shape = (many, groups * channels, *(least + rng.integers(0, 4, axes)))
    return {
        "qx": rng.integers(0, largest + 1, shape).astype(np.uint8),
        "qw": rng.integers(-128, 128, (groups * outputs, channels, *kernel)).astype(np.int8),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": np.array(groups),
    }


def draw_static_conv(
    rng: np.random.Generator,
    axes: int,
    window: str,
    per_channel: bool,
    relu: bool,
    largest: int = 255,
    coarse: bool = False,
) -> Case:
    """Inputs of 0…largest. Half of the cases have biases that bring some outputs as near to half steps as they can.

    Coarse: small integers on wide grids, where ties and roundings show in every output.
    """
    case = draw_window(rng, axes, window, 7 if coarse else largest)
    many = len(case["qw"])
    if coarse:
        case["qw"] = rng.integers(-3, 4, case["qw"].shape).astype(np.int8)
    spread = 1.0 if coarse else 10.0 ** rng.uniform(-4, 1)
    case["x_scale"] = np.array(1.0 if coarse else 10.0 ** rng.uniform(-4, 1), F32)
    case["x_zero_point"] = np.array(3 if coarse else rng.integers(0, largest + 1), np.int32)
    case["w_scale"] = _weight_scale(rng, spread, many, per_channel, coarse)
    real = _real_outputs(case)
    reach = max(float(np.abs(real).max(initial=0)) * rng.uniform(0.2, 1.2), 1e-6)  # a grid that is too narrow saturates
    case["out_scale"] = np.array(rng.choice([0.5, 0.7, 2, 4]) if coarse else 2 * reach / 255, F32)
    case["out_zero_point"] = np.array(rng.integers(0, 256), np.int32)
    case["bias"] = rng.integers(-20, 20, many) / 4 if coarse else rng.standard_normal(many) * reach / 2
    if not coarse and rng.random() < 0.5:
        case["bias"] = _at_ties(rng, case, real)
    case["bias"] = case["bias"].astype(F32) if rng.random() < 0.8 else np.zeros(0, F32)
    return case | {"relu": np.array(relu)}


def draw_dynamic_conv(
    rng: np.random.Generator, axes: int, window: str, per_channel: bool, kind: str, largest: int = 127
) -> Case:
    """An input of a kind that `values` knows, to be put on a run-time grid of 0…largest.

    The weights are so small that outputs lie in the input's range, where torch keeps them; half of the cases have
    biases at half steps.
    """
    case = draw_window(rng, axes, window, largest)
    many, size = len(case["qw"]), case["qw"][0].size
    x = values(rng, case.pop("qx").shape, kind)
    case["w_scale"] = _weight_scale(rng, 1 / (60 * np.sqrt(size)), many, per_channel, False)
    scale, zero_point = fbgemm_qparams(x.min(initial=0), x.max(initial=0), 0, largest)
    bias = rng.standard_normal(many) * float(scale) * largest * 0.3
    if rng.random() < 0.5:
        grid = {"x_scale": scale, "x_zero_point": zero_point, "out_scale": scale, "out_zero_point": zero_point}
        static = {**case, **grid, "qx": np.clip(np.rint(x / scale) + zero_point, 0, 255)}
        bias = _at_ties(rng, static, _real_outputs(static))
    return case | {"x": x, "bias": bias.astype(F32) if rng.random() < 0.8 else np.zeros(0, F32)}


def _weight_scale(rng: np.random.Generator, size: float, many: int, per_channel: bool, coarse: bool) -> np.ndarray:
    if not per_channel:
        return np.array(size, F32)
    return (size * (np.ones(many) if coarse else rng.uniform(0.5, 2, many))).astype(F32)


def _real_outputs(case: Case) -> np.ndarray:
    """(R, M) float64, without bias."""
    geometry, zx = geometry_of(case), int(case["x_zero_point"])
    columns = geometry.columns(case["qx"].astype(np.float64), zx) - zx  # (G, R, K)
    sums = columns @ geometry.filters(case["qw"].astype(np.float64)).swapaxes(1, 2)  # (G, R, M/G)
    return sums.swapaxes(0, 1).reshape(-1, len(case["qw"])) * float(case["x_scale"]) * case["w_scale"]


def _at_ties(rng: np.random.Generator, case: Case, real: np.ndarray) -> np.ndarray:
    """Biases that bring the outputs at one place within a float32 step of a half step."""
    ties = rng.integers(0, 256, real.shape[1]) - case["out_zero_point"] + 0.5
    place = real[rng.integers(len(real))] if len(real) else 0
    bias = (ties * float(case["out_scale"]) - place).astype(F32)
    return np.nextafter(bias, rng.choice([-np.inf, 0, np.inf], bias.shape).astype(F32))
