"""The table itself: a row a dialect."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from minquant.tensor import Tensor

from ..grid import check_finite, float_array
from .causes import causes, scale_formula, shift_between
from .readings import Reading, base_readings, other_readings

__all__ = ["Rosetta", "rosetta", "shown_integers"]

SHOWN = 3
FEW = 8
WIDTH = 110


def rosetta(x: np.ndarray | Tensor, bits: int = 8) -> Rosetta:
    """One tensor in every dialect: grid, integers, error, and which rule makes each difference.

    Affine readings are compared with the reference dialect's affine one, symmetric ones with its symmetric one; an int8
    integer counts as equal to a uint8 one that is 128 higher.

    Args:
        x: float array or Tensor of any shape, not empty, finite; one scale is chosen for all of it.
        bits: 2 to 8; fewer than 8 leave out the dialects that know 8 alone.

    Returns:
        A `Rosetta`: prints as a table, `rows` are for programs.

    Raises:
        TypeError: x is not of floating type.
        ValueError: x is empty, or holds NaN or infinity, or its range is too wide for float32; bits outside 2 to 8.
    """
    values = float_array(x, "rosetta")
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"rosetta: bits must be a whole number from 2 to 8, got {bits!r}")
    if not values.size:
        raise ValueError(f"rosetta: x is empty, of shape {values.shape}: no range, so no grid")
    check_finite(values, "rosetta: x", "Remove or replace them")
    bases = {base.dialect: base for base in base_readings(values, bits)}
    rows, left_out = [_row(base, base, values) for base in bases.values()], {}
    for name, read in other_readings(values, bits):
        try:
            reading = read()
        except ValueError as error:  # a tensor that one dialect refuses is no reason to hide the others
            left_out[name] = str(error)
        else:
            rows.append(_row(bases[reading.base], reading, values))
    rows.sort(key=lambda row: list(bases).index(row["base"]))
    return Rosetta(values.shape, bits, rows, left_out)


class Rosetta:
    """One row a dialect.

    Attributes:
        shape: of the tensor.
        bits: of the grids.
        rows: dicts with the keys

            - dialect, base: its name, and the reading that it is compared with;
            - rule: what makes the difference, each part with the number of integers that it moves;
            - scale, zero_point, qmin, qmax: the grid;
            - integers: of the tensor's shape, int64;
            - differing: how many integers differ from the base's;
            - first: the first few of them as (value, base's integer, integer);
            - max_steps: the largest ``|x - x̂| / scale``.
        left_out: dialects that refuse this tensor, and why.
    """

    def __init__(self, shape: tuple[int, ...], bits: int, rows: list[dict[str, Any]], left_out: dict[str, str]) -> None:
        self.shape = shape
        self.bits = bits
        self.rows = rows
        self.left_out = left_out

    def __str__(self) -> str:
        return _table(self)

    __repr__ = __str__


def _row(base: Reading, reading: Reading, x: np.ndarray) -> dict[str, Any]:
    expected = base.integers + shift_between(base, reading)
    places = np.flatnonzero(reading.integers != expected)
    first = [(float(x.flat[i]), int(expected.flat[i]), int(reading.integers.flat[i])) for i in places[:SHOWN]]
    real = (reading.integers - reading.zero_point) * np.float64(reading.scale)
    return {
        "dialect": reading.dialect,
        "base": base.dialect,
        "rule": _own_rule(base, x) if reading is base else _rule(base, reading, x),
        "scale": float(reading.scale),
        "zero_point": reading.zero_point,
        "qmin": reading.qmin,
        "qmax": reading.qmax,
        "integers": reading.integers,
        "differing": len(places),
        "first": first,
        "max_steps": float(np.abs(x - real).max() / np.float64(reading.scale)),
    }


def _own_rule(base: Reading, x: np.ndarray) -> str:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    return f"scale {scale_formula(float(base.scale), low, high, base.signed)}; rint(x · 1/s) + z"


def _rule(base: Reading, reading: Reading, x: np.ndarray) -> str:
    parts = [str(cause) for cause in causes(base, reading, x)] or ["no difference on this tensor"]
    shift = shift_between(base, reading)
    return "; ".join([f"{abs(shift)} lower throughout (int{reading.qmax.bit_length() + 1})"] * bool(shift) + parts)


def shown_integers(row: dict[str, Any]) -> str:
    """All integers of a row where they are few, else the first one that differs."""
    if row["integers"].size <= FEW:
        return "integers " + " ".join(map(str, row["integers"].reshape(-1).tolist()))
    if not row["first"]:
        return ""
    value, before, after = row["first"][0]
    return f"first: {value:.6g} is {after}, not {before}"


# ---- printing --------------------------------------------------------------------------------------------------------


def _table(table: Rosetta) -> str:
    widest = max(len(row["dialect"]) for row in table.rows)
    lines = [
        f"{'dialect':<{widest}}  {'scale':>12}  {'zero point':>10}  {'range':>9}  {'differ':>8}  {'error (steps)':>13}"
    ]
    lines.append("-" * len(lines[0]))
    for row in table.rows:
        ends = f"{row['qmin']}…{row['qmax']}"
        lines.append(
            f"{row['dialect']:<{widest}}  {row['scale']:>12.7g}  {row['zero_point']:>10}  {ends:>9}  "
            f"{row['differing']:>8,}  {row['max_steps']:>13.3f}"
        )
        for text in filter(None, (row["rule"], shown_integers(row))):
            lines.append(textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    "))
    lines += [textwrap.fill(f"left out: {name}: {why}", WIDTH) for name, why in table.left_out.items()]
    return "\n".join(lines)
