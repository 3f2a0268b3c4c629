"""Settings of modules as JSON has them, and back: ``{what it is: what it holds}`` wherever JSON has no such value.

Arrays are kept aside, under names. Integers with their grid (a QTensor, say) that several modules share are described
alike in each place, and one object is made of them again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minquant.nn import Module
from minquant.quant import FakeQuantize, PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec, QTensor
from minquant.quant.dialects.float_qparams import FloatQParamsTable
from minquant.quant.dialects.tinygemm import TinygemmGrid, TinygemmTensor
from minquant.quant.observers import Observer, ObserverFactory
from minquant.quant.qtensor import PACKED_UP_TO, unpack_bits

from .savable import name_of_savable, savable_named
from .saved_kinds import DATACLASSES

__all__ = ["TO_BE_SAVABLE", "UnknownClassError", "ValueReader", "ValueWriter", "known_savable"]

GRANULARITIES = {kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup, PerToken)}
TO_BE_SAVABLE = (
    "a file tells observers and fake quantizers by the names of their classes: use one of minquant's, or write "
    "@savable (of minquant.savable) before your own"
)


class UnknownClassError(ValueError):
    """The file is sound, but names a class that nobody has defined here."""


# ---- to JSON ---------------------------------------------------------------------------------------------------------


class ValueWriter:
    """Describes values, and gathers the arrays that the descriptions name.

    Attributes:
        tensors: the arrays by name.
        shared: what has been described and may be met again, by `id`.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.shared: dict[int, Any] = {}

    def array(self, array: np.ndarray, path: str) -> str:
        """Takes an array along under its path, in C order."""
        self.tensors[path] = np.asarray(array, order="C")
        return path

    def value(self, value: Any, path: str) -> Any:
        """A setting.

        Raises:
            TypeError: one of a kind that a file cannot hold.
            ValueError: a factory of something that no file can name.
        """
        if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, tuple | list):
            return [self.value(part, f"{path}.{i}") for i, part in enumerate(value)]
        if isinstance(value, float):
            return {"float": str(value)}
        if isinstance(value, np.ndarray | np.generic):
            return {"array" if isinstance(value, np.ndarray) else "scalar": self.array(np.asarray(value), path)}
        if isinstance(value, QParams):
            return {"QParams": self._qparams(value, path)}
        if isinstance(value, QSpec):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            granularity = fields.pop("granularity")
            fields["granularity"] = [type(granularity).__name__, *dataclasses.astuple(granularity)]
            return {"QSpec": fields}
        for kind, describe in self._tables().items():
            if isinstance(value, kind):
                if id(value) not in self.shared:
                    self.shared[id(value)] = {kind.__name__: describe(value, path)}
                return self.shared[id(value)]
        return self._described(value, path)

    def _tables(self) -> dict[type, Callable[[Any, str], dict[str, Any]]]:
        return {QTensor: self._qtensor, TinygemmTensor: self._tinygemm, FloatQParamsTable: self._float_qparams}

    def _qtensor(self, value: QTensor, path: str) -> dict[str, Any]:
        storage, qparams = self.array(value.storage, path), self.value(value.qparams, path)
        return {"storage": storage, "shape": list(value.shape), "qparams": qparams}

    def _tinygemm(self, value: TinygemmTensor, path: str) -> dict[str, Any]:
        grid = value.qparams
        arrays = {name: self.array(getattr(grid, name), f"{path}.{name}") for name in ("scale", "zero_point")}
        spec = self.value(grid.spec, path)
        return {"storage": self.array(value.storage, path), "shape": list(value.shape), **arrays, "spec": spec}

    def _float_qparams(self, value: FloatQParamsTable, path: str) -> dict[str, Any]:
        arrays = {name: self.array(getattr(value, name), f"{path}.{name}") for name in ("scale", "zero_point")}
        return {"integers": self.array(value.int_repr(), path), **arrays, "bits": value.bits}

    def _qparams(self, qparams: QParams, path: str) -> dict[str, Any]:
        """Scales, and the zero points unless they follow from the spec."""
        spec, zero_point = qparams.spec, qparams.zero_point
        implied = spec.symmetric and (zero_point == spec.symmetric_zero_point).all()
        return {
            "scale": self.array(qparams.scale, f"{path}.scale"),
            "zero_point": None if implied else self.array(zero_point, f"{path}.zero_point"),
            "spec": self.value(spec, path),
        }

    def _described(self, value: Any, path: str) -> Any:
        """A dataclass, or what makes an observer or fake quantizer."""
        kind = type(value)
        savable = name_of_savable(kind)
        if savable or DATACLASSES.get(kind.__name__) is kind:
            names = [f.name for f in dataclasses.fields(value) if f.init]
            fields = {name: self.value(getattr(value, name), f"{path}.{name}") for name in names}
            return {"savable" if savable else "dataclass": [savable or kind.__name__, fields]}
        if isinstance(value, type) or hasattr(value, "func"):
            return {"factory": self._factory(value, path)}
        raise TypeError(
            f"save: '{path}' is a {kind.__name__}, which no file can hold; attributes can be numbers, strings, tuples, "
            "arrays, quantized tensors, grids, and dataclasses with @savable (of "
            "minquant.savable) before them"
        )

    def _factory(self, value: Any, path: str) -> dict[str, Any]:
        """A class, or one with some of its arguments."""
        if hasattr(value, "func"):
            inner = self._factory(value.func, path)
            positional = [self.value(part, f"{path}.{i}") for i, part in enumerate(value.args)]
            named = {name: self.value(part, f"{path}.{name}") for name, part in value.keywords.items()}
            return inner | {
                "positional": inner.get("positional", []) + positional,
                "named": inner.get("named", {}) | named,
            }
        name = name_of_savable(value) if isinstance(value, type) else None
        if name is None:
            raise ValueError(f"save: '{path}' makes its objects with {value!r}; {TO_BE_SAVABLE}")
        return {"class": name}


