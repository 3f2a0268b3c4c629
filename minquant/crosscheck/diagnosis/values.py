"""What flows between layers, in one form for both libraries, and how far two such values are apart.

A value is a `QTensor` (integers, or fake-quantized real values, on a grid) or an array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minquant.functional.geometry import Geometry
from minquant.quant import QParams, QTensor, quantize

__all__ = ["Difference", "Facts", "Value", "difference", "integers_of", "leaves", "map_leaves", "real", "refuse_nan"]

Value = QTensor | np.ndarray


@dataclass(frozen=True)
class Facts:
    """What a layer knows of itself.

    Attributes:
        kind: name of its class.
        role: "linear", "conv", "embedding", "quantize", "functional", "relu", "norm" or "other".
        weight: integers and grid; of a float layer the real weight; None without one.
        bias: float32 (N,), or None.
        output: the grid that it writes to; None for real values, or where the input's grid is kept.
        relu: whether a ReLU is fused in.
        dialect: the engine whose rules it follows, if it works on integers.
        geometry: how a convolution slides.
        dynamic: whether it chooses its input's grid at run time.
        integers: whether it works on integers, and not in fake-quantized real values.
        input_range: the integers that a dynamic layer's grid is chosen for.
    """

    kind: str
    role: str = "other"
    weight: Value | None = None
    bias: np.ndarray | None = None
    output: QParams | None = None
    relu: bool = False
    dialect: str | None = None
    geometry: Geometry | None = None
    dynamic: bool = False
    integers: bool = False
    input_range: tuple[int, int] | None = None

    def with_(self, **changes: Any) -> Facts:
        """The same but for these."""
        return replace(self, **changes)


# ---- structures of values --------------------------------------------------------------------------------------------


def leaves(structure: Any, is_leaf: Callable[[Any], bool]) -> list[Any]:
    """What counts as a value in nested lists, tuples and dicts, in order."""
    found: list[Any] = []
    map_leaves(structure, is_leaf, found.append)
    return found


def map_leaves(structure: Any, is_leaf: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """The structure with every value changed, everything else as it was."""
    if is_leaf(structure):
        return change(structure)
    if isinstance(structure, list | tuple):
        return type(structure)(map_leaves(part, is_leaf, change) for part in structure)
    if isinstance(structure, dict):
        return {key: map_leaves(part, is_leaf, change) for key, part in structure.items()}
    return structure


# ---- differences -----------------------------------------------------------------------------------------------------


@dataclass
class Difference:
    """How far a layer's values are from the other model's.

    Attributes:
        values: how many were compared.
        count: how many differ: of integers any difference; of real values one beyond the float bound.
        max_steps: the largest difference, in integers, or in units of the float bound.
        signal: ``Σ ref²``, and `noise` ``Σ (ref - x)²``, of the real values.
        in_steps: whether `max_steps` counts steps of a grid.
    """

    values: int = 0
    count: int = 0
    max_steps: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    in_steps: bool = True

    @property
    def share(self) -> float:
        """``count / values``; 0 of nothing."""
        return self.count / self.values if self.values else 0.0

    @property
    def sqnr_db(self) -> float:
        """``10·log10(Σ ref² / Σ (ref - x)²)``: infinite where nothing differs, minus infinity where ref is 0."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    def row(self) -> dict[str, float]:
        """As a table has it."""
        return {"differing": self.share, "max_steps": self.max_steps, "sqnr_db": self.sqnr_db}


def difference(pairs: Iterable[tuple[Value, Value, np.ndarray | None]]) -> Difference:
    """Over all batches: the reference's value, the other's, and the float bound where both are real."""
    total = Difference()
    for reference, other, bound in pairs:
        if reference.shape != other.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {other.shape}")
        a, b = real(reference).astype(np.float64), real(other).astype(np.float64)
        total.signal += float(np.sum(a**2))
        total.noise += float(np.sum((a - b) ** 2))
        if isinstance(reference, QTensor) or isinstance(other, QTensor):
            steps = np.abs(np.subtract(*integers_of(reference, other), dtype=np.int64))
            differing = steps > 0
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = np.where(a == b, 0, np.abs(a - b) / bound)
            differing, total.in_steps = steps > 1, False
        total.values += steps.size
        total.count += int(differing.sum())
        total.max_steps = max(total.max_steps, float(steps.max(initial=0)))
    return total


def integers_of(a: Value, b: Value) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' integers; real values are quantized to the other's grid."""
    if not isinstance(a, QTensor):
        a = quantize(a, b.qparams)  # type: ignore[union-attr]
    if not isinstance(b, QTensor):
        b = quantize(b, a.qparams)
    return a.int_repr().astype(np.int64), b.int_repr().astype(np.int64)


def real(value: Value) -> np.ndarray:
    """The real values."""
    return value.dequantize() if isinstance(value, QTensor) else value


def refuse_nan(value: Value, what: str) -> None:
    """Refuses values that differ from themselves.

    Raises:
        ValueError: NaN.
    """
    if not isinstance(value, QTensor) and value.dtype.kind == "f" and np.isnan(value).any():
        raise ValueError(
            f"compare: {what} holds {int(np.isnan(value).sum())} NaN out of {value.size} values; a NaN differs from "
            "everything, so mend the input or the layer first"
        )
