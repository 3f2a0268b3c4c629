"""`compare`: two models layer by layer, and why the first layer that differs does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from minquant.nn import Module
from minquant.tensor import Tensor

from .comparison import Comparison
from .diagnosis.causes import Evidence
from .diagnosis.minquant_side import MinquantSide
from .diagnosis.pairs import Pair, pair
from .diagnosis.side import Side
from .diagnosis.values import Difference, Value, difference, refuse_nan
from .diagnosis.verdict import Run, Verdict, float_bound, judge, same_difference

__all__ = ["compare"]


def compare(float_model: Any, quantized_model: Any, inputs: Any) -> Comparison:
    """Runs two models layer by layer and finds the first layer that differs, and the cause.

    Layers are paired by their paths (a ``QuantWrapper``'s "module." aside). Each pair is compared twice: as the models
    run, on their *own* inputs, where errors pile up; and on the *same* inputs, where the second model's layer gets what
    the first model's got, so that only its own fault shows: integers on the first's grid if the first's are integers.
    Besides the data, integer layers get inputs made to hit ties, the ends of the range, overflow and zero.

    The cause is one of scale, zero_point, rounding, clamp, bias, saturation, accumulation, weight and missing: of the
    parameter that differs, or of the rule which, changed in an exact recomputation, gives the second model's integers.

    Args:
        float_model: the reference: a minquant Module or a torch one (float, prepared, converted, torchao), of whatever
            kind; both models may be quantized.
        quantized_model: likewise. Both are copied and run in eval mode; they stay as they are.
        inputs: an array or tensor, or a list of them, a batch each.

    Returns:
        A `Comparison`: prints as a table; `layers`, `first_divergent`, `as_json()`, `plot(path)`.

    Raises:
        TypeError: not a model, or inputs that are no numbers.
        ValueError: no layers in common; a model that cannot run the inputs (the layer is named); NaN.
    """
    first, second = side_of(float_model, "first"), side_of(quantized_model, "second")
    by_batch = [pair(first, second, first.trace(x), second.trace(x)) for x in batches_of(inputs)]
    layers, found = [], []
    for pairs in zip(*by_batch, strict=True):
        row, verdict = _one_layer(list(pairs), first, second)
        layers.append(row)
        if verdict.evidence:
            found.append((verdict, row["name"]))
    serious = [f for f in found if f[0].wrong] or found
    return Comparison(layers, _told(*serious[0]) if serious else None)


def _told(verdict: Verdict, layer: str) -> dict[str, str]:
    evidence: Any = verdict.evidence
    return {"layer": layer, "cause": evidence.cause, "evidence": evidence.sentence}


def _one_layer(pairs: list[Pair], first: Side, second: Side) -> tuple[dict[str, Any], Verdict]:
    name, missing = pairs[0].name, pairs[0].missing
    kinds = [type(calls[0].module).__name__ if calls else None for calls in (pairs[0].first, pairs[0].second)]
    row = {"name": name, "kinds": kinds, "differing": None, "max_steps": None, "sqnr_db": None,
           "same_inputs": None, "unit": "steps", "probes": None}  # fmt: skip
    if missing:
        return row, Verdict(Evidence("missing", f"the {missing} model has no layer {name!r}, or does not run it"))
    try:
        own = own_difference(pairs, first)
        outputs = [second.run(p.second, p.first[0].inputs) for p in pairs]
        same = same_difference(pairs, first, outputs)
        verdict = judge(Run(pairs, first, second, outputs, same))
    except (ValueError, TypeError, RuntimeError, StopIteration) as error:
        raise ValueError(f"compare: layer {name!r} cannot be compared: {error}") from error
    unit = "steps" if same.in_steps else "float bound"
    return row | own.row() | {"same_inputs": same.row(), "unit": unit, "probes": verdict.probes}, verdict


def own_difference(pairs: list[Pair], first: Side) -> Difference:
    """Of what each model's layer returned for its own inputs."""
    return difference((p.first[-1].value, p.second[-1].value, float_bound(p, first, p.first[-1].value)) for p in pairs)


def side_of(model: Any, which: str) -> Side:
    """The adapter for a model's library. torch is not imported here: whoever has a torch model has imported it.

    Raises:
        TypeError: neither a minquant nor a torch module.
    """
    if isinstance(model, Module):
        return MinquantSide(model, which)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from .diagnosis.torch_side import TorchSide

        return TorchSide(model, which)
    raise TypeError(
        f"compare: the {which} model must be a minquant Module or a torch.nn.Module, got {type(model).__name__}; pass "
        "the model itself, not a function that makes it"
    )


def batches_of(inputs: Any) -> list[Value]:
    """The batches as arrays.

    Raises:
        TypeError: no numbers.
        ValueError: no batches; NaN.
    """
    batches = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if not batches:
        raise ValueError("compare: inputs is an empty list; expected an array or a list of batches")
    arrays: list[Value] = [_array(batch) for batch in batches]
    for array in arrays:
        refuse_nan(array, "inputs")
    return arrays


def _array(batch: Any) -> np.ndarray:
    array = (
        batch.data if isinstance(batch, Tensor) else np.asarray(batch.detach() if hasattr(batch, "detach") else batch)
    )
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise TypeError(
            f"compare: inputs must be arrays of numbers, a batch each, got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array
