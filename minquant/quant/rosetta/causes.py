"""Which rule makes two readings of one tensor differ, found from the readings themselves.

The reference's reading is changed into the other's one part at a time: scale, zero point, ends, and at last the way in
which x is rounded. How many integers move at each step is that part's share. Nothing is looked up: of several known
ways to round, the first is named that gives every one of the integers found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minquant.kernels.fma import fma

from ..dialects.tflite import away_from_zero
from ..grid import to_codes
from .readings import Reading

__all__ = ["Cause", "causes", "scale_formula"]

F32 = np.float32


@dataclass(frozen=True)
class Cause:
    """A rule that differs, in words, and how many integers it moves."""

    words: str
    moved: int

    def __str__(self) -> str:
        return f"{self.words} (moves {self.moved:,})"


@dataclass(frozen=True)
class Grid:
    """What the last step of quantizing needs to know."""

    scale: np.float32
    zero_point: int
    clip: tuple[int, int]


def causes(base: Reading, other: Reading, x: np.ndarray) -> Iterator[Cause]:
    """What changes `base` into `other`, in order; integers of another type are first moved to where they belong.

    Args:
        base: the reference dialect's reading of x.
        other: another dialect's.
        x: float32.
    """
    shift = shift_between(base, other)
    grid = Grid(base.scale, base.zero_point + shift, (base.clip[0] + shift, base.clip[1] + shift))
    integers = base.integers + shift
    for words, changed in steps(grid, base, other, x):
        if changed != grid:
            reached = apply(plain, x, changed)
            count = int((reached != integers).sum())
            if count or changed.clip == grid.clip:  # ends that clip nothing need no words
                yield Cause(words(), count)
            grid, integers = changed, reached
    count = int((other.integers != integers).sum())
    if count:
        yield Cause(rounding(x, grid, other), count)


def shift_between(base: Reading, other: Reading) -> int:
    """By how much every integer moves because one type is signed and the other is not."""
    return (other.signed - base.signed) * (base.clip[0] - base.clip[1] - 1) // 2


Step = tuple[Callable[[], str], Grid]


def steps(grid: Grid, base: Reading, other: Reading, x: np.ndarray) -> Iterator[Step]:
    """Scale, zero point and ends of `other`, one after the other, in place of the grid's."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    yield lambda: scale_words(base, other, low, high), Grid(other.scale, grid.zero_point, grid.clip)
    yield lambda: zero_point_words(grid, other, low, high), Grid(other.scale, other.zero_point, grid.clip)
    yield lambda: f"clipped at {other.clip[0]}…{other.clip[1]}", Grid(other.scale, other.zero_point, other.clip)


# ---- ways to round ---------------------------------------------------------------------------------------------------

Rule = Callable[[np.ndarray, Grid], np.ndarray]


def plain(x: np.ndarray, grid: Grid) -> np.ndarray:
    """``rint(f(x · f(1/s))) + z``, the reference's."""
    return to_codes(x, np.asarray(grid.scale), np.asarray(grid.zero_point))


def times_quotient(x: np.ndarray, grid: Grid) -> np.ndarray:
    """``f(x · f(qmax/amax))``."""
    return x * (F32(grid.clip[1]) / np.abs(x).max())


ROUNDINGS: dict[str, Rule] = {
    "zero point added before the rounding": lambda x, grid: np.rint(x * (F32(1) / grid.scale) + F32(grid.zero_point)),
    "zero point added before the rounding, in one fused step": lambda x, grid: np.rint(
        fma(x, F32(1) / grid.scale, F32(grid.zero_point))
    ),
    "true division instead of times 1/s": lambda x, grid: np.rint(x / grid.scale) + grid.zero_point,
    "a half rounded away from zero": lambda x, grid: away_from_zero(x * (F32(1) / grid.scale)) + grid.zero_point,
    "true division, and a half rounded away from zero": lambda x, grid: (
        away_from_zero(x / grid.scale) + grid.zero_point
    ),
    "times qmax/amax instead of times 1/s": lambda x, grid: np.rint(times_quotient(x, grid)),
    "times qmax/amax, and a half rounded away from zero": lambda x, grid: away_from_zero(times_quotient(x, grid)),
}


def apply(rule: Rule, x: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers of x by that rule, clipped."""
    with np.errstate(over="ignore"):
        return np.clip(rule(x, grid), *grid.clip).astype(np.int64)


def rounding(x: np.ndarray, grid: Grid, other: Reading) -> str:
    """The first way to round that gives all the integers of `other` on this grid."""
    for words, rule in ROUNDINGS.items():
        if np.array_equal(apply(rule, x, grid), other.integers):
            return words
    return "rounded in some other way"


# ---- words for a grid ------------------------------------------------------------------------------------------------

DIVISORS = [
    divisor for half in (2**n for n in range(7, 0, -1)) for divisor in (half - 1, half - 0.5, half, 2 * half - 1)
]
SMALLEST = {2.0**-23: "2⁻²³", 6.1e-5: "6.1e-5", 2.0**-126: "2⁻¹²⁶"}
AS_GOOD_AS_EQUAL = 2.0**-21
"""Of two scales that two or three float32 roundings could tell apart."""


def near(a: float, b: float) -> bool:
    """Whether two numbers are one but for float32's last bits."""
    return abs(a - b) <= AS_GOOD_AS_EQUAL * abs(b)


def scale_formula(scale: float, low: float, high: float, symmetric: bool) -> str:
    """What the scale of a range ``low … high`` with 0 in it is: ``"amax/127.5"``; or its value, where it is no such."""
    for smallest, words in SMALLEST.items():
        if near(scale, smallest):
            return f"{words}, the smallest"
    whole = {"amax": max(-low, high)} if symmetric else {"(max - min)": high - low}
    for name, part in (whole | {"-min": -low, "max": high}).items():
        for divisor in DIVISORS:
            if part and near(scale, part / divisor):
                return f"{name}/{divisor:g}"
    return f"{scale:.6g}"


def scale_words(base: Reading, other: Reading, low: float, high: float) -> str:
    """How one scale differs from another, and the range of integers that it was chosen for."""
    before, after = float(base.scale), float(other.scale)
    if near(before, after):
        return "scale rounded otherwise in its last bits"
    symmetric = base.signed
    old, new = (scale_formula(scale, low, high, symmetric).partition("/") for scale in (before, after))
    same_part = old[0] == new[0] and old[2] and new[2]
    words = f"divisor {new[2]} for {old[2]}" if same_part else f"scale {''.join(new)} for {''.join(old)}"
    same_range = other.qmax - other.qmin == base.qmax - base.qmin
    return words if same_range else f"range {other.qmin}…{other.qmax}, {words}"


def zero_point_words(before: Grid, after: Reading, low: float, high: float) -> str:
    """How one zero point differs from another, and if it is by a rounding, by which."""
    words = f"zero point {after.zero_point} for {before.zero_point}"
    if abs(after.zero_point - before.zero_point) != 1:
        return words
    from_low, from_high = after.qmin - low / float(after.scale), after.qmax - high / float(after.scale)
    if after.zero_point == np.rint(from_high) != np.rint(from_low):
        return f"{words}, counted from the maximum"
    if after.zero_point == away_from_zero(np.array(from_low)) != np.rint(from_low):
        return f"{words}, a half rounded away from zero"
    return words
