"""Why a layer differs: which parameter, or which rule, gives the other model's integers when it is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minquant.kernels.fma import fma
from minquant.quant import QTensor

from .parameters import differing_parameters
from .rules import DEQUANTIZED, ROUNDINGS, SCALINGS, Layer, Rule, by_dialect, rule_of
from .values import Facts

__all__ = ["CAUSES", "Evidence", "cause_of_integers", "cause_of_quantize"]

CAUSES = ("scale", "zero_point", "rounding", "clamp", "bias", "saturation", "accumulation", "weight", "missing")


@dataclass(frozen=True)
class Evidence:
    """A cause, and what shows it."""

    cause: str
    sentence: str


@dataclass
class Seen:
    """What both layers returned for the same inputs: data first, then probes.

    Attributes:
        a: the first model's facts, and `b` the second's.
        inputs: integers on one grid.
        ya: the first layer's integers (recomputed by its rules where it has none), `yb` the second's.
    """

    a: Facts
    b: Facts
    inputs: list[QTensor]
    ya: list[np.ndarray]
    yb: list[np.ndarray]

    @property
    def values(self) -> int:
        """How many integers."""
        return sum(y.size for y in self.yb)

    def differing(self, found: list[np.ndarray], expected: list[np.ndarray]) -> int:
        """How many integers differ."""
        return sum(int((f.astype(np.int64) != e).sum()) for f, e in zip(found, expected, strict=True))


# ---- a quantized Linear or Conv --------------------------------------------------------------------------------------


def cause_of_integers(seen: Seen) -> Evidence:
    """The cause of the differences between two layers that get the same integers."""
    return _by_parameters(seen) or _by_rules(seen) or by_signature(seen.ya, seen.yb, seen.b)


def _by_parameters(seen: Seen) -> Evidence | None:
    """Which parameter, taken from the first model, makes the second's recomputation the first's."""
    found = differing_parameters(seen.a, seen.b)
    if not found:
        return None
    best, left = found[0], -1
    if len(found) > 1 and seen.b.dialect and isinstance(seen.a.weight, QTensor) and seen.a.output is not None:
        counts = [seen.differing(_recomputed(seen.b.with_(**p.mended), seen), seen.ya) for p in found]
        place = counts.index(0) if 0 in counts else 0  # one explains all; else the first, which the others follow from
        best, left = found[place], counts[place]
    others = [p.what for p in found if p is not best]
    also = f"; also different: {', '.join(others)}" if others else ""
    mended = f"; with the first model's, {left:,} of {seen.values:,} integers still differ" if left >= 0 else ""
    return Evidence(best.cause, best.sentence + mended + also)


def _recomputed(facts: Facts, seen: Seen) -> list[np.ndarray]:
    return [by_dialect(str(facts.dialect), facts, x) for x in seen.inputs]


def _by_rules(seen: Seen) -> Evidence | None:
    """Which rule, changed in the first model's layer, gives the second's integers."""
    if not isinstance(seen.b.weight, QTensor) or seen.b.output is None:
        return None
    base = rule_of(seen.a if seen.a.integers else seen.b)
    if base is None:
        return None
    layer = Layer(seen.b, seen.inputs)
    unchanged = seen.differing(layer.integers(base), seen.yb)
    if not seen.a.integers and unchanged == 0:
        words = "the first computes in float what the second computes on integers; a recomputation gives the second's"
        return Evidence("rounding", f"{words} integers exactly: 0 of {seen.values:,} differ")
    tried = [(seen.differing(layer.integers(rule), seen.yb), cause, words) for cause, words, rule in _rules(base, seen)]
    left, cause, words = min(tried, key=lambda t: t[0])
    if left == 0:
        return Evidence(cause, f"a recomputation with {words} gives the second model's integers exactly: "
                        f"0 of {seen.values:,} differ")  # fmt: skip
    if left > unchanged / 2:
        return None
    return Evidence(cause, f"a recomputation with {words} comes nearest to the second model's integers: "
                    f"{left:,} of {seen.values:,} differ instead of {unchanged:,}")  # fmt: skip


def _rules(base: Rule, seen: Seen) -> Iterator[tuple[str, str, Rule]]:
    """(cause, words, rules), the likelier first: one rule changed, then an engine's whole set."""
    for cause, words, changes in ONE_CHANGE:
        changed = replace(base, **changes)
        if changed != base:
            yield cause, words, changed
    scale = _fitted_scale(base, seen)
    if scale is not None:
        yield "scale", f"an output scale {100 * (scale - 1):+.2f}% off", replace(base, output_scale=scale)
    for scaling in ("fbgemm", "onednn", "onednn conv", "onednn pairs", "reference", "integer bias"):
        for sums in ("exact", "pairs"):
            first = scaling.startswith("onednn")
            rule = replace(base, scaling=scaling, sums=sums, zero_point_first=first)
            cause = "saturation" if sums == "pairs" != base.sums else _cause_of_scaling(scaling, seen)
            yield cause, f"{ENGINES[scaling]}{' and sums of pairs in int16' if sums == 'pairs' else ''}", rule


