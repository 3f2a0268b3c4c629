"""Inputs made for a layer, to show what random data does not: ties, both ends of the range, overflow, zero.

Random data hits no exact tie, seldom the end of the grid and never the largest sum, so that two layers may agree on all
of it and still follow different rules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minquant.quant import QParams, QTensor

from .rules import Rule, unrounded
from .values import Facts

__all__ = ["probes", "quantize_probes"]

TIES = 96
CHANNELS = 12
MOST_CHANNELS = 64
PER_CHANNEL = 4
ATTEMPTS = 12


def probes(
    facts: Facts, grid: QParams, rule: Rule | None, rng: np.random.Generator, ends: tuple[int, int] | None = None
) -> list[QTensor]:
    """Inputs (R, K) of a Linear or (R, C, *size) of a Conv, on the grid that it gets and on one an eighth as wide.

    On the finer grid a step of the output is more steps of the sum, so that more sums come to lie on a tie.

    Args:
        facts: the layer's.
        grid: of its input.
        rule: how it computes, to find ties of its output; None gives none, and no sums across its range.
        rng: for what is drawn.
        ends: smallest and largest integer to use; the grid's, if left out.
    """
    span = Span(int(grid.zero_point), *(ends or (grid.spec.qmin, grid.spec.qmax)))
    weight: Any = facts.weight
    zeros = np.reshape(weight.qparams.zero_point, (-1, *(1,) * (weight.ndim - 1)))
    rows = (weight.int_repr().astype(np.int64) - zeros).reshape(len(weight), -1)  # (N, K), of a Conv one window
    found = [*_constant(rows, span), *_largest_sums(rows, span, rng), *_random(rows, span, rng)]
    if rule is None:
        return [_input(found, facts, grid)]
    found += _ties(facts, rows, grid, span, rule, rng) + _across(facts, rows, grid, span, rule, rng)
    finer = QParams(grid.scale / np.float32(8), grid.zero_point, grid.spec)
    ties = _ties(facts, rows, finer, span, rule, rng)
    return [_input(found, facts, grid), *([_input(ties, facts, finer)] if ties else [])]


def _input(rows: list[np.ndarray], facts: Facts, grid: QParams) -> QTensor:
    integers = np.array(rows)
    return QTensor(integers.astype(grid.spec.dtype) if facts.geometry is None else _images(integers, facts, grid), grid)


class Span(NamedTuple):
    """Integers that an input may have."""

    zero: int
    low: int
    high: int


def _constant(rows: np.ndarray, span: Span) -> list[np.ndarray]:
    """All zero, all at one end, both ends in turn."""
    k = rows.shape[1]
    in_turn = np.where(np.arange(k) % 2, span.low, span.high)
    return [np.full(k, q) for q in span] + [in_turn, in_turn[::-1]]


def _largest_sums(rows: np.ndarray, span: Span, rng: np.random.Generator) -> list[np.ndarray]:
    """Largest and smallest sum of some channels, and sums near them."""
    _, low, high = span
    found = []
    for channel in rows[rng.permutation(len(rows))[:CHANNELS]]:
        for sign in (1, -1):
            extreme = np.where(sign * channel > 0, high, low)
            found += [extreme, np.where(rng.random(len(channel)) < 0.05, rng.integers(low, high + 1), extreme)]
    return found


def _random(rows: np.ndarray, span: Span, rng: np.random.Generator) -> list[np.ndarray]:
    return list(rng.integers(span.low, span.high + 1, (16, rows.shape[1])))


def _ties(
    facts: Facts, rows: np.ndarray, grid: QParams, span: Span, rule: Rule, rng: np.random.Generator
) -> list[np.ndarray]:
    """Rows whose output, before the rounding, lies halfway between two integers, or as near as float32 can."""
    found: list[np.ndarray] = []
    for channel in rng.permutation(len(rows))[:MOST_CHANNELS]:
        for total in _totals_at_ties(facts, grid, rule, channel, rng):
            row = _with_sum(rows[channel], int(total), span, rng)
            if row is not None:
                found.append(row)
        if len(found) >= TIES:
            break
    return found


def _across(
    facts: Facts, rows: np.ndarray, grid: QParams, span: Span, rule: Rule, rng: np.random.Generator
) -> list[np.ndarray]:
    """Rows whose outputs lie across the range of the output, for many channels, so that no channel stays at an end."""
    found = []
    for channel in rng.permutation(len(rows))[:MOST_CHANNELS]:
        low, high = _totals_in_range(facts, grid, rule, channel)
        for total in rng.integers(low, high + 1, PER_CHANNEL) if low < high else ():
            row = _with_sum(rows[channel], int(total), span, rng)
            if row is not None:
                found.append(row)
    return found


def _totals_in_range(facts: Facts, grid: QParams, rule: Rule, channel: int) -> tuple[int, int]:
    """Smallest and largest sum of a channel that its output's range has integers for."""
    output: Any = facts.output
    at_0, far = _steps(facts, grid, rule, channel, np.array([0, 1 << 16]))
    slope = (far - at_0) / (1 << 16)
    if not slope > 0:
        return 0, 0
    ends = [(q - int(output.zero_point) - float(at_0)) / slope for q in (output.spec.qmin, output.spec.qmax)]
    return int(np.clip(ends[0], -(2**30), 2**30)), int(np.clip(ends[1], -(2**30), 2**30))


