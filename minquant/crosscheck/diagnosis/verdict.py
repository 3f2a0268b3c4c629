"""What is to be said of one pair of layers: does it differ, on the data or on probes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.quant import QTensor, quantize

from .causes import Evidence, Seen, by_signature, cause_of_integers, cause_of_quantize
from .pairs import Pair
from .parameters import differing_parameters
from .probes import probes, quantize_probes
from .rules import by_dialect, rule_of
from .side import Call, Side
from .values import Difference, Facts, Value, difference, integers_of, real

__all__ = ["Verdict", "float_bound", "judge"]

FLOAT_BOUND = 2.2e-7
"""Of ``Σ|x||w| + |b|``: how far two float32 products may be apart, summed in whatever order."""
SEED = 20_260
MOST_CUT_OFF = 0.01
"""Share of values that an observer may cut off to round the others better, as HistogramObserver does."""
ACTIVATIONS = {"ReLU", "GELU", "SiLU", "Sigmoid", "Tanh", "Softmax", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"}


@dataclass
class Verdict:
    """Of one pair.

    Attributes:
        evidence: why it differs; None if it does not.
        wrong: False for what the rounding of real values to a grid explains: integers against a float layer.
        probes: ``{"values", "differing"}`` of inputs made for the layer; None where it was not probed.
    """

    evidence: Evidence | None = None
    wrong: bool = True
    probes: dict[str, int] | None = None


@dataclass
class Run:
    """A pair's calls of every batch.

    Attributes:
        pairs: one a batch.
        first: the first model, and `second` the other.
        outputs: what the second's layer returns for the first's inputs, one a batch.
        difference: of `outputs` from the first's.
    """

    pairs: list[Pair]
    first: Side
    second: Side
    outputs: list[Value]
    difference: Difference


def judge(run: Run) -> Verdict:
    """The verdict on a pair that both models have."""
    a, b = run.first.facts_of_calls(run.pairs[0].first), run.second.facts_of_calls(run.pairs[0].second)
    if run.first.has_integers and run.second.has_integers and a.integers != b.integers and a.role in ("linear", "conv"):
        side = "second" if a.integers else "first"
        return Verdict(
            Evidence("missing", f"the layer works on integers in one model and stayed in float in the {side}")
        )
    if b.role == "quantize" and (b.integers or a.integers):
        return _quantize(run, a, b)
    if _static(a) and _static(b) and a.integers and b.integers:
        return _integers(run, a, b)
    real_first, real_second = _is_float(run.pairs[0].first), _is_float(run.pairs[0].second)
    if real_first != real_second or (a.integers != b.integers and real_first):
        return _float_and_integers(run, a, b)
    return _other(run, a, b)


def _is_float(calls: list[Call]) -> bool:
    """Whether a layer computes with plain real values, and not with fake-quantized ones."""
    return not all(isinstance(value, QTensor) for value in (*calls[0].inputs, calls[-1].value))


def _static(facts: Facts) -> bool:
    return isinstance(facts.weight, QTensor) and facts.output is not None and not facts.dynamic


# ---- integers against integers ---------------------------------------------------------------------------------------


def _integers(run: Run, a: Facts, b: Facts) -> Verdict:
    inputs = [_on_grid(pair.first[0].inputs[0], pair.second[0].inputs[0]) for pair in run.pairs]
    ya = [_codes(pair.first[-1].value) for pair in run.pairs]
    yb = [_codes(y) for y in run.outputs]
    made = probes(a, inputs[0].qparams, rule_of(a), np.random.default_rng(SEED))
    pa, pb = ([_codes(side.run(calls, [x])) for x in made] for side, calls in _calls(run))
    seen = Seen(a, b, [*inputs, *made], [*ya, *pa], [*yb, *pb])
    counts = _counts(pa, pb)
    if not run.difference.count and not counts["differing"]:
        return Verdict(probes=counts)
    found = cause_of_integers(seen)
    return Verdict(_on_what(found, run, counts), probes=counts)


def _counts(first: list[np.ndarray], second: list[np.ndarray]) -> dict[str, int]:
    differing = sum(int((p.astype(np.int64) != q).sum()) for p, q in zip(first, second, strict=True))
    return {"values": sum(p.size for p in first), "differing": differing}


def _calls(run: Run) -> list[tuple[Side, Any]]:
    return [(run.first, run.pairs[0].first), (run.second, run.pairs[0].second)]


def _on_what(found: Evidence, run: Run, counts: dict[str, int]) -> Evidence:
    if run.difference.count:
        return found
    probed = f"the data shows no difference, probes do ({counts['differing']:,} of {counts['values']:,})"
    return Evidence(found.cause, f"{probed}: {found.sentence}")


def _on_grid(value: Value, own: Value) -> QTensor:
    """The first's input as the second gets it."""
    return value if isinstance(value, QTensor) else quantize(value, own.qparams)  # type: ignore[union-attr]