def _cause_of_scaling(scaling: str, seen: Seen) -> str:
    has_bias = seen.b.bias is not None and seen.b.bias.any()
    return "bias" if scaling == "integer bias" and has_bias else "rounding"


def _fitted_scale(base: Rule, seen: Seen) -> float | None:
    """The factor of the output scale that fits the second's integers best, away from the ends of the range."""
    grid: Any = seen.b.output
    zero, dot, square = int(grid.zero_point), 0.0, 0.0
    for ours, theirs in zip(Layer(seen.b, seen.inputs).integers(base), seen.yb, strict=True):
        inside = (
            (theirs > grid.spec.qmin) & (theirs < grid.spec.qmax) & (ours > grid.spec.qmin) & (ours < grid.spec.qmax)
        )
        p, q = (y[inside].astype(np.float64) - zero for y in (ours, theirs))
        dot, square = dot + float(p @ q), square + float(p @ p)
    return square / dot if dot > 0 else None


ENGINES = {
    "fbgemm": "fbgemm's order of operations",
    "onednn": "onednn's order of operations (scales inverted twice, zero point before the rounding)",
    "onednn conv": "onednn's order of operations for Conv (zero point before the rounding)",
    "onednn pairs": "onednn's order of operations without VNNI",
    "reference": "the reference dialect's order of operations",
    "integer bias": "an integer bias, as qnnpack has it",
}

ONE_CHANGE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("zero_point", "an input zero point one higher", {"input_zero_point": 1}),
    ("zero_point", "an input zero point one lower", {"input_zero_point": -1}),
    ("zero_point", "the input's zero point not taken out", {"input_zero_point": "none"}),
    ("zero_point", "an output zero point one higher", {"output_zero_point": 1}),
    ("zero_point", "an output zero point one lower", {"output_zero_point": -1}),
    ("zero_point", "padding that holds the integer 0 instead of the zero point", {"padding": 0}),
    ("missing", "no ReLU", {"relu": "none"}),
    ("zero_point", "a ReLU at the integer 0 instead of the zero point", {"relu": "at 0"}),
    ("bias", "no bias", {"bias": 0.0}),
    ("bias", "the bias added twice", {"bias": 2.0}),
    ("bias", "an integer bias, as qnnpack has it", {"scaling": "integer bias"}),
    ("scale", "the first channel's weight scale for all", {"weight_scale": "first"}),
    ("scale", "the largest weight scale for all channels", {"weight_scale": "largest"}),
    ("clamp", "the range clamped at 127", {"high": 127}),
    ("clamp", "the range clamped to 0…127", {"low": 0, "high": 127}),
    ("clamp", "the range clamped to -64…63", {"low": -64, "high": 63}),
    ("clamp", "the range clamped to -127…127", {"low": -127, "high": 127}),
    ("clamp", "integers that wrap around instead of being clamped", {"wraps": True}),
    ("saturation", "products added in pairs in int16, which saturates", {"sums": "pairs"}),
    ("saturation", "a sum clipped to int16", {"sums": "clipped"}),
    ("saturation", "a sum that wraps around in int16", {"sums": "wrapped"}),
    ("accumulation", "sums in exact integers", {"sums": "exact"}),
    ("accumulation", "a float32 matrix product of the centred integers", {"sums": "float32"}),
    ("accumulation", "a float32 matrix product of the raw integers", {"sums": "float32 raw"}),
    ("accumulation", "products added one by one in float32", {"sums": "float32 one by one"}),
    ("accumulation", "a float32 product of the dequantized operands", {"sums": DEQUANTIZED, "scaling": DEQUANTIZED}),
    ("rounding", "halves rounded up", {"rounding": "half up"}),
    ("rounding", "halves rounded away from zero", {"rounding": "half away"}),
    ("rounding", "fractions cut off", {"rounding": "truncated"}),
    ("rounding", "fractions rounded down", {"rounding": "down"}),
    ("rounding", "fractions rounded up", {"rounding": "up"}),
    ("rounding", "the zero point added before the rounding", {"zero_point_first": True}),
    ("rounding", "the zero point added after the rounding", {"zero_point_first": False}),
    ("rounding", "a true division by the output's scale", {"scaling": "divided"}),
    ("rounding", "a fused multiply-add", {"scaling": "fused"}),
    ("rounding", "all of it in float64", {"scaling": "exact"}),
    *(
        ("rounding", ENGINES[name], {"scaling": name})
        for name in SCALINGS
        if name in ENGINES and name != "integer bias"
    ),
)