def _totals_at_ties(facts: Facts, grid: QParams, rule: Rule, channel: int, rng: np.random.Generator) -> np.ndarray:
    """Sums of this channel that give a tie, and some that nearly do."""
    low, high = _totals_in_range(facts, grid, rule, channel)
    if low >= high:
        return np.zeros(0, np.int64)
    at_0, far = _steps(facts, grid, rule, channel, np.array([0, 1 << 16]))
    output: Any = facts.output
    halves = np.arange(output.spec.qmin, output.spec.qmax) - int(output.zero_point) + 0.5
    middles = np.rint((halves - float(at_0)) / ((float(far) - float(at_0)) / (1 << 16)))
    totals = (middles[:, np.newaxis] + np.arange(-2, 3)).ravel().astype(np.int64)
    steps = _steps(facts, grid, rule, channel, totals)
    exact, near = totals[steps - np.floor(steps) == 0.5], totals[steps - np.floor(steps) != 0.5]
    return np.concatenate([rng.permutation(exact)[:8], rng.permutation(near)[:2]])


def _steps(facts: Facts, grid: QParams, rule: Rule, channel: int, totals: np.ndarray) -> np.ndarray:
    """Steps of one channel for these sums."""
    weight: Any = facts.weight
    per_channel = np.ndim(weight.qparams.scale) > 0
    acc = np.zeros((len(totals), len(weight) if per_channel else 1), np.int32)
    acc[:, channel if per_channel else 0] = totals
    if per_channel:
        return unrounded(rule, facts, grid, acc)[:, channel]
    bias = np.zeros(1, np.float32) if facts.bias is None else facts.bias[channel : channel + 1]
    return unrounded(rule, facts.with_(bias=bias), grid, acc)[:, 0]


def _with_sum(channel: np.ndarray, total: int, span: Span, rng: np.random.Generator) -> np.ndarray | None:
    """Integers q with ``Σ (q - z)·w = total``: drawn, then moved, those of large weights first; None if unlucky."""
    low, high, weights = span.low - span.zero, span.high - span.zero, channel.tolist()
    for _ in range(ATTEMPTS):
        drawn = rng.permutation(len(weights))
        order = drawn[np.argsort(-np.abs(channel[drawn]), kind="stable")].tolist()
        offsets = rng.integers(low, high + 1, len(weights))
        rest, moved = total - int(offsets @ channel), offsets.tolist()
        for k in order:
            if weights[k] == 0 or rest == 0:
                break
            new = min(max(moved[k] + int(rest / weights[k]), low), high)
            rest -= (new - moved[k]) * weights[k]
            moved[k] = new
        if rest == 0:
            return np.array(moved) + span.zero
    return None


def _images(rows: np.ndarray, facts: Facts, grid: QParams) -> np.ndarray:
    """Each row as the window of one place of an image, for every group alike; real 0 elsewhere."""
    geometry: Any = facts.geometry
    weight: Any = facts.weight
    inner = (weight.shape[1], *geometry.kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(geometry.dilation, geometry.kernel, strict=True)]
    starts = [-p[0] % s for p, s in zip(geometry.padding, geometry.stride, strict=True)]
    size = [span + start for span, start in zip(spans, starts, strict=True)]
    images = np.full((len(rows), weight.shape[1] * geometry.groups, *size), int(grid.zero_point))
    window = tuple(
        slice(start, start + span, d) for start, span, d in zip(starts, spans, geometry.dilation, strict=True)
    )
    windows = rows.reshape(len(rows), *inner)
    images[(slice(None), slice(None), *window)] = np.tile(windows, (1, geometry.groups, *(1,) * len(geometry.kernel)))
    return images.astype(grid.spec.dtype)


def quantize_probes(grid: QParams) -> np.ndarray:
    """Real values at and beside every boundary between two integers, and beyond both ends."""
    codes = np.arange(grid.spec.qmin - 3, grid.spec.qmax + 4) - int(grid.zero_point)
    middles = ((codes + 0.5) * np.float64(grid.scale)).astype(np.float32)
    beside = [np.nextafter(middles, np.float32(to)) for to in (-np.inf, np.inf)]
    points = (codes * np.float64(grid.scale)).astype(np.float32)
    far = np.array([0, -0.0, 1e4, -1e4, 1e7, -1e7], np.float32) * grid.scale
    return np.concatenate([middles, *beside, points, far])