def _codes(value: Value) -> np.ndarray:
    return value.int_repr() if isinstance(value, QTensor) else value


# ---- integers against float ------------------------------------------------------------------------------------------


def _float_and_integers(run: Run, a: Facts, b: Facts) -> Verdict:
    """Is the integer layer what the float one should become? Its integers differ from float in any case."""
    found = _wrong_parameter(a, b)
    if found:
        return Verdict(found)
    side, calls, facts = _integer_one(run, a, b)
    if not (_static(facts) and rule_of(facts)) or run.second.facts_of_calls(run.pairs[0].second).dynamic:
        return _expected(run, facts)
    outputs = run.outputs if b.integers else [pair.first[-1].value for pair in run.pairs]
    inputs = [_on_grid(p.first[0].inputs[0], p.second[0].inputs[0]) for p in run.pairs]
    codes = np.concatenate([x.int_repr().ravel() for x in inputs])
    ends = int(codes.min(initial=0)), int(codes.max(initial=1))  # beyond what the data has, a float model says nothing
    made = probes(facts, inputs[0].qparams, rule_of(facts), np.random.default_rng(SEED), ends)
    inputs = [*inputs, *made]
    got = [*map(_codes, outputs), *(_codes(side.run(calls, [x])) for x in made)]
    for engine in side.engines(facts):
        seen = Seen(facts, facts, inputs, [by_dialect(str(engine), facts, x) for x in inputs], got)
        if engine == facts.dialect:
            own = seen
        if not seen.differing(seen.ya, seen.yb):
            return _expected(run, facts)
    cause = cause_of_integers(own)
    wrong = (
        cause.cause != "rounding" or len(side.engines(facts)) == 1
    )  # an engine that is not known may round otherwise
    return Verdict(cause, wrong, _counts(own.ya[-len(made) :], own.yb[-len(made) :]))


def _wrong_parameter(a: Facts, b: Facts) -> Evidence | None:
    found = differing_parameters(a.with_(output=None), b.with_(output=None))
    if not found:
        return None
    also = f"; also different: {', '.join(p.what for p in found[1:])}" if found[1:] else ""
    return Evidence(found[0].cause, found[0].sentence + also)


def _integer_one(run: Run, a: Facts, b: Facts) -> tuple[Side, Any, Facts]:
    return (run.second, run.pairs[0].second, b) if b.integers else (run.first, run.pairs[0].first, a)


def _expected(run: Run, facts: Facts) -> Verdict:
    """What rounding to grids explains."""
    if not run.difference.count:
        return Verdict()
    cut = 0
    for pair, output in zip(run.pairs, run.outputs, strict=True):
        ours, theirs = pair.first[-1].value, output
        grid = next((v.qparams for v in (ours, theirs) if isinstance(v, QTensor)), None)
        if grid is not None:
            value = real(theirs if isinstance(ours, QTensor) else ours)
            ends = [(q - int(grid.zero_point)) * float(grid.scale) for q in (grid.spec.qmin, grid.spec.qmax)]
            cut += int(((value < ends[0] - float(grid.scale)) | (value > ends[1] + float(grid.scale))).sum())
    told = (
        f"float against integers: nothing is wrong, inputs and weights are rounded to their grids "
        f"({run.difference.count:,} of {run.difference.values:,} differ, by up to {run.difference.max_steps:.3g} "
        f"{'steps' if run.difference.in_steps else 'times the float bound'})"
    )
    if cut > MOST_CUT_OFF * run.difference.values:
        return Verdict(
            Evidence("clamp", f"{cut:,} of {run.difference.values:,} float values lie beyond the grid's ends")
        )
    if cut:
        told += f", and {cut:,} float {'value lies' if cut == 1 else 'values lie'} beyond the grid's ends"
    return Verdict(Evidence("rounding", told), wrong=False)


# ---- real values to integers -----------------------------------------------------------------------------------------


def _quantize(run: Run, a: Facts, b: Facts) -> Verdict:
    """Quantize against Quantize, or against a QuantStub that passes real values on."""
    side, calls, facts = _integer_one(run, a, b)
    grid: Any = facts.output
    if not a.integers or not b.integers:
        return _expected(run, facts)
    x = quantize_probes(grid)
    pa, pb = (_codes(s.run(c, [x])) for s, c in _calls(run))
    counts = _counts([pa], [pb])
    if not run.difference.count and not counts["differing"]:
        return Verdict(probes=counts)
    data = [real(pair.first[0].inputs[0]).ravel() for pair in run.pairs]
    ya = [_codes(pair.first[-1].value).ravel() for pair in run.pairs]
    yb = [_codes(y).ravel() for y in run.outputs]
    seen = Seen(a, b, [], [*ya, pa], [*yb, pb])
    found = cause_of_quantize(np.concatenate([*data, x]), np.concatenate(seen.yb), seen)
    return Verdict(_on_what(found, run, counts), probes=counts)


