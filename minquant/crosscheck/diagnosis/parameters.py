"""In which parameters two layers differ: integer weights, scales, bias, grids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.quant import QParams, QTensor

from .values import Facts

__all__ = ["Parameter", "differing_parameters"]

BIAS_TOLERANCE = 2.0**-20
"""Of the largest bias: folding a batch norm in another order moves a few last bits of float32, no more."""
HALF_A_STEP = 0.5 + 2.0**-12
"""How far a weight may lie from its integer: half a step, and what the float32 roundings of 128 steps add to it."""


@dataclass(frozen=True)
class Parameter:
    """One that differs.

    Attributes:
        cause: the word for it.
        what: its name.
        sentence: both values.
        mended: how the second layer's facts would have to change.
    """

    cause: str
    what: str
    sentence: str
    mended: dict[str, Any]


def differing_parameters(a: Facts, b: Facts) -> list[Parameter]:
    """All that differ, the ones that matter most first."""
    return list(_differing(a, b))


def _differing(a: Facts, b: Facts) -> Iterator[Parameter]:
    if a.relu != b.relu:
        where = "first" if a.relu else "second"
        yield Parameter("missing", "the ReLU", f"only the {where} model's layer has a ReLU", {"relu": a.relu})
    if a.weight is not None and b.weight is not None:
        yield from _weights(a, b)
    yield from _biases(a, b)
    if a.output is not None and b.output is not None:
        yield from _grids(a.output, b.output)


def _weights(a: Facts, b: Facts) -> Iterator[Parameter]:
    wa, wb = a.weight, b.weight
    if wa.shape != wb.shape:  # type: ignore[union-attr]
        yield Parameter("weight", "the weight's shape", f"weight of shape {wa.shape} here, {wb.shape} there", {})  # type: ignore[union-attr]
    elif isinstance(wa, QTensor) and isinstance(wb, QTensor):
        yield from _integer_weights(wa, wb, a, b)
    elif isinstance(wb, QTensor) or isinstance(wa, QTensor):
        yield from _rounded_weight(wa, wb)
    elif not np.array_equal(wa, wb):  # type: ignore[arg-type]
        off = float(np.abs(wa - wb).max())  # type: ignore[operator]
        yield Parameter("weight", "the weight", f"{_count(wa, wb)} real weights differ, by up to {off:.3g}", {})


def _integer_weights(wa: QTensor, wb: QTensor, a: Facts, b: Facts) -> Iterator[Parameter]:
    qa, qb = wa.int_repr().astype(np.int64), wb.int_repr().astype(np.int64)
    if not np.array_equal(qa, qb):
        at = tuple(int(i) for i in np.argwhere(qa != qb)[0])
        sentence = f"{_count(qa, qb)} integer weights differ, first at {at}: {qa[at]} here, {qb[at]} there"
        yield Parameter("weight", "integer weights", sentence, {"weight": wa})
        return
    sa, sb = np.broadcast_arrays(wa.qparams.scale, wb.qparams.scale)
    if not np.array_equal(sa, sb):
        at = tuple(int(i) for i in np.argwhere(sa != sb)[0]) if sa.ndim else ()
        where = f" of channel {at[0]}" if at else ""
        sentence = f"weight scale{where} {sa[at]:.7g} here, {sb[at]:.7g} there ({_count(sa, sb)} differ)"
        folded = not _same_bias(a, b)  # the real weight differs and the bias with it: another float layer
        yield Parameter("weight" if folded else "scale", "weight scales", sentence, {"weight": wa})
    za, zb = np.broadcast_arrays(wa.qparams.zero_point, wb.qparams.zero_point)
    if not np.array_equal(za, zb):
        sentence = f"weight zero points {za.ravel()[:3]} here, {zb.ravel()[:3]} there"
        yield Parameter("zero_point", "weight zero points", sentence, {"weight": wa})


def _rounded_weight(wa: Any, wb: Any) -> Iterator[Parameter]:
    """A real weight against integers: every integer must be one of the two nearest."""
    real, q = (wa, wb) if isinstance(wb, QTensor) else (wb, wa)
    scale, zero = q.qparams.expand(q.shape)
    steps = np.abs(real.astype(np.float64) / scale - (q.int_repr().astype(np.int64) - zero))
    if steps.max(initial=0) > HALF_A_STEP:
        at = tuple(int(i) for i in np.unravel_index(steps.argmax(), steps.shape))
        sentence = (
            f"{int((steps > HALF_A_STEP).sum()):,} of {steps.size:,} weights lie more than half a step from their "
            f"integers, furthest at {at}: {real[at]:.5g} has {q.dequantize()[at]:.5g}, {steps[at]:.2f} steps off"
        )
        yield Parameter("weight", "the weight", sentence, {})


def _same_bias(a: Facts, b: Facts) -> bool:
    ba, bb = _bias(a), _bias(b)
    if ba.size == 0 or bb.size == 0:
        return not (ba.any() or bb.any())
    return bool(np.abs(ba - bb).max() <= BIAS_TOLERANCE * max(np.abs(ba).max(), np.abs(bb).max()))


def _biases(a: Facts, b: Facts) -> Iterator[Parameter]:
    if _same_bias(a, b):
        return
    ba, bb = _bias(a), _bias(b)
    mended = {"bias": a.bias}
    if not ba.any() or not bb.any():
        where = "first" if not ba.any() else "second"
        largest = float(np.abs(bb if where == "first" else ba).max())
        sentence = f"the {where} model's layer has no bias; the other's is up to {largest:.4g}"
    else:
        at = int(np.abs(ba - bb).argmax())
        sentence = f"{_count(ba, bb)} biases differ, most at {at}: {ba[at]:.6g} here, {bb[at]:.6g} there"
    yield Parameter("bias", "the bias", sentence, mended)


def _bias(facts: Facts) -> np.ndarray:
    return np.zeros(0, np.float32) if facts.bias is None else facts.bias


def _grids(ga: QParams, gb: QParams) -> Iterator[Parameter]:
    mended = {"output": ga}
    if ga.scale != gb.scale:
        yield Parameter("scale", "output scale", f"output scale {ga.scale:.7g} here, {gb.scale:.7g} there", mended)
    if ga.zero_point != gb.zero_point:
        words = f"output zero point {ga.zero_point} here, {gb.zero_point} there"
        yield Parameter("zero_point", "output zero point", words, mended)
    ra, rb = (ga.spec.qmin, ga.spec.qmax), (gb.spec.qmin, gb.spec.qmax)
    if ra != rb:
        words = f"integers {ra[0]}…{ra[1]} here, {rb[0]}…{rb[1]} there"
        yield Parameter("clamp", "range of integers", words, mended)


def _count(a: Any, b: Any) -> str:
    return f"{int(np.sum(a != b)):,} of {np.size(a):,}"
