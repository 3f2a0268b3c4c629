"""Embeddings: the float EmbeddingBag, and torch's quantized tables of 8 and 4 bits: grids, integers, lookups, bags.

The engines share these kernels, so there is one check of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import functional
from minquant.quant.dialects.float_qparams import float_qparams, quantize_rows

from ..inputs import KINDS, values
from ..suite import Check, Inputs, Outputs

__all__ = ["CHECKS"]

F32 = np.float32
FLOAT16_HOLDS = 1e4


def _draw(bits: int, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Tables of every kind of value, at 4 bits of those whose coefficients float16 holds; bags, some of them empty."""
    for i in range(60 if quick else 600):
        size = 6 if i % 4 else 40
        rows, features = (int(n) for n in rng.integers(1, size, 2))
        weight = values(rng, (rows, features * (2 if bits == 4 else 1)), KINDS[i % len(KINDS)])
        if bits == 4 and np.abs(weight).max() > FLOAT16_HOLDS:
            weight = (weight / np.abs(weight).max()).astype(F32)
        weight = _near_ties(rng, weight, bits) if i % 2 else weight
        lengths = rng.integers(0, 5, int(rng.integers(1, 6)))
        index = rng.integers(0, rows, lengths.sum())
        yield {
            "weight": weight,
            "index": index,
            "offsets": np.cumsum([0, *lengths[: None if i % 3 == 0 else -1]]),
            "factors": rng.standard_normal(len(index) if i % 2 else 0).astype(F32),
            "include_last_offset": i % 3 == 0,
        }


def _near_ties(rng: np.random.Generator, weight: np.ndarray, bits: int) -> np.ndarray:
    """The table with its inner values moved to within a float32 step of the middle between two grid points."""
    scale, zero_point = float_qparams(weight, bits)
    codes = rng.integers(0, 2**bits - 1, weight.shape) + 0.5
    middles = ((codes - zero_point[:, np.newaxis]) * scale[:, np.newaxis]).astype(F32)
    moved = np.nextafter(middles, rng.choice([-np.inf, 0, np.inf], weight.shape).astype(F32))
    inner = (weight > weight.min(axis=1, keepdims=True)) & (weight < weight.max(axis=1, keepdims=True))
    inside = (moved > weight.min(axis=1, keepdims=True)) & (moved < weight.max(axis=1, keepdims=True))
    return np.where(inner & inside, moved, weight).astype(F32)


# ---- torch's quantized tables ----------------------------------------------------------------------------------------


def _ours(bits: int, inputs: Inputs) -> Outputs:
    table = quantize_rows(inputs["weight"], bits)
    factors = inputs["factors"] if inputs["factors"].size else None
    return {
        "scale": table.scale,
        "zero_point": table.zero_point,
        "q": table.int_repr(),
        "lookup": table.lookup(inputs["index"]),
        "bags": table.bags(inputs["index"], inputs["offsets"], factors, bool(inputs["include_last_offset"])),
    }


def _theirs(bits: int, inputs: Inputs) -> Outputs:
    import torch
    import torch.ao.quantization as tq

    qconfig = tq.float_qparams_weight_only_qconfig if bits == 8 else tq.float_qparams_weight_only_qconfig_4bit
    weight, index, offsets = (torch.from_numpy(np.array(inputs[name])) for name in ("weight", "index", "offsets"))
    observer = qconfig.weight()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    dtype = torch.quint8 if bits == 8 else torch.quint4x2
    quantized = torch.quantize_per_channel(weight, scale.float(), zero_point.float(), 0, dtype)
    packed = torch.ops.quantized.embedding_bag_prepack(quantized)
    factors = torch.from_numpy(np.array(inputs["factors"])) if inputs["factors"].size else None
    kind = "byte" if bits == 8 else "4bit"
    bag = getattr(torch.ops.quantized, f"embedding_bag_{kind}")
    last = bool(inputs["include_last_offset"])
    return {
        "scale": scale.float().numpy(),
        "zero_point": zero_point.float().numpy(),
        "q": _unpacked(quantized.int_repr().numpy(), weight.shape, bits),
        "lookup": getattr(torch.ops.quantized, f"embedding_{kind}")(packed, index).numpy(),
        "bags": bag(packed, index, offsets, False, 0, False, factors, None, last).numpy(),
    }


def _unpacked(integers: np.ndarray, shape: Any, bits: int) -> np.ndarray:
    """Two integers of a byte one after the other, at 4 bits; torch keeps them row after row."""
    if bits == 8:
        return integers
    return np.stack([integers.reshape(-1) & 15, integers.reshape(-1) >> 4], axis=-1).reshape(shape)


# ---- the float EmbeddingBag ------------------------------------------------------------------------------------------


def _draw_float(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i, case in enumerate(_draw(8, rng, quick)):
        mode = "mean" if not case["factors"].size and i % 4 else "sum"
        yield {**case, "mode": mode, "padding_idx": int(rng.integers(len(case["weight"]))) if i % 5 == 0 else None}


def _float_bags(library: Any, integer: Any, inputs: Inputs, weight: Any, factors: Any) -> Any:
    options = {name: inputs[name] for name in ("mode", "padding_idx")}
    last = bool(inputs["include_last_offset"])
    bags = integer(inputs["index"]), weight, integer(inputs["offsets"])
    return library.embedding_bag(*bags, per_sample_weights=factors, include_last_offset=last, **options)


def _bound(inputs: Inputs) -> np.ndarray:
    """How far two ways to add n products may lie apart: ``(n + 2)(2⁻²⁴ Σ|w·x| + 2⁻¹⁵⁰)``, n of the longest bag.

    torch rounds each product or sum and a mean's quotient, minquant once at the end; 2⁻¹⁵⁰ is the error near zero.
    """
    weight, factors = (np.abs(inputs[name]).astype(np.float64) for name in ("weight", "factors"))
    magnitudes = {**inputs, "mode": "sum"}
    total = _float_bags(functional, np.asarray, magnitudes, weight, factors if factors.size else None).data
    ends = np.append(inputs["offsets"], len(inputs["index"]))
    return (np.diff(ends).max() + 2) * (2.0**-24 * total + 2.0**-150)


def _ours_float(inputs: Inputs) -> Outputs:
    factors = inputs["factors"] if inputs["factors"].size else None
    y = _float_bags(functional, np.asarray, inputs, inputs["weight"], factors).data
    return y.astype(np.float64) / _bound(inputs)


def _theirs_float(inputs: Inputs) -> Outputs:
    import torch

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(np.array(array))

    factors = tensor(inputs["factors"]) if inputs["factors"].size else None
    y = _float_bags(torch.nn.functional, tensor, inputs, tensor(inputs["weight"]), factors)
    return y.numpy().astype(np.float64) / _bound(inputs)


CHECKS = (
    Check("embedding_bag/float32", "torch.nn.functional.embedding_bag", _draw_float, _ours_float, _theirs_float, 1.0),
    *(
        Check(
            f"quantized embeddings/{bits} bits",
            f"torch.ops.quantized.embedding_bag_{'byte' if bits == 8 else '4bit'}",
            partial(_draw, bits),
            partial(_ours, bits),
            partial(_theirs, bits),
        )
        for bits in (8, 4)
    ),
)
