"""`prove`: is the model that was trained with quantization in the loop the model after `convert`?

In the reference dialect it is, to the last bit. In torch's dialects it is not, and each cause can be switched off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minquant.nn import Module
from minquant.quant import FakeQuantize, QParams, convert
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.fused_fake_quant import FusedMovingAvgObsFakeQuantize, TorchRoundToGrid, fbgemm_grid
from minquant.quant.weighted import QATWeighted
from minquant.tensor import Tensor

from .compare import batches_of
from .diagnosis.minquant_side import MinquantSide
from .diagnosis.pairs import Pair, pair
from .diagnosis.values import difference, real

__all__ = ["Proof", "prove"]


def prove(model_qat: Module, inputs: Any) -> Proof:
    """Runs a prepared model in eval mode beside its converted self and counts, layer by layer, the values that differ.

    Each layer is run on its own inputs, and the converted one once more on the prepared one's inputs. Where fake
    quantizers are torch's (`FusedMovingAvgObsFakeQuantize`), each known cause is switched off by itself, and the values
    are counted again; then all of them.

    Args:
        model_qat: what `prepare_qat` returned, trained or at least run once. It stays as it is.
        inputs: an array or Tensor, or a list of them, a batch each.

    Returns:
        A `Proof`: prints as a table; `layers`, `causes`, `values`, `mismatches`.

    Raises:
        TypeError: not a minquant Module (of torch's models `compare` takes both halves).
        ValueError: a model that `prepare_qat` did not make, or whose observers saw nothing.

    Source: the causes are those of torch.ao.quantization, torch 2.13 (FusedMovingAvgObsFakeQuantize, convert).
    """
    if not isinstance(model_qat, Module):
        raise TypeError(
            f"prove: expected a minquant Module that prepare_qat made, got {type(model_qat).__name__}; for torch's "
            "models, compare(prepared, converted, inputs)"
        )
    if not any(isinstance(m, FakeQuantize) for m in model_qat.modules()):
        raise ValueError("prove: this model has no fake quantizers; call prepare_qat on the float model and train it")
    batches = batches_of(inputs)
    layers = _count(model_qat, batches)
    return Proof(layers, _causes(model_qat, batches, layers) if _fused(model_qat) else [])


class Proof:
    """What `prove` counted.

    Attributes:
        layers: one dict a layer: name, kind, values; on own inputs mismatches (values that differ in any bit), steps
            (that differ in their integer) and max_steps; in same_inputs the same three.
        causes: one dict a cause: cause, its sentence, and values, differing: how many integers still differ, in all
            layers on own inputs, with it switched off. The first is "none", the last "all". Empty in a dialect
            whose fake quantizers follow the plain rule.
        values: how many were compared, on own inputs.
        mismatches: how many of them differ in any bit, on own inputs or on the same ones.
    """

    def __init__(self, layers: list[dict[str, Any]], causes: list[dict[str, Any]]) -> None:
        self.layers = layers
        self.causes = causes
        self.values = sum(row["values"] for row in layers)
        self.mismatches = sum(row["mismatches"] + row["same_inputs"]["mismatches"] for row in layers)

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    __repr__ = __str__


# ---- counting --------------------------------------------------------------------------------------------------------


def _count(model: Module, batches: list[Any]) -> list[dict[str, Any]]:
    """One row a layer."""
    prepared, converted = MinquantSide(model, "prepared"), MinquantSide(convert(_copy(model)), "converted")
    by_batch = [pair(prepared, converted, prepared.trace(x), converted.trace(x)) for x in batches]
    return [_row(list(pairs), converted) for pairs in zip(*by_batch, strict=True)]


def _copy(model: Module) -> Module:
    return copy.deepcopy(model).eval()


def _row(pairs: list[Pair], converted: MinquantSide) -> dict[str, Any]:
    if pairs[0].missing:
        raise ValueError(f"prove: layer {pairs[0].name!r} is missing in the {pairs[0].missing} model")
    own = [(p.first[-1].value, p.second[-1].value) for p in pairs]
    same = [(p.first[-1].value, converted.run(p.second, p.first[0].inputs)) for p in pairs]
    kind = type(pairs[0].first[0].module).__name__
    values = sum(real(a).size for a, _ in own)
    return {"name": pairs[0].name, "kind": kind, "values": values, **_counts(own), "same_inputs": _counts(same)}


def _counts(values: list[tuple[Any, Any]]) -> dict[str, Any]:
    bits = sum(int((real(a).view(np.int32) != real(b).view(np.int32)).sum()) for a, b in values)
    steps = difference((a, b, np.spacing(np.abs(real(a)))) for a, b in map(_on_second_grid, values))
    return {"mismatches": bits, "steps": steps.count, "max_steps": steps.max_steps}


def _on_second_grid(values: tuple[Any, Any]) -> tuple[Any, Any]:
    """Integers are compared on the converted model's grid: the prepared one's may have another scale."""
    a, b = values
    return (real(a), b) if hasattr(b, "qparams") else (a, b)


# ---- causes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switches:
    """Which of torch's habits a fake quantizer has."""

    moves: bool = True
    weights_move: bool = True
    weights_lag: bool = True
    fused_formula: bool = True
    narrow_clamp: bool = True


SWITCHES: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("as torch has it", ()),
    "observers move in eval": ("activations' ranges stand still in eval", ("moves",)),
    "weights are observed again": ("weights' ranges stand still in eval and convert", ("weights_move",)),
    "averaging constant": ("weights' ranges are the current ones, constant 1", ("weights_lag",)),
    "fused scale": ("the scale by the observer's formula, as convert has it", ("fused_formula",)),
    "clamp": ("clamped where the converted operator clamps", ("narrow_clamp",)),
    "all": (
        "all of that; what is left is float sums against integers",
        ("moves", "weights_move", "fused_formula", "narrow_clamp"),
    ),
}


class SwitchedFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """torch's fused fake quantizer with some of its habits switched off."""

    switches: Switches
    of_weight: bool
    backend: str

    def forward(self, x: Tensor) -> Tensor:
        if self.observer_enabled:
            self.observe(x)
        observer = self.activation_post_process
        grid = fbgemm_grid(*observer.range(), observer.spec) if self.switches.fused_formula else observer.qparams()
        if not self.switches.narrow_clamp and not self.of_weight:
            grid = QParams(grid.scale, grid.zero_point, get_dialect(self.backend).full_spec(grid.spec))
        out = TorchRoundToGrid.apply(x, qparams=grid)
        out.qparams = grid
        return out


def _causes(model: Module, batches: list[Any], layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = sum(row["values"] for row in layers)
    found = []
    for cause, (sentence, off) in SWITCHES.items():
        rows = _count(_switched(model, Switches(**dict.fromkeys(off, False))), batches) if off else layers
        differing = sum(row["steps"] for row in rows)
        found.append({"cause": cause, "sentence": sentence, "values": values, "differing": differing})
    return found


def _fused(model: Module) -> bool:
    return any(isinstance(m, FusedMovingAvgObsFakeQuantize) for m in model.modules())


def _switched(model: Module, switches: Switches) -> Module:
    """A copy whose fused fake quantizers have the habits that are left."""
    changed = _copy(model)
    for backend, fake, of_weight in _fake_quantizers(changed):
        fake.__class__ = SwitchedFakeQuantize
        fake.switches, fake.of_weight, fake.backend = switches, of_weight, backend
        if not (switches.weights_move if of_weight else switches.moves):
            fake.disable_observer()
        if of_weight and not switches.weights_lag:
            fake.activation_post_process.averaging_constant = 1.0
    return changed


def _fake_quantizers(model: Module) -> Iterator[tuple[str, Any, bool]]:
    """(backend, fused fake quantizer, whether it is a weight's), each once."""
    for module in list(model.modules()):
        config: Any = getattr(module, "qconfig", None)
        for name in ("activation_post_process", "weight_fake_quant"):
            fake = getattr(module, name, None)
            if config is not None and isinstance(fake, FusedMovingAvgObsFakeQuantize):
                yield config.backend, fake, name == "weight_fake_quant" and isinstance(module, QATWeighted)


# ---- as text ---------------------------------------------------------------------------------------------------------


def _lines(proof: Proof) -> Iterator[str]:
    name, kind = (max([len(row[key]) for row in proof.layers] + [5]) for key in ("name", "kind"))
    head = f"{'layer':{name}}  {'kind':{kind}}  {'values':>10}  {'differ':>8} {'largest':>8}"
    head += f"  {'same inputs':>12} {'largest':>8}"
    yield head
    yield "-" * len(head)
    for row in proof.layers:
        same = row["same_inputs"]
        yield (
            f"{row['name']:{name}}  {row['kind']:{kind}}  {row['values']:>10,}  {row['steps']:>8,} "
            f"{row['max_steps']:>8.4g}  {same['steps']:>12,} {same['max_steps']:>8.4g}"
        )
    yield "-" * len(head)
    if not proof.mismatches:
        yield f"prepared and converted are the same model: 0 of {proof.values:,} values differ in any bit"
    if proof.causes:
        yield f"integers that differ, of {proof.values:,}, with one of torch's habits switched off:"
    for row in proof.causes:
        yield f"{row['sentence']:58} {row['differing']:>10,} {100 * row['differing'] / row['values']:>7.2f}%"