# ---- where real values become integers -------------------------------------------------------------------------------


def cause_of_quantize(x: np.ndarray, yb: np.ndarray, seen: Seen) -> Evidence:
    """The cause of the differences between two layers that quantize the same real values."""
    found = differing_parameters(seen.a, seen.b)
    if found:
        return Evidence(found[0].cause, found[0].sentence)
    for cause, words, codes in _ways_to_quantize(x, seen.b.output):
        if np.array_equal(codes, yb):
            return Evidence(cause, f"{words} gives the second model's integers exactly: 0 of {yb.size:,} differ")
    return by_signature(seen.ya, seen.yb, seen.b)


def _ways_to_quantize(x: np.ndarray, grid: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(cause, words, integers): each rounding, before or after the zero point is added, and a clamp at 127."""
    zero, low, high = int(grid.zero_point), grid.spec.qmin, grid.spec.qmax
    inverse = np.float32(1) / grid.scale
    for name, rounding in ROUNDINGS.items():
        for words, codes in (
            (f"fma(x, f(1/s), z), rounded {name}", rounding(fma(x, inverse, zero))),
            (f"f(x · f(1/s)), rounded {name}, then + z", rounding(x * inverse) + zero),
            (f"f(f(x · f(1/s)) + z), rounded {name}", rounding(x * inverse + np.float32(zero))),
            (f"f(x / s), rounded {name}, then + z", rounding(x / grid.scale) + zero),
        ):
            yield "rounding", f"{words},", np.clip(codes, low, high)
            yield "clamp", f"{words}, clipped at 127,", np.clip(codes, low, 127)


# ---- any layer -------------------------------------------------------------------------------------------------------


def by_signature(ya: list[np.ndarray], yb: list[np.ndarray], facts: Facts) -> Evidence:
    """The cause that the pattern of the differences speaks for, where no rule explains them."""
    a, b = (np.concatenate([y.ravel() for y in ys]).astype(np.int64) for ys in (ya, yb))
    differ = a != b
    off, largest = b[differ] - a[differ], int(np.abs(b - a).max(initial=0))
    told = f"{int(differ.sum()):,} of {a.size:,} integers differ, by up to {largest}"
    top, bottom = int(b.max(initial=0)), int(b.min(initial=0))
    if differ.any() and (((b[differ] == top) & (off < 0)) | ((b[differ] == bottom) & (off > 0))).all() and largest > 1:
        return Evidence("clamp", f"{told}, and every one of them is cut off at {bottom} or {top} in the second")
    if differ.any() and (off == off[0]).all() and differ.mean() > 0.5:
        return Evidence("zero_point", f"{told}, all by {off[0]:+d}")
    if largest <= 1:
        return Evidence("rounding", f"{told}: one step, as another order of rounding gives it")
    zero = 0 if facts.output is None else int(facts.output.zero_point)
    p, q = (a - zero).astype(np.float64), (b - zero).astype(np.float64)
    slope = float(p @ q) / max(float(p @ p), 1.0)
    if np.abs(q - slope * p).max() <= 1.5:
        return Evidence("scale", f"{told}; the second's are {slope:.4f} times the first's")
    return Evidence("accumulation", f"{told}; no rule that minquant knows gives them from the same inputs")
