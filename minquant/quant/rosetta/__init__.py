"""The Rosetta table: one tensor in every dialect, and which rule makes each difference.

    the reference's reading  →  scale  →  zero point  →  ends  →  rounding  =  a dialect's reading

`readings` has every dialect's reading, `causes` finds what sets two of them apart, `requantizing` does the same for the
way from int32 accumulators to 8 bits.
"""

from __future__ import annotations

from .requantizing import requantizations
from .table import Rosetta, rosetta

__all__ = ["Rosetta", "requantizations", "rosetta"]
