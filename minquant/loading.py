"""`load`: reads what `minquant.save` wrote. Nothing in the file is executed; what does not fit is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from minquant.nn import Module, Parameter
from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec, QTensor
from minquant.quant.dialects.float_qparams import FloatQParamsTable
from minquant.quant.qtensor import PACKED_UP_TO, unpack_bits
from minquant.tensor import Tensor

from .saving import FILLED, FORMAT, SETTINGS, VERSION, checksum, import_safetensors

__all__ = ["load"]

CLASSES = {kind.__name__: kind for kind in SETTINGS}
GRANULARITIES = {kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup, PerToken)}


def load(path: str | os.PathLike[str], into: Module | None = None) -> Module:
    """Reads a model that `save` wrote; outputs, integers, grids and report are those of the model saved.

    Args:
        path: the file.
        into: needed where the model, or a part of it, is of a class of your own, which a file cannot rebuild: a
            fresh float model of the same class. Its layers are replaced by those of the file; attributes other
            than parameters, buffers and layers stay as they are.

    Returns:
        The model; `into` itself where it was given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not minquant's, is truncated or altered, or was written by a newer minquant; a
            class of your own without `into`; an `into` that does not fit (then it is left as it was).
        TypeError: `into` is not a Module.
        ImportError: safetensors is not installed.
    """
    if into is not None and not isinstance(into, Module):
        raise TypeError(f"load: into must be a float model, a Module; got {into!r}")
    description, tensors = _read(Path(path))
    try:
        tree = json.loads(description)
        _check_into(tree, tensors, into, path)
        return Reader(tensors).module(tree, "", into)
    except MisfitError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"load: {path} holds no model that makes sense ({error}); save it again") from error


class MisfitError(ValueError):
    """The file is sound, but does not go with `into`."""


# ---- the file ---------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The module tree, still as JSON, and the tensors of a file that is proven to be as it was written."""
    if not path.is_file():
        raise FileNotFoundError(f"load: there is no file {path}")
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_version(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise ValueError(
            f"load: {path} is no safetensors file, or is truncated or damaged ({error}); copy or save it again"
        ) from error
    tree = metadata.get("model", "")
    if checksum(tree, tensors) != metadata.get("sha256"):
        raise ValueError(f"load: {path} has been altered: its contents do not give its sha256; copy or save it again")
    return tree, tensors


def _check_version(metadata: dict[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"load: {path} is a safetensors file, but not one that minquant.save wrote; read its tensors with "
            "safetensors.numpy.load_file and load_state_dict"
        )
    version = metadata.get("version", "")
    if version != str(VERSION):
        newer = version.isdecimal() and int(version) > VERSION
        what_to_do = "upgrade minquant" if newer else "save the model again"
        raise ValueError(
            f"load: {path} has format version {version or 'none'}, this minquant reads {VERSION}; {what_to_do}"
        )


# ---- a model of the reader's own class ----------------------------------------------------------------------


def _check_into(tree: dict[str, Any], tensors: dict[str, np.ndarray], into: Module | None, path: Any) -> None:
    if into is None:
        if _stays(tree):
            where, name = _first_own(tree)
            raise MisfitError(
                f"load: {path}: {where} is of class {name}, which a file cannot rebuild, since nothing in it is "
                f"executed; pass a fresh float model: load(path, into={tree['class']}(...))"
            )
        return
    problems = _misfits(tree, tensors, into, "")
    if problems:
        raise MisfitError(f"load: {path} does not fit into this {type(into).__name__}:\n  " + "\n  ".join(problems))


def _stays(node: dict[str, Any] | None) -> bool:
    """Whether a module of `into` is kept: one of the reader's own class, or one that holds such a module."""
    if node is None or "same_as" in node:
        return False
    return node["own"] or any(map(_stays, node["children"].values()))


def _first_own(node: dict[str, Any], path: str = "") -> tuple[str, str]:
    if node["own"]:
        return repr(path) if path else "the model", node["class"]
    name, child = next((name, child) for name, child in node["children"].items() if _stays(child))
    return _first_own(child, f"{path}.{name}" if path else name)


def _misfits(node: dict[str, Any], tensors: dict[str, np.ndarray], own: Module, path: str) -> list[str]:
    """What keeps the modules of `into` that stay from taking what the file has for them."""
    where = path or "the model"
    if type(own).__name__ != node["class"] or (type(own) not in SETTINGS) != node["own"]:
        return [f"{where}: the file has a {node['class']}, got a {type(own).__name__}"]
    problems = []
    for kind in ("parameters", "buffers", "children"):
        there = getattr(own, "_modules" if kind == "children" else f"_{kind}")
        problems += [f"{where}: the file has no {name!r}" for name in there if name not in node[kind]]
        problems += [f"{where}: has no {name!r}" for name in node[kind] if name not in there]
    for name, about in (node["parameters"] | node["buffers"]).items():
        mine = (own._parameters | own._buffers).get(name)
        if mine is not None and about is not None and mine.shape != tensors[about["tensor"]].shape:
            shape = tensors[about["tensor"]].shape
            problems.append(f"{where}: {name!r} has shape {shape} in the file, here {mine.shape}")
    for name, child in node["children"].items():
        if _stays(child) and own._modules.get(name) is not None:
            problems += _misfits(child, tensors, own._modules[name], f"{path}.{name}" if path else name)
    return problems


# ---- from the description to modules ------------------------------------------------------------------------


class Reader:
    """Builds what `saving.Writer` described."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.modules: dict[str, Module] = {}
        self.shared: dict[tuple[str, type], Tensor] = {}

    def module(self, node: dict[str, Any], path: str, into: Module | None) -> Module:
        """The module at this path: `into` if that stays, else a new one."""
        if "same_as" in node:
            return self.modules[node["same_as"]]
        settings = {name: self.value(value) for name, value in node["settings"].items()}
        module = self.modules[path] = _new(CLASSES[node["class"]], settings) if into is None else into
        for name, value in settings.items():
            setattr(module, name, value)
        children = {
            name: child and self.module(child, f"{path}.{name}" if path else name, _kept(child, name, into))
            for name, child in node["children"].items()
        }
        for table, new in (
            (module._parameters, {n: self.tensor(t, Parameter) for n, t in node["parameters"].items()}),
            (module._buffers, {n: self.tensor(t, Tensor) for n, t in node["buffers"].items()}),
            (module._modules, children),
        ):
            table.clear()
            table.update(new)
        module.training = node["training"]
        return module

    def tensor(self, about: dict[str, Any] | None, kind: type[Tensor]) -> Tensor | None:
        """A parameter or buffer; one name gives one object, so that what was shared is shared again."""
        if about is None:
            return None
        key = about["tensor"], kind
        if key not in self.shared:
            self.shared[key] = kind(self.tensors[about["tensor"]], requires_grad=about["requires_grad"])
        return self.shared[key]

    def value(self, value: Any) -> Any:
        """A setting."""
        if isinstance(value, list):  # JSON has no tuples
            return tuple(value)
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "array":
            return self.tensors[content]
        return {"QTensor": self.qtensor, "FloatQParamsTable": self.table, "QParams": self.qparams, "QSpec": _spec}[
            kind
        ](content)

    def table(self, about: dict[str, Any]) -> FloatQParamsTable:
        integers, scale, zero_point = (self.tensors[about[name]] for name in ("integers", "scale", "zero_point"))
        return FloatQParamsTable(integers, scale, zero_point, about["bits"])

    def qtensor(self, about: dict[str, Any]) -> QTensor:
        qparams, shape = self.qparams(about["qparams"]["QParams"]), tuple(about["shape"])
        spec, storage = qparams.spec, self.tensors[about["storage"]]
        if spec.bits > PACKED_UP_TO:
            return QTensor(storage.reshape(shape), qparams)
        if storage.size != math.ceil(math.prod(shape) * spec.bits / 8):
            raise ValueError(f"{storage.size} bytes cannot be {spec.bits}-bit integers of shape {shape}")
        return QTensor(unpack_bits(storage, spec.bits, spec.signed, shape), qparams)

    def qparams(self, about: dict[str, Any]) -> QParams:
        spec, scale = _spec(about["spec"]["QSpec"]), self.tensors[about["scale"]]
        if about["zero_point"] is None:
            return QParams(scale, np.full(scale.shape, spec.symmetric_zero_point, np.int32), spec)
        return QParams(scale, self.tensors[about["zero_point"]], spec)


def _kept(node: dict[str, Any], name: str, into: Module | None) -> Module | None:
    return into._modules[name] if into is not None and _stays(node) else None


def _new(kind: type[Module], settings: dict[str, Any]) -> Module:
    if kind not in FILLED:
        return kind(**{name: settings[name] for name in SETTINGS[kind]})
    module = kind.__new__(kind)  # not its constructor, which would draw random numbers or ask for children
    Module.__init__(module)
    return module


def _spec(fields: dict[str, Any]) -> QSpec:
    name, *arguments = fields["granularity"]
    return QSpec(**{**fields, "granularity": GRANULARITIES[name](*arguments)})
