"""The conformance suite's machinery: a check, how both sides are compared, and what is kept of a failure.

The checks themselves are in `minquant.crosscheck.checks`. A check is three functions: one draws seeded inputs, one asks
minquant and one asks the oracle. What both answer is compared and counted here, and nowhere else; and since the inputs
are flat arrays and numbers, `tests/golden` can record them together with the oracle's answers.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Check",
    "Failure",
    "Inputs",
    "Outputs",
    "Result",
    "by_name",
    "difference",
    "differing",
    "generator",
    "reproducer",
    "run_check",
    "select",
]

Inputs = Mapping[str, Any]
"""By name: NumPy arrays, numbers, bools, strings, None, or tuples of those; nothing that needs torch to be read."""

Outputs = np.ndarray | Mapping[str, np.ndarray]
"""One array, or arrays by name."""

SHOWN = 8


@dataclass(frozen=True)
class Check:
    """One rule of minquant beside the function that it must equal.

    Args:
        name: ``"subject/rule variant"``.
        oracle: the peer's function by its full name, its package first: "torch.…", "torchao.…", "onnx.…".
        draw: ``draw(rng, quick)`` yields inputs, the small ones first; fewer when `quick`. It imports torch only where
            torch itself must make an input, such as a trained state.
        ours: minquant's outputs for inputs; never imports torch.
        theirs: the oracle's outputs, under the same names; imports the oracle's package.
        bound: largest difference allowed between two values; 0 means that they must be equal.
        engine: the engine that torch must have been built with, if any.
    """

    name: str
    oracle: str
    draw: Callable[[np.random.Generator, bool], Iterator[Inputs]]
    ours: Callable[[Inputs], Outputs]
    theirs: Callable[[Inputs], Outputs]
    bound: float = 0.0
    engine: str = ""

    @property
    def needs(self) -> str:
        """The package that the oracle is from."""
        return self.oracle.partition(".")[0]

    @property
    def available(self) -> bool:
        """Whether that package is installed."""
        return importlib.util.find_spec(self.needs) is not None


@dataclass(frozen=True)
class Failure:
    """The first case in which the sides differ by more than the bound."""

    case: int
    inputs: Inputs
    output: str
    ours: np.ndarray
    theirs: np.ndarray
    mismatches: int


@dataclass
class Result:
    """What became of a check."""

    check: Check
    cases: int = 0
    elements: int = 0
    mismatches: int = 0
    max_abs_diff: float = 0.0
    failure: Failure | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether something was compared and nothing differed by more than the bound."""
        return self.elements > 0 and not self.mismatches and not self.error

    def add(self, inputs: Inputs, ours: Outputs, theirs: Outputs) -> None:
        """Counts one case.

        Raises:
            KeyError: the sides name different outputs.
        """
        mine, other = by_name(ours), by_name(theirs)
        if mine.keys() != other.keys():
            raise KeyError(f"minquant returned {sorted(mine)}, the oracle {sorted(other)}")
        for name in mine:
            gap = difference(mine[name], other[name])
            wrong = int((gap > self.check.bound).sum())
            if wrong and self.failure is None:
                self.failure = Failure(self.cases, inputs, name, np.asarray(mine[name]), np.asarray(other[name]), wrong)
            self.elements += gap.size
            self.mismatches += wrong
            self.max_abs_diff = max(self.max_abs_diff, float(gap.max(initial=0)))
        self.cases += 1

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; a difference that is not finite becomes null."""
        return {
            "name": self.check.name,
            "oracle": self.check.oracle,
            "cases": self.cases,
            "elements": self.elements,
            "mismatches": self.mismatches,
            "max_abs_diff": self.max_abs_diff if np.isfinite(self.max_abs_diff) else None,
            "bound": self.check.bound,
            "ok": self.ok,
            "error": self.error or None,
        }


def by_name(outputs: Outputs) -> Mapping[str, np.ndarray]:
    """Outputs as a mapping; a single array is called "output"."""
    return outputs if isinstance(outputs, Mapping) else {"output": outputs}


def difference(ours: Any, theirs: Any) -> np.ndarray:
    """``|ours - theirs|`` in float64, element by element.

    NaN equals NaN, and a 0-d array the array of one that torch has in its place. Where the shapes differ otherwise, or
    only one side is NaN, the difference is infinite.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape and {a.shape, b.shape} != {(), (1,)}:
        return np.full(max(a.size, b.size, 1), np.inf)
    a, b = a.reshape(-1), b.reshape(-1)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    gap[np.isnan(gap)] = np.inf
    return gap


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, int]:
    """How many values of each array differ, where any does."""
    counts = {name: int((difference(ours[name], theirs[name]) > 0).sum()) for name in ours}
    return {name: count for name, count in counts.items() if count}


