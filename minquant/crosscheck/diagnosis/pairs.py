"""Which layer of the one model belongs to which of the other, by path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .side import Call, Side

__all__ = ["Pair", "pair"]

STUB = "quantize"
WRAPPED = "module."


@dataclass
class Pair:
    """One layer of both models, or of one alone.

    Attributes:
        name: its path (in the second model, if it is there).
        first: its calls in the first model, one after the other: a Linear and the ReLU that the other model has fused
            into it count as one layer. Empty if it is missing there.
        second: likewise.
    """

    name: str
    first: list[Call] = field(default_factory=list)
    second: list[Call] = field(default_factory=list)

    @property
    def missing(self) -> str | None:
        """The side that lacks it."""
        return None if self.first and self.second else "second" if self.first else "first"


def pair(first: Side, second: Side, calls_a: list[Call], calls_b: list[Call]) -> list[Pair]:
    """Every layer, in the order of the second model's calls, with those of the first alone where they stand there.

    Raises:
        ValueError: not one layer in common.
    """
    own_a, own_b = _named(first, calls_a), _named(second, calls_b)
    groups_a, groups_b = _groups(own_a, own_b, second), _groups(own_b, own_a, first)
    common = groups_a.keys() & groups_b.keys()
    if not any(groups_a[key][0].module is not None for key in common):
        raise ValueError(
            f"compare: the models have no layer in common: the first has {_list(own_a)}, the second {_list(own_b)}; "
            "layers are paired by their paths in the model"
        )
    pairs = [Pair(calls[0].name, groups_a.get(key, []), calls) for key, calls in groups_b.items()]
    order = list(groups_b)
    for key, calls in groups_a.items():
        if key not in groups_b:
            before = [k for k in list(groups_a)[: list(groups_a).index(key)] if k in order]
            place = order.index(before[-1]) + 1 if before else 0
            order.insert(place, key)
            pairs.insert(place, Pair(calls[0].name, calls, []))
    return [p for p in pairs if not (p.missing and _is_stub(p, first, second))]


def _named(side: Side, calls: list[Call]) -> dict[str, Call]:
    """Calls by path, without the "module." of each QuantWrapper."""
    wrappers = {path for path, m in side.model.named_modules() if type(m).__name__ == "QuantWrapper"}
    return {_unwrapped(call.name, wrappers): call for call in calls}


def _unwrapped(name: str, wrappers: set[str]) -> str:
    for path in sorted(wrappers, key=len, reverse=True):
        prefix = f"{path}." if path else ""
        if name.startswith(prefix + WRAPPED):
            name = prefix + name[len(prefix + WRAPPED) :]
    return name


def _groups(own: dict[str, Call], others: dict[str, Call], other: Side) -> dict[str, list[Call]]:
    """Layers by key; a batch norm or ReLU that the other side has folded into the layer before it joins that layer."""
    groups: dict[str, list[Call]] = {}
    last = ""
    for key, call in own.items():
        group = groups.get(last)
        if group and key not in others and last in others and _joins(call, group[-1], others[last], other):
            group.append(call)
        else:
            groups[key] = [call]
            last = key
    return groups


def _joins(call: Call, before: Call, counterpart: Call, other: Side) -> bool:
    follows = any(raw is before.output for raw in call.arguments[0])
    facts = other.facts[counterpart.name.split("#")[0]]
    kind = type(call.module).__name__
    folds = facts.role in ("linear", "conv") and "BatchNorm" in kind
    return follows and (folds or (facts.relu and kind == "ReLU"))


def _is_stub(pair: Pair, first: Side, second: Side) -> bool:
    side, calls = (second, pair.second) if pair.second else (first, pair.first)
    return side.facts[calls[0].name.split("#")[0]].role == STUB


def _list(calls: dict[str, Any]) -> str:
    names = list(calls)
    return ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "none"
