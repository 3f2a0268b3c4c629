"""torchao's affine primitives, which round as the reference dialect does, for every granularity."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec, QTensor, choose_qparams, quantize

from ..inputs import KINDS, near_ties, values
from ..suite import Case, Check

__all__ = ["CHECKS"]

EPS = 2.0**-23
GROUP = 4
GRANULARITIES: dict[str, Any] = {
    "per tensor": PerTensor(),
    "per channel": PerChannel(),
    "per group": PerGroup(GROUP),
    "per token": PerToken(),
}


def _torchao() -> Any:
    """Its primitives, imported without its remarks on compiled parts that are not for this machine."""
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import quant_primitives
    finally:
        logging.disable(logging.NOTSET)
    return quant_primitives


def _block(granularity: str, shape: tuple[int, int]) -> tuple[int, int]:
    return {"per tensor": shape, "per group": (1, GROUP)}.get(granularity, (1, shape[1]))


def _inputs(
    granularity: str, rng: np.random.Generator, quick: bool
) -> Iterator[tuple[dict[str, Any], np.ndarray, Any]]:
    """Inputs by name, x (R, K) with K a multiple of the group, and the kind of grid."""
    for i in range(40 if quick else 300):
        size = 4 if i % 4 else 20
        shape = (int(rng.integers(1, 4 * size)), GROUP * int(rng.integers(1, size)))
        bits, symmetric = int(rng.choice([2, 4, 8])), bool(rng.random() < 0.5)
        spec = QSpec(bits, symmetric or bool(rng.random() < 0.5), symmetric, GRANULARITIES[granularity])
        x = values(rng, shape, KINDS[i % len(KINDS)])
        yield {"kind": KINDS[i % len(KINDS)], "spec": str(spec), "x": x}, x, spec


def _grid(x: np.ndarray, spec: QSpec) -> QParams:
    return choose_qparams(*spec.granularity.min_max(x), spec)


def _theirs(x: np.ndarray, grid: QParams, granularity: str) -> tuple[Any, Any]:
    """Torchao's integers, and the real values that they stand for."""
    import torch

    ao, block = _torchao(), _block(granularity, x.shape)
    dtype = torch.int8 if grid.spec.signed else torch.uint8
    # one scale a block, in the blocks' own shape
    shape = [n // b for n, b in zip(x.shape, block, strict=True)]
    scale = torch.from_numpy(grid.scale.reshape(shape))
    zero_point = torch.from_numpy(np.array(grid.zero_point).reshape(shape))
    ends = grid.spec.qmin, grid.spec.qmax
    q = ao.quantize_affine(torch.from_numpy(x), block, scale, zero_point, dtype, *ends)
    return q, ao.dequantize_affine(q, block, scale, zero_point, dtype, *ends)


def _choose(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """The grid for a range, with the same smallest scale."""
    import torch

    ao = _torchao()
    for inputs, x, spec in _inputs(granularity, rng, quick):
        kind = ao.MappingType.SYMMETRIC if spec.symmetric else ao.MappingType.ASYMMETRIC
        dtype = torch.int8 if spec.signed else torch.uint8
        scale, zero_point = ao.choose_qparams_affine(
            torch.from_numpy(x), kind, _block(granularity, x.shape), dtype, spec.qmin, spec.qmax, EPS
        )
        grid = _grid(x, spec)
        theirs = {"scale": scale.numpy(), "zero_point": zero_point.numpy()}
        ours = {"scale": grid.scale, "zero_point": grid.zero_point}
        yield inputs, ours, {name: array.reshape(ours[name].shape) for name, array in theirs.items()}


def _quantize(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    for inputs, x, spec in _inputs(granularity, rng, quick):
        grid = _grid(x, spec)
        x = near_ties(rng, x, grid)
        yield {**inputs, "x": x}, quantize(x, grid).int_repr(), _theirs(x, grid, granularity)[0].numpy()


def _dequantize(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    for inputs, x, spec in _inputs(granularity, rng, quick):
        grid = _grid(x, spec)
        q, real = _theirs(x, grid, granularity)
        yield inputs, QTensor(q.numpy(), grid).dequantize(), real.numpy()


CHECKS = tuple(
    Check(f"torchao/{rule} {granularity}", f"torchao.{rule}_affine", partial(run, granularity))
    for rule, run in (("choose_qparams", _choose), ("quantize", _quantize), ("dequantize", _dequantize))
    for granularity in GRANULARITIES
)
