"""Inputs of a check are flat: how a grid, or a series of arrays, is put among them and taken out again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec

from .suite import Inputs

__all__ = ["GROUP", "GRANULARITIES", "flat_grid", "flat_spec", "grid_of", "numbered", "series", "spec_of"]

GROUP = 4
GRANULARITIES: dict[str, PerTensor | PerChannel | PerGroup | PerToken] = {
    "per tensor": PerTensor(),
    "per channel": PerChannel(),
    "per group": PerGroup(GROUP),
    "per token": PerToken(),
}


def flat_spec(spec: QSpec) -> dict[str, Any]:
    """All of it but the granularity, which a check's own name tells."""
    return {"bits": spec.bits, "signed": spec.signed, "symmetric": spec.symmetric}


def spec_of(inputs: Inputs, granularity: str) -> QSpec:
    """The inverse of `flat_spec`."""
    return QSpec(inputs["bits"], inputs["signed"], inputs["symmetric"], GRANULARITIES[granularity])


def flat_grid(grid: QParams) -> dict[str, Any]:
    """Scale, zero point and `flat_spec`."""
    return {"scale": grid.scale, "zero_point": np.array(grid.zero_point), **flat_spec(grid.spec)}


def grid_of(inputs: Inputs, granularity: str) -> QParams:
    """The inverse of `flat_grid`."""
    return QParams(inputs["scale"], inputs["zero_point"], spec_of(inputs, granularity))


def numbered(name: str, arrays: Iterable[Any]) -> dict[str, Any]:
    """``{"x 0": …, "x 1": …}``: a series under one name."""
    return {f"{name} {i}": array for i, array in enumerate(arrays)}


def series(inputs: Inputs, name: str) -> list[Any]:
    """The inverse of `numbered`."""
    return [value for key, value in inputs.items() if key.rpartition(" ")[0] == name]