def select(checks: Iterable[Check], pattern: str | None) -> list[Check]:
    """The checks whose name holds the pattern, in which ``*`` and ``?`` stand for anything.

    Raises:
        ValueError: there is none.
    """
    chosen = [check for check in checks if fnmatch.fnmatchcase(check.name, f"*{pattern or ''}*")]
    if not chosen:
        raise ValueError(f"--only {pattern}: no check has such a name; `minquant crosscheck --list` names them all")
    return chosen


def generator(check: Check, seed: int) -> np.random.Generator:
    """Of a check's inputs; it follows from the seed and the check's name alone, so that one can be run by itself."""
    return np.random.default_rng([seed, zlib.crc32(check.name.encode())])


def run_check(check: Check, seed: int, quick: bool) -> Result:
    """Draws a check's inputs, asks both sides, and counts."""
    result = Result(check)
    try:
        for inputs in check.draw(generator(check, seed), quick):
            result.add(inputs, check.ours(inputs), check.theirs(inputs))
    except Exception as error:  # one check that breaks must not hide the others; it fails, and says why
        result.error = f"{type(error).__name__}: {error}"
    return result


# ---- reproducing a failure -------------------------------------------------------------------------------------------


def reproducer(result: Result, seed: int, quick: bool) -> str:
    """Five lines that tell a failure, and the command that runs it again."""
    name, failure = result.check.name, result.failure
    again = f"  again:  minquant crosscheck --only '{name}' --seed {seed}{' --quick' if quick else ''}"
    if failure is None:
        return f"{name}: {result.error or 'nothing was compared'}\n{again}"
    gap = difference(failure.ours, failure.theirs)
    where = np.flatnonzero(gap > result.check.bound)[:SHOWN]
    return "\n".join([
        f"{name}, seed {seed}, case {failure.case}: {failure.mismatches} of {gap.size} values of {failure.output!r} "
        f"differ, by up to {gap.max():.6g}" + (f"; then {result.error}" if result.error else ""),
        f"  inputs: {', '.join(f'{key}={_shown(value)}' for key, value in failure.inputs.items())}",
        f"  ours:   {_values(failure.ours, where, failure.theirs.shape)}",
        f"  theirs: {_values(failure.theirs, where, failure.ours.shape)}",
        again,
    ])  # fmt: skip


def _shown(value: Any) -> str:
    """A value's repr if it is small, else what it is like."""
    if not isinstance(value, np.ndarray):
        return repr(value)
    if value.size <= SHOWN:
        return " ".join(repr(value).split())
    return f"{value.dtype}{list(value.shape)} in {value.min():.6g} … {value.max():.6g}"


def _values(array: np.ndarray, where: np.ndarray, other: tuple[int, ...]) -> str:
    """The first values that differ, and their places; a small array, or one of another shape than the other, whole."""
    if array.size <= SHOWN or array.shape != other:
        return _shown(array)
    values = ", ".join(f"{value:.9g}" for value in array.reshape(-1)[where].tolist())
    return f"{values} at {where.tolist()} of {list(array.shape)}"
