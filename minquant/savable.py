"""Classes that a saved file may name, beside the layers that `minquant.saved_kinds` lists: those that say so."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import TypeVar

from minquant.nn import Module

__all__ = ["name_of_savable", "savable", "savable_named"]

Kind = TypeVar("Kind", bound=type)
PREFIX = "minquant."
HOMES = ("minquant.quant", "minquant.lm", "minquant.train.int8_storage", "minquant.train.lora_layers")
"""Where minquant's own say so."""

_KINDS: dict[str, dict[str, type]] = {}


def savable(kind: Kind) -> Kind:
    """``@savable`` before a class of your own lets `minquant.save` write its objects, and `load` make them again.

    Of a Module (a layer, a whole model, an observer, a fake quantizer) the file holds parameters, buffers, layers and
    every other attribute; it is made again without its constructor. Attributes can be numbers, strings, tuples, arrays,
    quantized tensors, grids, and savable dataclasses, of which the file holds the fields.

    The file holds the class's name only: whoever loads it must have imported the class.

    Args:
        kind: a Module class or a dataclass.

    Raises:
        TypeError: something else. (Two classes of one name are refused when one of them is to be saved or loaded.)
    """
    if not (isinstance(kind, type) and (issubclass(kind, Module) or dataclasses.is_dataclass(kind))):
        raise TypeError(f"savable: expected a Module class or a dataclass, got {kind!r}; write @savable before it")
    _KINDS.setdefault(_name(kind), {})[_place(kind)] = kind  # a notebook's cell that runs again defines its class anew
    return kind


def name_of_savable(kind: type) -> str | None:
    """What a file calls this class; None for one that is not savable.

    Raises:
        ValueError: another class has that name.
    """
    name = _name(kind)
    return name if _KINDS.get(name, {}).get(_place(kind)) is kind and _only(name) else None


def savable_named(name: str) -> type:
    """The class that a file calls so.

    Raises:
        KeyError: there is none, or none yet.
        ValueError: there are two.
    """
    if name.startswith(PREFIX):
        for home in HOMES:
            if name not in _KINDS:
                import_module(home)
    return _only(name)


def _only(name: str) -> type:
    first, *others = _KINDS[name].values()
    if others:
        raise ValueError(
            f"there are several savable classes called {name} ({', '.join(_KINDS[name])}), and a file tells classes by "
            "their names; rename one of them"
        )
    return first


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(kind: type) -> str:
    return f"{PREFIX if kind.__module__.startswith(PREFIX) else ''}{kind.__name__}"
