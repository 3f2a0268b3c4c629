"""A quantized Linear or Conv as a list of separate rules, so that one can be changed while the others stay.

    sums  →  bias and scale: real "steps" of the output's grid  →  rounding  →  zero point  →  clamp

The dialects say each engine's arithmetic in one piece, and they are the specification; here it is taken apart, and with
no rule changed it gives the integers that they give (which is tested).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minquant.kernels.fma import fma
from minquant.kernels.saturating import saturating_matmul
from minquant.quant import QParams, QTensor
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.fbgemm import has_depthwise_kernel
from minquant.quant.dialects.onednn import reciprocal_twice
from minquant.quant.dialects.saturating_conv import taps_in_pairs, windows_in_pairs
from minquant.quant.dialects.x86 import takes_onednn
from minquant.quant.integer import accumulate

from .values import Facts

__all__ = ["ROUNDINGS", "SCALINGS", "SUMS", "Layer", "Rule", "bias_of", "by_dialect", "rule_of", "unrounded"]

F32 = np.float32

# ---- sums ------------------------------------------------------------------------------------------------------------


def _float32(qx: np.ndarray, zx: Any, qw: np.ndarray, zw: Any) -> np.ndarray:
    """Zero points first, then a float32 matrix product."""
    return (qx.astype(F32) - F32(zx)) @ (qw.astype(F32) - np.reshape(zw, (-1, 1)).astype(F32)).T


def _float32_raw(qx: np.ndarray, zx: Any, qw: np.ndarray, zw: Any) -> np.ndarray:
    """A float32 product of the raw integers, the zero points taken out exactly."""
    product = qx.astype(F32) @ qw.astype(F32).T
    exact = qx.astype(np.int64) @ qw.astype(np.int64).T
    return product.astype(np.float64) - exact + accumulate(qx, zx, qw, zw)


def _one_by_one(qx: np.ndarray, zx: Any, qw: np.ndarray, zw: Any) -> np.ndarray:
    """Products added in float32 one after the other."""
    x, w = qx.astype(F32) - F32(zx), qw.astype(F32) - np.reshape(zw, (-1, 1)).astype(F32)
    acc = np.zeros((len(x), len(w)), F32)
    for k in range(x.shape[1]):
        acc += x[:, k : k + 1] * w[:, k]
    return acc


def _clipped_total(qx: np.ndarray, zx: Any, qw: np.ndarray, zw: Any) -> np.ndarray:
    return np.clip(accumulate(qx, zx, qw, zw), -32768, 32767)


def _wrapped(qx: np.ndarray, zx: Any, qw: np.ndarray, zw: Any) -> np.ndarray:
    return accumulate(qx, zx, qw, zw).astype(np.int16).astype(np.int32)


DEQUANTIZED = "dequantized"
"""The one kind of sum that needs the scales: see `Layer`."""

SUMS: dict[str, Callable[..., np.ndarray]] = {
    "exact": accumulate,
    "pairs": partial(accumulate, matmul=saturating_matmul),
    "clipped": _clipped_total,
    "wrapped": _wrapped,
    "float32": _float32,
    "float32 raw": _float32_raw,
    "float32 one by one": _one_by_one,
}

# ---- bias and scale --------------------------------------------------------------------------------------------------


def _reference(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    return (acc.astype(F32) * (sx * sw) + bias) * (F32(1) / so)


def _divided(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    return (acc.astype(F32) * (sx * sw) + bias) / so


def _fused(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    return fma(acc.astype(F32), sx * sw, bias) * (F32(1) / so)


def _fbgemm(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    step = sx * sw
    per_tensor = np.ndim(sw) == 0
    counted = fma(bias, F32(1) / step, acc.astype(F32)) if per_tensor else acc.astype(F32) + bias / step
    return counted * (step / so)


def _integer_bias(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    reciprocal = (1.0 / (np.float64(sw) * np.float64(sx)).astype(F32)).astype(F32)
    codes = np.clip(np.rint(bias * reciprocal), -(2.0**31), 2147483520).astype(np.int32)
    with_bias = acc + codes
    return with_bias.astype(F32) * ((sw * sx) * (F32(1) / so))


def _onednn(acc: Any, sx: Any, sw: Any, bias: Any, so: Any, twice: bool = True) -> np.ndarray:
    real = acc.astype(F32) * reciprocal_twice(np.asarray(sx)) * (reciprocal_twice(sw) if twice else sw) + bias
    return real * (F32(1) / reciprocal_twice(np.asarray(so)))


def _onednn_pairs(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    real = acc.astype(F32) * (reciprocal_twice(np.asarray(sx)) * reciprocal_twice(sw)) + bias
    return real * (F32(1) / reciprocal_twice(np.asarray(so)))


def _added(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    return (acc + bias) * (F32(1) / so)  # the product of dequantized operands is real already


def _exact(acc: Any, sx: Any, sw: Any, bias: Any, so: Any) -> np.ndarray:
    return (acc * (np.float64(sx) * sw) + bias) / np.float64(so)


SCALINGS: dict[str, Callable[..., np.ndarray]] = {
    "reference": _reference,
    "fbgemm": _fbgemm,
    "onednn": _onednn,
    "onednn conv": partial(_onednn, twice=False),
    "onednn pairs": _onednn_pairs,
    "dequantized": _added,
    "divided": _divided,
    "fused": _fused,
    "exact": _exact,
    "integer bias": _integer_bias,
}

# ---- rounding --------------------------------------------------------------------------------------------------------

ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "half even": np.rint,
    "half up": lambda steps: np.floor(steps + F32(0.5)),
    "half away": lambda steps: np.copysign(np.floor(np.abs(steps) + F32(0.5)), steps),
    "truncated": np.trunc,
    "down": np.floor,
    "up": np.ceil,
}


@dataclass(frozen=True)
class Rule:
    """One way to compute a quantized Linear or Conv.

    Attributes:
        sums: key of `SUMS`, or `DEQUANTIZED`, which goes with the scaling of that name.
        scaling: key of `SCALINGS`.
        rounding: key of `ROUNDINGS`.
        zero_point_first: whether the output's zero point is added before the rounding.
        input_zero_point: added to the input's zero point, or "none" if it is not taken out at all.
        output_zero_point: added to the output's.
        padding: the integer that padding holds, if not the input's zero point.
        output_scale: factor of the output's scale; `weight_scale` a function of the weight's scales.
        bias: factor of the bias.
        relu: "as it is", "none", or "at 0": at the integer 0 instead of the zero point.
        low: the range that is clipped to, if not the grid's; `high` likewise.
        wraps: whether integers beyond the range wrap around instead.
    """

    sums: str = "exact"
    scaling: str = "reference"
    rounding: str = "half even"
    zero_point_first: bool = False
    input_zero_point: Any = 0
    output_zero_point: int = 0
    padding: int | None = None
    output_scale: float = 1.0
    weight_scale: str = "as it is"
    bias: float = 1.0
    relu: str = "as it is"
    low: int | None = None
    high: int | None = None
    wraps: bool = False


WEIGHT_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda scale: scale,
    "first": lambda scale: scale.reshape(-1)[0],
    "largest": lambda scale: scale.max(),
}


def rule_of(facts: Facts) -> Rule | None:
    """The rules of the layer's dialect; None for one that is not made of them."""
    name, geometry = facts.dialect, facts.geometry
    if name is None or facts.output is None or facts.dynamic or not isinstance(facts.weight, QTensor):
        return None
    if name == "x86":
        name = "onednn" if geometry and takes_onednn(facts.weight, geometry) else "fbgemm"
    if name == "reference":
        return Rule(scaling="reference") if np.ndim(facts.weight.qparams.scale) < 2 else None
    if name in ("fbgemm", "fbgemm_avx2"):
        pairs = name == "fbgemm_avx2" or (geometry and has_depthwise_kernel(facts.weight.shape, geometry))
        return Rule("pairs" if pairs else "exact", "fbgemm")
    if name == "qnnpack":
        return Rule(scaling="integer bias")
    if name == "onednn_avx2" and not geometry:
        return Rule("pairs", "onednn pairs", zero_point_first=True)
    if name == "onednn":
        return Rule(scaling="onednn conv" if geometry else "onednn", zero_point_first=True)
    return None