# ---- and back --------------------------------------------------------------------------------------------------------


class ValueReader:
    """Makes what `ValueWriter` described.

    Args:
        tensors: the arrays by name.
    """

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.tables: dict[str, Any] = {}

    def value(self, value: Any) -> Any:
        """A setting."""
        if isinstance(value, list):  # JSON has no tuples
            return tuple(map(self.value, value))
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind in self._makers():
            return self._makers()[kind](content)
        make, name = {
            "QTensor": (self._qtensor, "storage"),
            "TinygemmTensor": (self._tinygemm, "storage"),
            "FloatQParamsTable": (self._float_qparams, "integers"),
        }[kind]
        if content[name] not in self.tables:
            self.tables[content[name]] = make(content)
        return self.tables[content[name]]

    def _makers(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "float": float,
            "array": lambda name: self.tensors[name],
            "scalar": lambda name: self.tensors[name][()],
            "QParams": self._qparams,
            "QSpec": _spec,
            "dataclass": lambda about: self._filled(DATACLASSES[about[0]], about[1]),
            "savable": lambda about: self._filled(known_savable(about[0]), about[1]),
            "factory": self._factory,
        }

    def _filled(self, kind: Any, fields: dict[str, Any]) -> Any:
        if issubclass(kind, Module):
            raise ValueError(f"{kind.__name__} is no dataclass")
        return kind(**{name: self.value(field) for name, field in fields.items()})

    def _factory(self, about: dict[str, Any]) -> Any:
        kind = known_savable(about["class"])
        if not issubclass(kind, Observer | FakeQuantize):
            raise ValueError(f"{kind.__name__} neither observes nor rounds")
        if "named" not in about:
            return kind
        named = {name: self.value(part) for name, part in about["named"].items()}
        return ObserverFactory(kind, *map(self.value, about["positional"]), **named)

    def _qparams(self, about: dict[str, Any]) -> QParams:
        spec, scale = _spec(about["spec"]["QSpec"]), self.tensors[about["scale"]]
        if about["zero_point"] is None:
            return QParams(scale, np.full(scale.shape, spec.symmetric_zero_point, np.int32), spec)
        return QParams(scale, self.tensors[about["zero_point"]], spec)

    def _qtensor(self, about: dict[str, Any]) -> QTensor:
        qparams = self._qparams(about["qparams"]["QParams"])
        return QTensor(self._integers(about, qparams.spec, qparams.spec.bits <= PACKED_UP_TO), qparams)

    def _tinygemm(self, about: dict[str, Any]) -> TinygemmTensor:
        spec = _spec(about["spec"]["QSpec"])
        grid = TinygemmGrid(self.tensors[about["scale"]], self.tensors[about["zero_point"]], spec)
        return TinygemmTensor(self._integers(about, spec, True), grid)

    def _float_qparams(self, about: dict[str, Any]) -> FloatQParamsTable:
        integers, scale, zero_point = (self.tensors[about[name]] for name in ("integers", "scale", "zero_point"))
        return FloatQParamsTable(integers, scale, zero_point, about["bits"])

    def _integers(self, about: dict[str, Any], spec: QSpec, packed: bool) -> np.ndarray:
        storage, shape = self.tensors[about["storage"]], tuple(about["shape"])
        if not packed:
            return storage.reshape(shape)
        if storage.size != math.ceil(math.prod(shape) * spec.bits / 8):
            raise ValueError(f"{storage.size} bytes cannot be {spec.bits}-bit integers of shape {shape}")
        return unpack_bits(storage, spec.bits, spec.signed, shape)


def known_savable(name: str) -> Any:
    """The class that a file calls so.

    Raises:
        UnknownClassError: there is none, or none yet.
    """
    try:
        return savable_named(name)
    except KeyError:
        raise UnknownClassError(
            f"it holds a {name}, a class that is not known here; if it is yours, import it before you load, with "
            "@savable (of minquant.savable) before it"
        ) from None


def _spec(fields: dict[str, Any]) -> QSpec:
    name, *arguments = fields["granularity"]
    return QSpec(**{**fields, "granularity": GRANULARITIES[name](*arguments)})
