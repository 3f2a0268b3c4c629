"""torchao's affine primitives, which round as the reference dialect does, for every granularity."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant.quant import QParams, QSpec, QTensor, choose_qparams, quantize

from ..flat import GRANULARITIES, GROUP, flat_grid, flat_spec, grid_of, spec_of
from ..inputs import KINDS, near_ties, values
from ..quiet import import_torchao
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

EPS = 2.0**-23


def _torchao() -> Any:
    return import_torchao("torchao.quantization.quant_primitives")


def _block(granularity: str, shape: tuple[int, int]) -> tuple[int, int]:
    return {"per tensor": shape, "per group": (1, GROUP)}.get(granularity, (1, shape[1]))


def _draw(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Values (R, K) with K a multiple of the group, and the kind of grid."""
    for i in range(40 if quick else 300):
        size = 20 if i % 4 == 3 else 4
        shape = (int(rng.integers(1, 4 * size)), GROUP * int(rng.integers(1, size)))
        bits, symmetric = int(rng.choice([2, 4, 8])), bool(rng.random() < 0.5)
        spec = QSpec(bits, symmetric or bool(rng.random() < 0.5), symmetric, GRANULARITIES[granularity])
        yield {"kind": KINDS[i % len(KINDS)], "x": values(rng, shape, KINDS[i % len(KINDS)]), **flat_spec(spec)}


def _gridded(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """The same with its grid, its integers, and values near ties."""
    for inputs in _draw(granularity, rng, quick):
        grid = _grid(inputs["x"], spec_of(inputs, granularity))
        x = near_ties(rng, inputs["x"], grid)
        yield {**inputs, **flat_grid(grid), "x": x, "q": quantize(x, grid).int_repr().copy()}


def _grid(x: np.ndarray, spec: QSpec) -> QParams:
    return choose_qparams(*spec.granularity.min_max(x), spec)


# ---- choose_qparams: the grid for a range, with the same smallest scale ----------------------------------------------


def _our_choose(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    grid = _grid(inputs["x"], spec_of(inputs, granularity))
    return {"scale": grid.scale, "zero_point": grid.zero_point}


def _their_choose(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    ao, spec, x = _torchao(), spec_of(inputs, granularity), inputs["x"]
    kind = ao.MappingType.SYMMETRIC if spec.symmetric else ao.MappingType.ASYMMETRIC
    dtype = torch.int8 if spec.signed else torch.uint8
    block = _block(granularity, x.shape)
    grid = ao.choose_qparams_affine(torch.from_numpy(x), kind, block, dtype, spec.qmin, spec.qmax, EPS)
    shape = spec.granularity.qparams_shape(x.shape)
    return {name: a.numpy().reshape(shape) for name, a in zip(("scale", "zero_point"), grid, strict=True)}


# ---- quantize and dequantize -----------------------------------------------------------------------------------------


def _our_quantize(granularity: str, inputs: Inputs) -> np.ndarray:
    return quantize(inputs["x"], grid_of(inputs, granularity)).int_repr()


def _our_dequantize(granularity: str, inputs: Inputs) -> np.ndarray:
    return QTensor(inputs["q"], grid_of(inputs, granularity)).dequantize()


def _affine(rule: str, name: str, granularity: str, inputs: Inputs) -> np.ndarray:
    """Torchao's quantize_affine or dequantize_affine of the input of that name."""
    import torch

    x, spec, block = inputs[name], spec_of(inputs, granularity), _block(granularity, inputs["x"].shape)
    # one scale a block, in the blocks' own shape
    shape = [n // b for n, b in zip(x.shape, block, strict=True)]
    grid = (torch.from_numpy(np.array(inputs[end]).reshape(shape)) for end in ("scale", "zero_point"))
    dtype = torch.int8 if spec.signed else torch.uint8
    return getattr(_torchao(), rule)(torch.from_numpy(x), block, *grid, dtype, spec.qmin, spec.qmax).numpy()


CHECKS = tuple(
    Check(
        f"torchao/{rule} {granularity}",
        f"torchao.{rule}_affine",
        partial(draw, granularity),
        partial(ours, granularity),
        partial(theirs, granularity),
    )
    for rule, draw, ours, theirs in (
        ("choose_qparams", _draw, _our_choose, _their_choose),
        ("quantize", _gridded, _our_quantize, partial(_affine, "quantize_affine", "x")),
        ("dequantize", _gridded, _our_dequantize, partial(_affine, "dequantize_affine", "q")),
    )
    for granularity in GRANULARITIES
)