def bias_of(facts: Facts) -> np.ndarray:
    """The bias, or zeros."""
    return np.zeros(facts.weight.shape[0], F32) if facts.bias is None else facts.bias  # type: ignore[union-attr]


@dataclass
class Layer:
    """A layer's facts, and its inputs, on which rules are tried; sums are kept, since many rules share them."""

    facts: Facts
    inputs: list[QTensor]
    _sums: dict[Any, list[np.ndarray]] = field(default_factory=dict)

    def integers(self, rule: Rule) -> list[np.ndarray]:
        """What the layer returns under these rules: integers, one array an input."""
        return [self._finished(rule, x, acc) for x, acc in zip(self.inputs, self.sums(rule), strict=True)]

    def sums(self, rule: Rule) -> list[np.ndarray]:
        """The accumulators (R, N) of each input."""
        key = rule.sums, rule.input_zero_point, rule.padding
        if key not in self._sums:
            self._sums[key] = [self._sum(rule, x) for x in self.inputs]
        return self._sums[key]

    def _sum(self, rule: Rule, x: QTensor) -> np.ndarray:
        weight: Any = self.facts.weight
        if rule.sums == DEQUANTIZED:
            return self._float_product(x.dequantize(), weight.dequantize())
        qx, zx, qw, zw = x.int_repr(), x.qparams.zero_point, weight.int_repr(), weight.qparams.zero_point
        used = np.asarray(0 if rule.input_zero_point == "none" else zx + rule.input_zero_point)
        geometry, sums = self.facts.geometry, SUMS[rule.sums]
        if geometry is None:
            return sums(qx.reshape(-1, qx.shape[-1]), used, qw, zw)
        if rule.sums == "pairs":
            if self.facts.dialect == "onednn_avx2":
                return taps_in_pairs(qx, used, qw, geometry)
            return windows_in_pairs(qx, used, qw, zw, geometry)
        fill = int(zx) if rule.padding is None else rule.padding
        columns, filters = geometry.columns(qx, fill), geometry.filters(qw)
        zeros = np.broadcast_to(zw, len(qw)).reshape(geometry.groups, -1)
        parts = [sums(c, used, f, z) for c, f, z in zip(columns, filters, zeros, strict=True)]
        return np.concatenate(parts, axis=1)

    def _float_product(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Real values times real weights, float32."""
        geometry = self.facts.geometry
        if geometry is None:
            return x.reshape(-1, x.shape[-1]) @ weight.T
        pairs = zip(geometry.columns(x), geometry.filters(weight), strict=True)
        return np.concatenate([columns @ filters.T for columns, filters in pairs], axis=1)

    def _finished(self, rule: Rule, x: QTensor, acc: np.ndarray) -> np.ndarray:
        q = finish(rule, self.facts, unrounded(rule, self.facts, x.qparams, acc))
        if self.facts.geometry is None:
            return q.reshape(*x.shape[:-1], q.shape[-1])
        return self.facts.geometry.images(q, x.shape)


def unrounded(rule: Rule, facts: Facts, x_grid: QParams, acc: np.ndarray) -> np.ndarray:
    """Accumulators -> real steps of the output's grid, without its zero point."""
    weight: Any = facts.weight
    scale = WEIGHT_SCALES[rule.weight_scale](weight.qparams.scale)
    bias, so = bias_of(facts) * F32(rule.bias), facts.output.scale * F32(rule.output_scale)  # type: ignore[union-attr]
    return SCALINGS[rule.scaling](acc, x_grid.scale, scale, bias, so)


def finish(rule: Rule, facts: Facts, steps: np.ndarray) -> np.ndarray:
    """Real steps -> integers."""
    output: Any = facts.output
    zo, low, high = int(output.zero_point) + rule.output_zero_point, output.spec.qmin, output.spec.qmax
    rounding = ROUNDINGS[rule.rounding]
    q = rounding(steps + F32(zo)) if rule.zero_point_first else rounding(steps) + zo
    if facts.relu and rule.relu != "none":
        q = np.maximum(q, 0 if rule.relu == "at 0" else zo)
    if rule.wraps:
        return q.astype(np.int64).astype(output.spec.dtype)
    bounds = low if rule.low is None else rule.low, high if rule.high is None else rule.high
    return np.clip(q, *bounds).astype(output.spec.dtype)


def by_dialect(name: str, facts: Facts, x: QTensor) -> np.ndarray:
    """What another engine would return."""
    dialect, weight, bias = get_dialect(name), facts.weight, bias_of(facts)
    if facts.geometry is None:
        return dialect.linear(x, weight, bias, facts.output, facts.relu).int_repr()  # type: ignore[arg-type]
    return dialect.conv(x, weight, bias, facts.output, facts.relu, facts.geometry).int_repr()  # type: ignore[arg-type]