# ---- all others ------------------------------------------------------------------------------------------------------


def _other(run: Run, a: Facts, b: Facts) -> Verdict:
    """Activations, pooling, sums; dynamic layers; fake-quantized against integers; float against float."""
    if not run.difference.count:
        return Verdict()
    if a.kind != b.kind and {a.kind, b.kind} <= ACTIVATIONS:
        return Verdict(Evidence("missing", f"a {a.kind} here, a {b.kind} there"))
    found = differing_parameters(a, b)
    if found:
        also = f"; also different: {', '.join(p.what for p in found[1:])}" if found[1:] else ""
        return Verdict(Evidence(found[0].cause, found[0].sentence + also))
    if a.dynamic and b.dynamic:
        return Verdict(_dynamic(a, b))
    values = [(pair.first[-1].value, y) for pair, y in zip(run.pairs, run.outputs, strict=True)]
    if not any(isinstance(value, QTensor) for value in values[0]):
        return _expected(run, b) if a.integers != b.integers else Verdict(_real(run))
    codes = [integers_of(*pair) for pair in values]
    ours, theirs = ([c[i] for c in codes] for i in (0, 1))
    if _static(b) and b.integers and isinstance(a.weight, QTensor):
        inputs = [_on_grid(p.first[0].inputs[0], p.second[0].inputs[0]) for p in run.pairs]
        return Verdict(cause_of_integers(Seen(a, b, inputs, ours, theirs)))
    return Verdict(by_signature(ours, theirs, b))


def _dynamic(a: Facts, b: Facts) -> Evidence:
    if a.input_range != b.input_range:
        told = f"the input's grid is chosen for {a.input_range} here, for {b.input_range} there"
        return Evidence("clamp", told)
    return Evidence("rounding", f"the same parameters, rescaled in another order ({a.dialect} here, {b.dialect} there)")


def _real(run: Run) -> Evidence:
    told = f"{run.difference.count:,} of {run.difference.values:,} real values differ by more than the float bound"
    return Evidence("accumulation", f"{told}, by up to {run.difference.max_steps:.3g} times as much")


# ---- the unit of float differences -----------------------------------------------------------------------------------


def float_bound(pair: Pair, side: Side, reference: Value) -> np.ndarray | None:
    """How far two real outputs may be apart, element by element; None where one of them is on a grid.

    A float Linear or Conv: ``2.2e-7 · (Σ|x||w| + |b|)``. A dynamic layer, which is exact up to its last operation: a
    little less than one float32 step, so that every difference counts. Others: a float32 step of the largest value.
    """
    if isinstance(reference, QTensor):
        return None
    facts = side.facts_of_calls(pair.first)
    if facts.dynamic:
        return np.spacing(np.abs(reference)).astype(np.float64) * 0.999
    if facts.role not in ("linear", "conv") or isinstance(facts.weight, QTensor):
        return np.full(reference.shape, np.spacing(np.float32(np.abs(reference).max(initial=1e-30))), np.float64)
    x, weight = (np.abs(real(v)).astype(np.float64) for v in (pair.first[0].inputs[0], facts.weight))  # type: ignore[arg-type]
    bias = np.zeros(len(weight)) if facts.bias is None else np.abs(facts.bias.astype(np.float64))
    if facts.geometry is None:
        return FLOAT_BOUND * (x @ weight.T + bias) + np.finfo(np.float32).tiny
    batched = x.ndim == weight.ndim
    columns, filters = facts.geometry.columns(x if batched else x[None]), facts.geometry.filters(weight)
    rows = np.concatenate([c @ f.T for c, f in zip(columns, filters, strict=True)], axis=1) + bias
    images = facts.geometry.images(rows, x.shape if batched else (1, *x.shape))
    return FLOAT_BOUND * (images if batched else images[0]) + np.finfo(np.float32).tiny


def same_difference(run_pairs: list[Pair], side: Side, outputs: list[Value]) -> Difference:
    """Of what the second's layer returned for the first's inputs."""
    references = [pair.first[-1].value for pair in run_pairs]
    return difference(
        (ref, out, float_bound(pair, side, ref)) for pair, ref, out in zip(run_pairs, references, outputs, strict=True)
    )
